"""Measure a checkpoint of the bundled model and write its card.

    python -m foveal.mini.evaluate src/foveal/mini/weights --log runs/mini/log.jsonl --hardware "2 CPU cores"

One question per image, greedy generation through the ordinary processor, on the test split of the scenes and on
easy-VQA's own test. The same questions are asked again with the picture blanked: a model that answers those has not
looked.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from foveal.evaluation import EvaluationResult, estimate, provenance, write_json
from foveal.evaluation import evaluate as ask
from foveal.loading import load
from foveal.mini.card import card
from foveal.mini.datasets import EasyQuestions, SceneQuestions
from foveal.mini.stages import STAGES

__all__ = ["evaluate", "main"]

Rates = dict[str, dict[str, float]]


def evaluate(folder: Path, size: int = 2000, easy: int | None = None) -> dict[str, Any]:
    """Scores of the checkpoint in `folder` on `size` scenes and `easy` images of easy-VQA (all if None)."""
    model, processor = load(folder)
    blank = Image.new("RGB", (96, 96), (128, 128, 128))
    results: dict[str, Any] = {}
    for name, questions in (
        ("scenes", SceneQuestions("test", size)),
        ("easy_vqa", EasyQuestions("test", easy)),
    ):
        samples = list(questions)
        blanked = [{**sample, "image": blank} for sample in samples]
        for suffix, asked in (("", samples), ("_blanked", blanked)):
            found = ask(model, processor, asked, batch_size=50, max_new_tokens=8, label=name + suffix)
            results[name + suffix] = _rates(found)
    facts = {
        "command": f"python -m foveal.mini.evaluate {folder} --size {size}",
        "split": "test, seed 0, one question per image, greedy",
        "dtype": str(model.dtype),
        "million_parameters": round(sum(part.numel() for part in model.parameters()) / 1e6, 2),
    }
    return {**results, "provenance": {**provenance(seed=0), **facts}}


def _rates(result: EvaluationResult) -> Rates:
    """Accuracy with its interval: in all, by type, and by type and subset."""
    scores: dict[str, list[float]] = defaultdict(list)
    for record in result.records:
        for name in ("overall", record.type, f"{record.type}/{record.subset}"):
            scores[name].append(record.score)
    ordered = sorted(scores, key=lambda name: (name != "overall", name))
    return {
        name: {key: round(value, 4) for key, value in asdict(estimate(scores[name])).items()}
        for name in ordered
    }


def _training(log: Path, hardware: str, note: str) -> dict[str, Any]:
    """What a training log says: the last line of each stage, with the images it saw a step."""
    last: dict[str, dict[str, Any]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        last[entry["stage"]] = {**entry, "batch": STAGES[entry["stage"]].batch}
    command = (
        "OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 -m foveal.mini.train --out runs/mini"
    )
    stages = list(last.values())
    return {"command": command, "seed": 0, "hardware": hardware, "note": note, "stages": stages}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m foveal.mini.evaluate", description="Measure the bundled model."
    )
    parser.add_argument(
        "folder", type=Path, help="the checkpoint; results.json and README.md are written into it"
    )
    parser.add_argument("--size", type=int, default=2000, help="how many scenes")
    parser.add_argument("--easy", type=int, help="how many images of easy-VQA's test (default all 1,000)")
    parser.add_argument("--log", type=Path, help="log.jsonl of the training run, to be quoted in the results")
    parser.add_argument("--hardware", default="", help="what it was trained on, in words")
    parser.add_argument("--note", default="", help="what else should be known about the training run")
    options = parser.parse_args(arguments)
    results = evaluate(options.folder, options.size, options.easy)
    if options.log:
        results["training"] = _training(options.log, options.hardware, options.note)
    write_json(options.folder / "results.json", results)
    (options.folder / "README.md").write_text(card(results), encoding="utf-8")
    summary = {
        part: results[part]["overall"]
        for part in ("scenes", "scenes_blanked", "easy_vqa", "easy_vqa_blanked")
    }
    Console().print_json(data=summary)


if __name__ == "__main__":
    main()
