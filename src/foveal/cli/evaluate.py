"""`foveal eval`: accuracy of a model under several methods and budgets, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli.common import (
    LayerOption,
    ModelOption,
    load_model,
    make_method,
    parse_keep,
    print_json,
    screen,
)
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.compressors import Compressor
    from foveal.evaluation import EvaluationResult

__all__ = ["evaluate"]


def evaluate(
    data: Annotated[
        str, typer.Option(help="`scenes`, `easy-vqa`, or a JSONL file of your own questions.")
    ] = "scenes",
    model: ModelOption = None,
    method: Annotated[
        str, typer.Option(help="Methods, separated by commas; `none` keeps all.")
    ] = "none,dart",
    keep: Annotated[
        str, typer.Option(help="Tokens kept, separated by commas: numbers or fractions.")
    ] = "1/9",
    layer: LayerOption = 2,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many questions.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions per forward.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 16,
    seed: Annotated[int, typer.Option(min=0, max=1023, help="Draws other scenes.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Append a row a run to this .jsonl, or write a .json.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Append every prediction to this JSONL file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure accuracy under several methods and budgets on the same questions.

    A line of a JSONL file: `{"image": "cat.png", "question": "Is there a cat?", "answer": "yes"}`

    Examples:
    - `foveal eval --method none,dart,fastv --keep 48,32,16,9 --limit 500 --out results.jsonl`
    - `foveal eval --data questions.jsonl --model ./llava-1.5-7b-hf --keep 128,64`
    """
    from foveal.evaluation import evaluate as run_evaluation

    compressors = list(_compressors(method, keep, layer))
    questions = _questions(data, limit, seed)
    loaded, processor = load_model(model)
    options: dict[str, Any] = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "seed": seed}
    results = [
        run_evaluation(
            loaded, processor, questions, item, progress=not as_json, label=_label(item), **options
        )
        for item in compressors
    ]
    rows = [{"data": Path(data).name, **result.row()} for result in results]
    _save(rows, results, out, predictions)
    if as_json:
        print_json(rows)
    else:
        _print_accuracies(results)
        _print_types(results)
        for record in results[0].unreadable:
            screen().print(
                f"not scored: question {record.id}: {record.error}",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )


def _compressors(methods: str, keeps: str, layer: int) -> Iterator[Compressor | None]:
    for name in dict.fromkeys(part.strip() for part in methods.split(",")):
        if name == "none":
            yield None
        else:
            yield from (make_method(name, parse_keep(keep.strip()), layer) for keep in keeps.split(","))


def _questions(data: str, limit: int | None, seed: int) -> Any:
    from foveal.evaluation import load_questions
    from foveal.mini import EasyQuestions, SceneQuestions

    if data == "scenes":
        return SceneQuestions("test", limit or 1000, seed=seed)
    if data == "easy-vqa":
        try:
            return EasyQuestions("test", limit, seed=seed)
        except ModuleNotFoundError as error:
            raise FovealError(str(error)) from error
    return load_questions(data)[:limit]


def _save(
    rows: Sequence[dict[str, Any]],
    results: Sequence[EvaluationResult],
    out: Path | None,
    predictions: Path | None,
) -> None:
    from foveal.evaluation import append_row, write_json

    if out is not None and out.suffix == ".jsonl":
        for row in rows:
            append_row(out, row)
    elif out is not None:
        write_json(out, rows)
    if predictions is not None:
        for result in results:
            for record in result.records:
                append_row(predictions, {"settings": result.settings, **asdict(record)})


def _label(method: Compressor | None) -> str:
    if method is None:
        return "all tokens"
    return f"{method.card.name if method.card else type(method).__name__}, {_keep(method.keep)}"


def _keep(keep: int | float | str) -> str:
    return f"{keep:.3g}" if isinstance(keep, float) else str(keep)


def _name(result: EvaluationResult) -> str:
    settings = result.settings
    return (
        "all tokens" if settings["method"] == "none" else f"{settings['method']}, {_keep(settings['keep'])}"
    )


def _print_accuracies(results: Sequence[EvaluationResult]) -> None:
    from rich.table import Table

    whole = next((result for result in results if result.settings["method"] == "none"), None)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for title in ("accuracy in % (95 %)", "against all tokens", "questions/s"):
        table.add_column(title, justify="right")
    for result in results:
        lost = "" if whole is None or whole is result else result.difference(whole).points()
        speed = f"{len(result.answered) / result.seconds:.0f}"
        table.add_row(_name(result), str(result.accuracy), lost, speed)
    screen().print(table)


def _print_types(results: Sequence[EvaluationResult], runs: int = 4) -> None:
    """The breakdown, a row a type and at most `runs` columns a table; nothing where there is one type only."""
    from rich.table import Table

    if len(results[0].by_type) < 2:
        return
    for start in range(0, len(results), runs):
        shown = results[start : start + runs]
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("in %", no_wrap=True)
        for result in shown:
            table.add_column(_name(result), justify="right", no_wrap=True)
        table.add_column("questions", justify="right", no_wrap=True)
        for name, first in shown[0].by_type.items():
            values = (f"{100 * result.by_type[name].value:.0f}" for result in shown)
            table.add_row(name or "(none)", *values, str(first.count))
        screen().print()
        screen().print(table)
