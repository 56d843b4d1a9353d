"""Which learning rate and how many steps the demo's fine-tuning should use, chosen on validation scenes only.

    python studies/epic_recipe.py --steps 60 --rates 2e-4 5e-4 --schedules none direct tcd

Every combination starts from the bundled model and sees the same batches. One row a combination is appended to
`studies/results/epic_recipe.jsonl`: accuracy with all 144 tokens and with DART at 32, 16 and 9.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from dataclasses import asdict
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

import foveal
from foveal.cli.train import fine_tune
from foveal.evaluation import append_row, evaluate, provenance
from foveal.mini import SceneConversations, SceneQuestions

RESULT = Path(__file__).parent / "results" / "epic_recipe.jsonl"
BUDGETS = (None, 32, 16, 9)


def measure(model: Any, processor: Any, questions: Any) -> dict[str, dict[str, float]]:
    """Accuracy by budget."""
    found = {}
    for keep in BUDGETS:
        method = None if keep is None else foveal.DART(keep=keep)
        result = evaluate(model, processor, questions, method, batch_size=40, max_new_tokens=8)
        found[str(keep or 144)] = asdict(result.accuracy)
    return found


def train(pupil: Any, processor: Any, options: argparse.Namespace, schedule: str, rate: float) -> float:
    """Fine-tune in place; returns the seconds it took."""
    samples = SceneConversations("train", options.steps * options.batch_size, turns=options.turns, seed=1023)
    with TemporaryDirectory() as folder:
        return fine_tune(
            pupil,
            processor,
            samples,
            label=schedule,
            folder=folder,
            schedule=schedule,
            distill_weight=options.distill_weight,
            most_removed_start=options.most_removed_start,
            least_removed_end=options.least_removed_end,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            learning_rate=rate,
            seed=0,
        )


def main() -> None:
    """Run the grid."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--questions", type=int, default=600)
    parser.add_argument("--distill-weight", type=float, default=0.7)
    parser.add_argument("--most-removed-start", type=float, default=0.05)
    parser.add_argument("--least-removed-end", type=float, default=0.5)
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4])
    parser.add_argument("--schedules", nargs="+", default=["none", "direct", "tcd"])
    parser.add_argument("--untrained", action="store_true", help="also measure the bundled model itself")
    options = parser.parse_args()
    console = Console()
    model, processor = foveal.load()
    questions = SceneQuestions("validation", options.questions, seed=1)
    runs = [*product(options.schedules, options.rates)]
    if options.untrained:
        runs.insert(0, ("untrained", 0.0))
    for schedule, rate in runs:
        pupil = deepcopy(model)
        seconds = train(pupil, processor, options, schedule, rate) if rate else 0.0
        accuracy = measure(pupil, processor, questions)
        setting = {
            "schedule": schedule,
            "learning_rate": rate,
            "train_seconds": round(seconds, 1),
            **vars(options),
        }
        append_row(RESULT, {"setting": setting, "accuracy": accuracy, "provenance": provenance(seed=0)})
        shown = "  ".join(f"{keep}: {100 * value['value']:.1f}" for keep, value in accuracy.items())
        console.print(f"{schedule:9} rate {rate:g}  {seconds:4.0f} s  {shown}")


if __name__ == "__main__":
    main()
