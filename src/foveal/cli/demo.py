"""`foveal demo`: what compression costs a small model, and what EPIC wins back beside plain fine-tuning."""

from __future__ import annotations

import time
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli.common import load_model, print_json, screen

if TYPE_CHECKING:
    from rich.console import Console

    from foveal.cli.demo_study import Outcome, Plan, Study

__all__ = ["demo"]


def demo(
    quick: Annotated[
        bool, typer.Option("--quick", help="A token effort, to see that everything runs.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("foveal-demo"),
    seed: Annotated[int, typer.Option(min=0, max=1023, help="Draws other questions and batches.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Watch a small model lose accuracy with 16 of 144 visual tokens, and see what EPIC wins back.

    Examples:
    - `foveal demo`
    - `foveal demo --quick --out /tmp/report`
    """
    from rich.console import Console

    from foveal.cli.demo_report import write_report
    from foveal.cli.demo_study import QUICK, Plan, questions_of
    from foveal.evaluation import write_json

    console = Console(stderr=True, highlight=False) if as_json else screen()
    plan = QUICK if quick else Plan()
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    model, processor = load_model(None)
    study = _run(model, processor, plan, seed, console)
    report = write_report(study, model, processor, questions_of(plan, seed), out)
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
    """The experiment, told on the console as it goes."""
    from foveal.cli.demo_study import RECIPES, Outcome, Study, fine_tune_by, measure, questions_of

    questions = questions_of(plan, seed)
    console.print(f"[bold]1.[/] The bundled model on {plan.questions} held-out questions, one an image")
    before = Outcome(measure(model, processor, questions, plan, seed))
    _print_before(before, console)

    batches = f"{plan.steps} steps of {plan.batch_size} conversations"
    console.print(f"\n[bold]2.[/] Fine-tuning two copies, {batches}, the same ones for both")
    trained = {}
    for name in RECIPES:
        pupil = deepcopy(model)
        label = f"   fine-tuning, {name}"
        seconds = fine_tune_by(pupil, processor, plan, recipe=name, seed=seed, label=label)
        console.print(
            f"   {name}: {seconds:.0f} s, {plan.steps * plan.batch_size / seconds:.0f} conversations/s"
        )
        trained[name] = Outcome(measure(pupil, processor, questions, plan, seed), seconds)

    study = Study(plan, before, trained["plain"], trained["EPIC"])
    console.print("\n[bold]3.[/] Before and after: accuracy in % with 95 % intervals")
    _print_study(study, console)
    return study


def _print_before(before: Outcome, console: Console) -> None:
    from foveal.cli.demo_study import TITLES, TOKENS

    whole = before.results["none", TOKENS]
    for key, title in TITLES.items():
        lost = "" if key[0] == "none" else f"   {before.results[key].difference(whole).points()}"
        console.print(f"   {title:16} {before.results[key].accuracy}{lost}")


def _print_study(study: Study, console: Console) -> None:
    from rich.table import Table

    from foveal.cli.demo_study import TITLES

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", *study.models):
        table.add_column(title, justify="right" if title else "left")
    for key, title in TITLES.items():
        style = "bold" if key[0] == "dart" else ""
        table.add_row(
            f"   {title}", *(str(part.results[key].accuracy) for part in study.models.values()), style=style
        )
    console.print(table)
