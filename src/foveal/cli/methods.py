"""`foveal list`: the methods, and what each needs."""

from __future__ import annotations

from dataclasses import MISSING, Field, asdict, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli.common import print_json, screen

if TYPE_CHECKING:
    from foveal.compressors import Compressor

__all__ = ["methods"]


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, in full; all of them if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the compression methods: their stage, their paper and what each needs.

    Examples:
    - `foveal list`
    - `foveal list dart`
    - `foveal list --json`
    """
    from foveal.compressors import available, method_class

    cards = {key: method_class(key) for key in ([name] if name else available())}
    if as_json:
        print_json([_describe(method) for method in cards.values()])
    elif name:
        _print_one(cards[name])
    else:
        _print_all(list(cards.values()))


def _describe(method: type[Compressor]) -> dict[str, Any]:
    card = asdict(method.card) if method.card else {}
    return card | {"options": {item.name: _default(item) for item in fields(method)}}


def _default(item: Field[Any]) -> Any:
    return None if item.default is MISSING else item.default


def _print_all(found: list[type[Compressor]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("method", "stage", "keeps the tokens that are", "needs", "paper"):
        table.add_column(title)
    for method in found:
        if method.card:
            card = method.card
            table.add_row(card.name, card.stage, card.rule, card.needs, card.paper)
    screen().print(table)
    screen().print("\nMore about one: foveal list NAME", style="dim")


def _print_one(method: type[Compressor]) -> None:
    from rich.table import Table

    described = _describe(method)
    options = described.pop("options")
    table = Table(box=None, pad_edge=False, show_header=False)
    for key, value in described.items():
        table.add_row(key, value, style="bold" if key == "title" else "")
    table.add_row("options", ", ".join(k if v is None else f"{k}={v!r}" for k, v in options.items()))
    table.add_row("in Python", f"foveal.compress(model, foveal.{method.__name__}(keep=64))")
    screen().print(table)
