"""`foveal demo`: what compression costs a small model, and what EPIC wins back beside plain fine-tuning."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli.common import load_model, print_json, screen

if TYPE_CHECKING:
    from rich.console import Console

    from foveal.evaluation import Estimate, EvaluationResult

__all__ = ["KEEP", "Outcome", "Plan", "Study", "demo"]

KEEP = 16
TOKENS = 144
LAYER = 2


@dataclass(frozen=True)
class Plan:
    """How much the demo does.

    Attributes:
        questions: held-out test questions per measurement, one an image.
        budgets: tokens kept in the curve, beside all and 16.
        steps: optimizer steps of each fine-tuning.
        batch_size: conversations per step.
        learning_rate: at its peak.
    """

    questions: int = 400
    budgets: tuple[int, ...] = (48, 32, 9)
    steps: int = 60
    batch_size: int = 32
    learning_rate: float = 5e-4


QUICK = Plan(questions=40, budgets=(), steps=3, batch_size=8)


@dataclass(frozen=True)
class Outcome:
    """One model's results, by method and tokens kept: `results["dart", 16]`; `("none", 144)` is uncompressed."""

    results: dict[tuple[str, int], EvaluationResult]
    train_seconds: float = 0.0

    def accuracy(self, method: str, tokens: int = KEEP) -> Estimate:
        """The accuracy of one measurement."""
        return self.results[method, tokens].accuracy

    def curve(self) -> dict[int, Estimate]:
        """Accuracy with DART by tokens kept, the uncompressed model at the end."""
        return {
            tokens: found.accuracy
            for (name, tokens), found in self.results.items()
            if name in ("dart", "none")
        }


@dataclass(frozen=True)
class Study:
    """All that the demo measured: the model as bundled, after plain fine-tuning and after EPIC."""

    plan: Plan
    before: Outcome
    plain: Outcome
    epic: Outcome

    @property
    def models(self) -> dict[str, Outcome]:
        """The three models by the name they have in tables."""
        return {"before": self.before, "plain": self.plain, "EPIC": self.epic}

    def change(self, late: Outcome, early: Outcome) -> Estimate:
        """Paired difference in accuracy with DART at 16 tokens."""
        return late.results["dart", KEEP].difference(early.results["dart", KEEP])

    def verdict(self) -> str:
        """One honest sentence on what is EPIC's own part of the gain."""
        total, more, own = (
            self.change(self.epic, self.before),
            self.change(self.plain, self.before),
            self.change(self.epic, self.plain),
        )
        sure = "" if own.low > 0 or own.high < 0 else ", which this many questions cannot tell from none"
        return (
            f"With {KEEP} of {TOKENS} tokens EPIC changed accuracy by {total.points()} points, plain fine-tuning of "
            f"equally many steps by {more.points()}. So {own.points()} points are EPIC's own{sure}."
        )


def demo(
    quick: Annotated[
        bool, typer.Option("--quick", help="A token effort, to see that everything runs.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("foveal-demo"),
    seed: Annotated[int, typer.Option(min=0, max=1023, help="Draws other questions and batches.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Watch a small model lose accuracy with 16 of 144 visual tokens, and see what EPIC wins back.

    Examples: `foveal demo`, `foveal demo --quick --out /tmp/report`
    """
    from rich.console import Console

    from foveal.cli.demo_report import write_report
    from foveal.evaluation import write_json

    console = Console(stderr=True, highlight=False) if as_json else screen()
    plan = QUICK if quick else Plan()
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    model, processor = load_model(None)
    study = _run(model, processor, plan, seed, console)
    report = write_report(study, model, processor, _questions(plan, seed), out)
    rows = [
        {"model": name} | result.row()
        for name, part in study.models.items()
        for result in part.results.values()
    ]
    write_json(out / "results.json", rows)
    if as_json:
        print_json({"verdict": study.verdict(), "report": str(report), "results": rows})
    console.print(f"\n{study.verdict()}")
    console.print(f"Report: {report}   ({time.perf_counter() - started:.0f} s in all)")


def _run(model: Any, processor: Any, plan: Plan, seed: int, console: Console) -> Study:
    """Measure, fine-tune a copy both ways, measure again."""
    from copy import deepcopy

    questions = _questions(plan, seed)
    console.print(f"[bold]1.[/] The bundled model on {plan.questions} held-out questions, one an image")
    before = Outcome(_measure(model, processor, questions, plan, seed))
    _print_before(before, console)

    console.print(
        f"\n[bold]2.[/] Fine-tuning: {plan.steps} steps of {plan.batch_size}, the same batches for both"
    )
    trained = {}
    for name, schedule in (("plain", "none"), ("EPIC", "tcd")):
        pupil = deepcopy(model)
        label = f"   fine-tuning, {name}"
        seconds = _fine_tune(pupil, processor, plan, schedule=schedule, seed=seed, label=label)
        console.print(f"   {name}: {seconds:.0f} s, {plan.steps * plan.batch_size / seconds:.0f} samples/s")
        trained[name] = Outcome(_measure(pupil, processor, questions, plan, seed), seconds)

    study = Study(plan, before, trained["plain"], trained["EPIC"])
    console.print("\n[bold]3.[/] Before and after: accuracy in % with 95 % intervals")
    _print_study(study, console)
    return study


def _questions(plan: Plan, seed: int) -> Any:
    from foveal.mini import SceneQuestions

    return SceneQuestions("test", plan.questions, seed=seed)


def _measure(
    model: Any, processor: Any, questions: Any, plan: Plan, seed: int
) -> dict[tuple[str, int], EvaluationResult]:
    """Every measurement of one model."""
    from foveal.compressors import get
    from foveal.evaluation import evaluate

    wanted = [("none", TOKENS), ("dart", KEEP), ("fastv", KEEP), ("random", KEEP)]
    wanted += [("dart", tokens) for tokens in plan.budgets]
    return {
        (name, tokens): evaluate(
            model,
            processor,
            questions,
            None if name == "none" else get(name, keep=tokens, layer=LAYER),
            batch_size=40,
            max_new_tokens=8,
            seed=seed,
            label=f"   measuring {name} with {tokens} tokens",
        )
        for name, tokens in wanted
    }


def _fine_tune(pupil: Any, processor: Any, plan: Plan, *, schedule: str, seed: int, label: str) -> float:
    """Train `pupil` in place; returns the seconds it took."""
    from tempfile import TemporaryDirectory

    from foveal.cli.train import fine_tune
    from foveal.mini import SceneConversations

    with TemporaryDirectory() as folder:
        return fine_tune(
            pupil,
            processor,
            SceneConversations("train", plan.steps * plan.batch_size, seed=1023 - seed),
            label=label,
            folder=folder,
            method="dart",
            layer=LAYER,
            schedule=schedule,
            max_steps=plan.steps,
            per_device_train_batch_size=plan.batch_size,
            learning_rate=plan.learning_rate,
            seed=seed,
        )


TITLES = {
    ("none", TOKENS): f"all {TOKENS} tokens",
    ("dart", KEEP): f"DART, {KEEP}",
    ("fastv", KEEP): f"FastV, {KEEP}",
    ("random", KEEP): f"Random, {KEEP}",
}


def _print_before(before: Outcome, console: Console) -> None:
    whole = before.results["none", TOKENS]
    for key, title in TITLES.items():
        lost = "" if key[0] == "none" else f"   {before.results[key].difference(whole).points()}"
        console.print(f"   {title:16} {before.results[key].accuracy}{lost}")


def _print_study(study: Study, console: Console) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", *study.models):
        table.add_column(title, justify="right" if title else "left")
    for key, title in TITLES.items():
        style = "bold" if key[0] == "dart" else ""
        table.add_row(
            f"   {title}", *(str(part.results[key].accuracy) for part in study.models.values()), style=style
        )
    console.print(table)
