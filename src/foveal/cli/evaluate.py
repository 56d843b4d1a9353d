"""`foveal eval`: accuracy of a model under several methods and budgets, on own questions or the field's benchmarks."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.budget import Budget, parse_keep
from foveal.cli.common import (
    LayerOption,
    ModelOption,
    load_model,
    make_method,
    print_json,
    screen,
    split_values,
)
from foveal.cli.evaluate_tables import Cell, print_accuracies, print_grid, print_types, refusals
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.cli.progress import EvaluationBar
    from foveal.evaluation import EvaluationResult

__all__ = ["evaluate"]


def evaluate(
    questions: Annotated[
        Path | None, typer.Option(help="A JSONL file of your own questions.", show_default=False)
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="The field's benchmarks, asked and scored by lmms-eval: `epic10` or `trim`.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="With --suite: some of its benchmarks, such as `pope mme`.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Built-in questions: `scenes` (default) or `easy-vqa`. With --suite: the folder of its data sets; "
            "scenes in their formats if left out.",
            show_default=False,
        ),
    ] = None,
    online: Annotated[
        bool, typer.Option("--online", help="With --suite: load missing data sets from the hub.")
    ] = False,
    model: ModelOption = None,
    method: Annotated[
        str | None, typer.Option(help="Methods; `none` keeps all tokens. Default: none dart.")
    ] = None,
    all_methods: Annotated[
        bool, typer.Option("--all-methods", help="`none` and every method; those that cannot work say why.")
    ] = False,
    keep: Annotated[str, typer.Option(help="Tokens kept: numbers, fractions, or `auto`.")] = "1/9",
    layer: LayerOption = None,
    positions: Annotated[
        str | None,
        typer.Option(
            help="`original` or `packed` position ids for kept tokens; each method's own if left out."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many questions (of each benchmark).")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions per forward.")] = 32,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Longest answer. Default: 16; with --suite the benchmark's own.", show_default=False
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=1023, help="Draws other scenes.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Append a row a run to this .jsonl, or write a .json. With --suite: a folder for the report, the "
            "tables and all answers; a run that was stopped goes on there."
        ),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Append every prediction to this JSONL file.")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="With --suite: table, markdown, csv, latex or json.", show_default=False
        ),
    ] = None,
    differences: Annotated[
        bool,
        typer.Option(
            "--differences", help="With --suite: subtract published rows even if they are of another model."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure accuracy under several methods and budgets on the same questions.

    Several values of `--method`, `--keep` and `--tasks` are separated by spaces or commas.

    A line of a JSONL file: `{"image": "cat.png", "question": "Is there a cat?", "answer": "yes"}`

    Examples:
    - `foveal eval --all-methods --keep 48 32 16 9 --limit 200`
    - `foveal eval --method none dart fastv --keep 48 32 16 9 --limit 500 --out results.jsonl`
    - `foveal eval --questions questions.jsonl --model ./llava-1.5-7b-hf --keep 128 64`
    - `foveal eval --suite epic10 --method none dart --keep 64 --model ./llava-1.5-7b-hf --data data --out results`
    - `foveal eval --suite epic10 --tasks pope,mme --limit 20 --format latex`
    """
    budgets = _budgets(keep)
    cells = _plan(_names(method, all_methods), budgets, layer, positions, forgiving=all_methods)
    if suite is not None:
        from foveal.cli.evaluate_suite import SuiteOptions, evaluate_suite

        _refuse(
            {"--questions": questions, "--predictions": predictions}, "does not go with --suite: leave it out"
        )
        if as_json and form not in (None, "json"):
            raise FovealError(f"--json and --format {form}: pass one of them")
        evaluate_suite(
            [cell.compressor for cell in cells if not cell.refusal],
            SuiteOptions(
                suite=_suite(suite, tasks),
                model=model,
                data=None if data is None else Path(data),
                limit=limit,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                seed=seed,
                online=online,
                out=out,
                form="json" if as_json else form or "table",
                differences=differences,
                forgiving=all_methods,
            ),
        )
        _tell_refusals(cells)
        return
    _refuse(
        {"--tasks": tasks, "--online": online, "--format": form, "--differences": differences},
        "belongs to --suite: pass --suite epic10 beside it, or leave it out",
    )
    source = _source(questions, data)
    asked = _questions(source, limit, seed)
    loaded, processor = load_model(model)
    options: dict[str, Any] = {"batch_size": batch_size, "max_new_tokens": max_new_tokens or 16, "seed": seed}
    rows: list[dict[str, Any]] = []
    runs = [cell for cell in cells if not cell.refusal]
    if len(runs) > 1:
        asked = list(asked)  # pictures are drawn once
    with _bar(runs, asked, shown=not as_json) as bar:
        for cell in runs:
            _measure(cell, loaded, processor, asked, bar, forgiving=all_methods, **options)
            if cell.result is not None:
                rows.append({"data": Path(source).name, **cell.result.row()})
                _save(rows, cell.result, out, predictions)
    if as_json:
        print_json(rows)
        _tell_refusals(cells)
    elif all_methods:
        print_grid(cells, budgets)
    else:
        print_accuracies(cells)
        print_types(cells)
    if not as_json:
        _print_unreadable(cells)


def _refuse(options: Mapping[str, object], why: str) -> None:
    """Options that nothing would read."""
    for name, value in options.items():
        if value:
            raise FovealError(f"{name} {why}")


def _suite(suite: str, tasks: str | None) -> str:
    """The benchmarks asked for, all of which are in the suite."""
    if tasks is None:
        return suite
    from foveal.suite.benchmarks import benchmarks

    known = [benchmark.column for benchmark in benchmarks(suite)]
    for name in split_values(tasks):
        if name not in known:
            raise FovealError(f"--tasks {name}: {suite} has {', '.join(known)}")
    return tasks


def _source(questions: Path | None, data: str | None) -> str:
    """Where questions come from: a file, or built-in ones by name."""
    if questions is not None and data is not None:
        raise FovealError("--questions and --data: pass one of them")
    return str(questions) if questions is not None else data or "scenes"


def _names(method: str | None, all_methods: bool) -> list[str]:
    from foveal.compressors import available

    if all_methods and method is not None:
        raise FovealError("--all-methods runs every method there is: leave --method out")
    names = ["none", *available()] if all_methods else split_values(method or "none,dart")
    if not names:
        raise FovealError("--method: name at least one, see foveal list")
    return names


def _budgets(text: str) -> list[Budget]:
    budgets = [parse_keep(value) for value in split_values(text)]
    if not budgets:
        raise FovealError("--keep: pass at least one number of tokens, such as 16")
    return list(dict.fromkeys(budgets))


def _plan(
    names: Sequence[str],
    budgets: Sequence[Budget],
    layer: int | None,
    positions: str | None,
    *,
    forgiving: bool,
) -> list[Cell]:
    """A cell a run. Where `forgiving`, refusals are noted in the cells, but for a budget that is wrong in itself."""
    cells = []
    for name in names:
        for keep in [None] if name == "none" else budgets:
            try:
                compressor = None if keep is None else make_method(name, keep, layer, positions)
                cells.append(Cell(name, keep, compressor))
            except FovealError as error:
                if not forgiving:
                    raise
                cells.append(Cell(name, keep, refusal=str(error)))
    for keep in budgets:
        reasons = {cell.refusal for cell in cells if cell.keep == keep}
        if len(reasons) == 1 and "" not in reasons:
            raise FovealError(reasons.pop())
    return cells


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


def _bar(runs: Sequence[Cell], questions: Sized, *, shown: bool) -> EvaluationBar:
    from foveal.cli.progress import EvaluationBar

    return EvaluationBar(len(runs), len(questions), shown=shown)


def _measure(
    cell: Cell,
    model: Any,
    processor: Any,
    questions: Any,
    bar: EvaluationBar,
    *,
    forgiving: bool,
    **options: Any,
) -> None:
    """Fill in the cell's result; where `forgiving`, why there is none."""
    from foveal.evaluation import evaluate as run_evaluation

    bar.begin(cell.title)
    try:
        cell.result = run_evaluation(
            model, processor, questions, cell.compressor, progress=bar.advance, **options
        )
    except FovealError as error:
        if not forgiving or cell.compressor is None:
            raise
        cell.refusal = str(error)
        bar.give_up()


def _save(
    rows: Sequence[dict[str, Any]], result: EvaluationResult, out: Path | None, predictions: Path | None
) -> None:
    """What is known so far: the newest row is that of `result`."""
    from foveal.evaluation import append_row, write_json

    if out is not None and out.suffix == ".jsonl":
        append_row(out, rows[-1])
    elif out is not None:
        write_json(out, rows)
    if predictions is not None:
        for record in result.records:
            append_row(predictions, {"settings": result.settings, **asdict(record)})


def _tell_refusals(cells: Sequence[Cell]) -> None:
    for line in refusals(cells):
        print(f"foveal: {line}", file=sys.stderr)  # noqa: T201


def _print_unreadable(cells: Sequence[Cell]) -> None:
    result = next(cell.result for cell in cells if cell.result is not None)
    for record in result.unreadable:
        screen().print(
            f"not scored: question {record.id}: {record.error}", style="yellow", markup=False, soft_wrap=True
        )
