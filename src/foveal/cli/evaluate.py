"""`foveal eval`: accuracy of a model under several methods and budgets, with intervals."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli.common import (
    Budget,
    LayerOption,
    ModelOption,
    load_model,
    make_method,
    parse_keep,
    print_json,
    screen,
    split_values,
)
from foveal.cli.evaluate_tables import Cell, print_accuracies, print_grid, print_types, refusals
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
        str | None, typer.Option(help="Methods; `none` keeps all tokens. Default: none dart.")
    ] = None,
    all_methods: Annotated[
        bool, typer.Option("--all-methods", help="`none` and every method; those that cannot work say why.")
    ] = False,
    keep: Annotated[str, typer.Option(help="Tokens kept: numbers, fractions, or `auto`.")] = "1/9",
    layer: LayerOption = None,
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

    Several values of `--method` and `--keep` are separated by spaces or commas.

    A line of a JSONL file: `{"image": "cat.png", "question": "Is there a cat?", "answer": "yes"}`

    Examples:
    - `foveal eval --all-methods --keep 48 32 16 9 --limit 200`
    - `foveal eval --method none dart fastv --keep 48 32 16 9 --limit 500 --out results.jsonl`
    - `foveal eval --data questions.jsonl --model ./llava-1.5-7b-hf --keep 128 64`
    """
    names = _names(method, all_methods)
    budgets = _budgets(keep)
    runs = [(name, budget) for name in names for budget in (budgets if name != "none" else [None])]
    made = _made(runs, layer, forgiving=all_methods)
    questions = _questions(data, limit, seed)
    loaded, processor = load_model(model)
    options: dict[str, Any] = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "seed": seed}
    save = _Saved(Path(data).name, out, predictions)
    cells = list(
        _measured(
            made, loaded, processor, questions, save, shown=not as_json, forgiving=all_methods, **options
        )
    )
    results = [cell.result for cell in cells if cell.result is not None]
    if as_json:
        print_json(save.rows)
        for line in refusals(cells):
            print(f"foveal: {line}", file=sys.stderr)  # noqa: T201
        return
    if all_methods:
        print_grid(cells, budgets)
    else:
        print_accuracies(cells)
        print_types(cells)
    _print_unreadable(results[0])


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


def _made(
    runs: Sequence[tuple[str, Budget | None]], layer: int | None, *, forgiving: bool
) -> list[tuple[Cell, Compressor | None]]:
    """Each run's method; where `forgiving`, a budget that some methods refuse is noted in their cells."""
    made: list[tuple[Cell, Compressor | None]] = []
    for name, keep in runs:
        try:
            made.append((Cell(name, keep), None if keep is None else make_method(name, keep, layer)))
        except FovealError as error:
            if not forgiving:
                raise
            made.append((Cell(name, keep, refusal=str(error)), None))
    for budget in {keep for _, keep in runs if keep is not None}:
        reasons = [cell.refusal for cell, _ in made if cell.keep == budget]
        if all(reasons):
            raise FovealError(reasons[0])
    return made
