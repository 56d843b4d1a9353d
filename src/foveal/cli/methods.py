"""`foveal list`: the methods, and what each needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli.cards import by_stage, describe
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
    from foveal.compressors import method_class

    found = [method_class(name)] if name else by_stage()
    if as_json:
        print_json([describe(method) for method in found])
    elif name:
        _print_one(describe(found[0]))
    else:
        _print_all(found)


def _print_all(found: list[type[Compressor]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("method", "stage"):
        table.add_column(title, no_wrap=True)
    for title in ("keeps", "needs"):
        table.add_column(title, ratio=1)
    table.add_column("arXiv", no_wrap=True)
    stage = ""
    for card in (method.card for method in found if method.card):
        if stage not in ("", card.stage):
            table.add_row()
        stage, paper = card.stage, card.paper.removeprefix("arXiv ")
        table.add_row(*map(escape, (card.name, card.stage, card.summary, card.needs, paper)))
    screen().print(table)
    screen().print("\nMore about one: foveal list NAME", style="dim")


_TITLES = {
    "stage": "stage",
    "summary": "keeps",
    "needs": "needs",
    "tokens": "tokens",
    "positions": "positions",
    "weak": "weak spots",
    "servable": "servable",
}


def _print_one(described: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column()
    table.add_row("method", Text(f"{described['title']} ({described['name']})", style="bold"))
    table.add_row("paper", described["paper"])
    for number, line in enumerate(described["rule"].split("\n"), start=1):
        table.add_row("rule" if number == 1 else "", Text(f"{number}. {line}"))
    for key, title in _TITLES.items():
        table.add_row(title, Text(described[key]))
    for place, (option, default) in enumerate(described["options"].items()):
        value = option if option == "keep" else f"{option}={default!r}"
        text = Text.assemble((value, "bold"), f": {described['option_help'].get(option, '')}")
        table.add_row("" if place else "options", text)
    table.add_row("in Python", Text(described["python"]))
    screen().print(table)
