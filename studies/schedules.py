"""What each of EPIC's schedules does to the bundled model: TCD, LCD, ICD, their ablations, and the controls.

    python studies/schedules.py

Every schedule is the paper's, unchanged. All start from the bundled model and see the same batches in the same order,
at the learning rate that studies/epic_recipe.py chose on validation scenes. Accuracy is measured on test scenes, with
all 144 tokens and with DART at 48, 32, 16 and 9, on the same questions throughout. One row a schedule is appended to
`studies/results/schedules.jsonl`; a schedule that has a row is passed over, so that a stopped study goes on.
`--table` prints what is there.
"""

from __future__ import annotations

import argparse
import json
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

import foveal
from foveal.cli.train import fine_tune
from foveal.evaluation import append_row, evaluate, paired_difference, provenance
from foveal.mini import SceneConversations, SceneQuestions

RESULT = Path(__file__).parent / "results" / "schedules.jsonl"
BUDGETS = (None, 48, 32, 16, 9)
SCHEDULES = (
    "none",
    "direct",
    "tcd",
    "lcd",
    "icd",
    "tcd-no-distill",
    "tcd-no-progress",
    "lcd-no-distill",
    "lcd-no-progress",
    "icd-no-distill",
    "icd-no-progress",
)


def measure(model: Any, processor: Any, questions: Any) -> dict[str, Any]:
    """Accuracy by tokens kept, and which questions were answered correctly, for paired comparisons."""
    found = {}
    for keep in BUDGETS:
        method = None if keep is None else foveal.DART(keep=keep)
        result = evaluate(model, processor, questions, method, batch_size=40, max_new_tokens=8)
        correct = "".join(str(int(record.score)) for record in result.records)
        found[str(keep or 144)] = {**asdict(result.accuracy), "correct": correct}
    return found


def train(pupil: Any, processor: Any, options: argparse.Namespace, schedule: str) -> float:
    """Fine-tune in place; returns the seconds it took."""
    with TemporaryDirectory() as folder:
        return fine_tune(
            pupil,
            processor,
            SceneConversations("train", options.steps * options.batch_size, seed=1023 - options.seed),
            label=schedule,
            folder=folder,
            schedule=schedule,
            keep=16 / 144,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            seed=options.seed,
        )


def table(rows: list[dict[str, Any]]) -> Table:
    """Accuracy in % (95 %) by schedule and tokens kept."""
    shown = Table("schedule", *(str(keep or "all 144") for keep in BUDGETS), box=None)
    for row in rows:
        cells = (row["accuracy"][str(keep or 144)] for keep in BUDGETS)
        values = (f"{100 * x['value']:.1f} ({100 * x['low']:.1f}..{100 * x['high']:.1f})" for x in cells)
        shown.add_row(row["setting"]["schedule"], *values)
    return shown


def differences(rows: list[dict[str, Any]], control: str) -> Table:
    """Points above the control on the same questions (95 %), by schedule and tokens kept."""
    shown = Table(f"points above {control}", *(str(keep or "all 144") for keep in BUDGETS), box=None)
    by_schedule = {row["setting"]["schedule"]: row["accuracy"] for row in rows}
    for schedule, accuracy in by_schedule.items():
        before = by_schedule[control]
        cells = []
        for budget in (str(keep or 144) for keep in BUDGETS):
            scores = ([float(mark) for mark in found[budget]["correct"]] for found in (before, accuracy))
            cells.append(paired_difference(*scores).points())
        shown.add_row(schedule, *cells)
    return shown


def main() -> None:
    """Train and measure what has no row yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schedules", nargs="+", default=["untrained", *SCHEDULES])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    console = Console(width=140)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {row["setting"]["schedule"] for row in rows if row["setting"]["seed"] == options.seed}
    todo = [] if options.table else [name for name in options.schedules if name not in done]
    model, processor = foveal.load(compressed=False)
    questions = SceneQuestions("test", options.questions, seed=options.seed)
    for schedule in todo:
        pupil = deepcopy(model)
        seconds = 0.0 if schedule == "untrained" else train(pupil, processor, options, schedule)
        setting = {
            "schedule": schedule,
            "train_seconds": round(seconds, 1),
            "steps": options.steps,
            "batch_size": options.batch_size,
            "learning_rate": options.learning_rate,
            "questions": options.questions,
            "seed": options.seed,
        }
        accuracy = measure(pupil, processor, questions)
        row = {"setting": setting, "accuracy": accuracy, "provenance": provenance(seed=options.seed)}
        append_row(options.out, row)
        rows.append(row)
        console.print(table([row]))
    console.print(table(rows))
    for control in ("none", "direct"):
        if any(row["setting"]["schedule"] == control for row in rows):
            console.print(differences(rows, control))


if __name__ == "__main__":
    main()
