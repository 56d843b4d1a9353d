"""The demo's report: tables, the curve of accuracy against tokens, and two examples with kept tokens drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from foveal.cli.demo_study import KEEP, TITLES, TOKENS, Outcome, Study
from foveal.compression import compress
from foveal.compressors import get
from foveal.evaluation.questions import as_question
from foveal.evaluation.runner import encode, generate_answers
from foveal.images import open_image
from foveal.report import Report, accuracy_curve
from foveal.show import seen_images, stage_pictures

__all__ = ["write_report"]


def write_report(study: Study, model: Any, processor: Any, questions: Any, folder: Path) -> Path:
    """Write ``report.html``, ``accuracy.png`` and the examples' pictures into `folder`; returns the report's path."""
    plan = study.plan
    report = Report(f"{TOKENS} visual tokens, or {KEEP}?", study.verdict())
    report.heading("Before and after")
    header = ["accuracy in % (95 % interval)", *study.models]
    rows = [
        [title, *(str(part.results[key].accuracy) for part in study.models.values())]
        for key, title in TITLES.items()
    ]
    report.table(
        header, rows, marked=[1], caption=f"{plan.questions} held-out questions, the same in every cell."
    )
    report.paragraph(
        f"Plain and EPIC both start from the model on the left and see the same {plan.steps} batches of "
        f"{plan.batch_size} conversations ({study.plain.train_seconds:.0f} s and {study.epic.train_seconds:.0f} s). "
        "Plain fine-tuning sees every visual token; EPIC trains with DART and ever fewer tokens, and learns from "
        "itself with a few more. FastV and Random, which it never saw, show how far the gain carries over."
    )
    report.heading("Accuracy against visual tokens")
    curve = accuracy_curve({name: part.curve() for name, part in study.models.items()})
    curve.savefig(folder / "accuracy.png", dpi=160)
    report.picture(
        curve, "accuracy against visual tokens kept", "DART at layer 2. Bars are 95 % Wilson intervals."
    )
    _add_types(report, study)
    _add_examples(report, study, model, processor, questions, folder)
    report.heading("Where these numbers come from")
    report.listing(json.dumps(study.before.results["none", TOKENS].provenance, indent=2))
    path = folder / "report.html"
    report.write(path)
    return path


def _add_types(report: Report, study: Study) -> None:
    report.heading("By type of question")
    keys = [(study.before, ("none", TOKENS)), *((part, ("dart", KEEP)) for part in study.models.values())]
    columns = [part.results[key].by_type for part, key in keys]
    rows = [
        [name, *(f"{100 * column[name].value:.0f}" for column in columns), str(columns[0][name].count)]
        for name in columns[0]
    ]
    header = [
        "accuracy in %",
        f"before, all {TOKENS}",
        *(f"{name}, {KEEP}" for name in study.models),
        "questions",
    ]
    report.table(header, rows, caption="Few questions each: read it as a hint.")


def _add_examples(
    report: Report, study: Study, model: Any, processor: Any, questions: Any, folder: Path
) -> None:
    places, chosen = _examples(study)
    report.heading("What was kept")
    report.paragraph(
        f"{chosen} Left: what the model sees. Right: the {KEEP} patches that DART keeps of {TOKENS}."
    )
    for number, place in enumerate(places, start=1):
        question = as_question(questions[place])
        picture = _picture(model, processor, open_image(question.image), question.question)
        picture.save(folder / f"example-{number}.png")
        said = [f"all {TOKENS} tokens: {_said(study.before, 'none', TOKENS, place)}"]
        said += [f"{name}, {KEEP}: {_said(part, 'dart', KEEP, place)}" for name, part in study.models.items()]
        caption = f"“{question.question}” Right answer: {question.answers[0]}. " + "; ".join(said)
        report.picture(picture, f"example {number}: kept tokens", caption)


def _said(part: Outcome, method: str, tokens: int, place: int) -> str:
    return part.results[method, tokens].records[place].prediction or "(nothing)"


def _examples(study: Study) -> tuple[list[int], str]:
    """Two places in the data, and how they were chosen."""
    pairs = zip(
        study.before.results["dart", KEEP].records, study.epic.results["dart", KEEP].records, strict=True
    )
    won = [place for place, (early, late) in enumerate(pairs) if late.score > early.score]
    if len(won) >= 2:
        return won[
            :2
        ], f"The first two of the {len(won)} questions that EPIC answered better than the model before it."
    return [0, 1], "The first two questions."


def _picture(model: Any, processor: Any, image: Image.Image, question: str) -> Image.Image:
    """The image and its kept tokens, side by side."""
    inputs = encode(processor, [image], [question])
    with compress(model, get("dart", keep=KEEP, layer=2)) as run:
        generate_answers(model, processor, [image], [question], max_new_tokens=1)
        return stage_pictures(run, seen_images(inputs["pixel_values"], processor), TOKENS)[0]
