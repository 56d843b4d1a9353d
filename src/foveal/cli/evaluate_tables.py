"""The tables of `foveal eval`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveal.budget import Budget
from foveal.cli.common import screen

if TYPE_CHECKING:
    from rich.text import Text

    from foveal.compressors import Compressor
    from foveal.evaluation import EvaluationResult

__all__ = ["Cell", "print_accuracies", "print_grid", "print_types", "refusals"]


@dataclass
class Cell:
    """A method at a budget, and what came of it.

    Attributes:
        method: its name, "none" for all tokens.
        keep: the budget, None for all tokens.
        compressor: what was made of them.
        result: None before it is measured, and where it cannot be.
        refusal: why it cannot be measured.
    """

    method: str
    keep: Budget | None
    compressor: Compressor | None = None
    result: EvaluationResult | None = None
    refusal: str = ""

    @property
    def title(self) -> str:
        """What tables call it."""
        return "all tokens" if self.keep is None else f"{self.method}, {_number(self.keep)}"


def _number(value: float | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def print_accuracies(cells: Sequence[Cell]) -> None:
    """A row a run."""
    from rich.table import Table

    results = {cell.title: cell.result for cell in cells if cell.result is not None}
    whole = results.get("all tokens")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for title in ("accuracy in % (95 %)", "against all tokens", "kept", "questions/s"):
        table.add_column(title, justify="right")
    for title, result in results.items():
        lost = "" if whole is None or whole is result else result.difference(whole).points()
        speed = f"{len(result.answered) / result.seconds:.0f}"
        table.add_row(title, str(result.accuracy), lost, _kept(result), speed)
    screen().print(table)


def _kept(result: EvaluationResult) -> str:
    """Visual tokens really left of each image, on average."""
    kept = result.kept_per_image
    return "" if kept is None else f"{kept:.0f}" if kept == round(kept) else f"{kept:.1f}"


def print_types(cells: Sequence[Cell], columns: int = 4) -> None:
    """The breakdown, a row a type and at most so many runs a table; nothing where there is one type only."""
    from rich.table import Table

    results = {cell.title: cell.result for cell in cells if cell.result is not None}
    types = next(iter(results.values())).by_type
    if len(types) < 2:
        return
    for start in range(0, len(results), columns):
        shown = dict(list(results.items())[start : start + columns])
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("in %", no_wrap=True)
        for title in (*shown, "questions"):
            table.add_column(title, justify="right", no_wrap=True)
        for name, first in types.items():
            values = (f"{100 * result.by_type[name].value:.0f}" for result in shown.values())
            table.add_row(name or "(none)", *values, str(first.count))
        screen().print()
        screen().print(table)


def print_grid(cells: Sequence[Cell], budgets: Sequence[Budget]) -> None:
    """A row a method and a column a budget, in as many tables as the screen needs; the best of a column is bold."""
    from rich.table import Table

    console = screen()
    whole = next(cell.result for cell in cells if cell.result is not None)
    console.print(
        f"Accuracy in % (95 %) on {whole.accuracy.count} questions, by visual tokens kept after the last stage\n"
    )
    compressed = [cell for cell in cells if cell.keep is not None]
    methods = list(dict.fromkeys(cell.method for cell in compressed))
    asked = {keep: _asked(keep, compressed) for keep in budgets}
    texts = {(cell.method, cell.keep): _text(cell, compressed, asked) for cell in compressed}
    name_width = max(map(len, ("all tokens", *methods))) + _GAP
    console.print(f"{'all tokens':{name_width}}{whole.accuracy}\n")
    width = max(len(text) for text in texts.values()) + _GAP
    seen_width = max(len(_seen(name, compressed, budgets)) for name in methods) + _GAP
    columns = max(1, (console.width - name_width - seen_width) // width)
    for start in range(0, len(budgets), columns):
        shown = budgets[start : start + columns]
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
        table.add_column("", no_wrap=True, min_width=name_width - _GAP)
        for keep in shown:
            table.add_column(
                _heading(keep, asked[keep]), justify="right", no_wrap=True, min_width=width - _GAP
            )
        table.add_column("a layer sees", justify="right", no_wrap=True)
        for name in methods:
            table.add_row(name, *(texts[name, keep] for keep in shown), _seen(name, compressed, shown))
        console.print(table)
        console.print()
    for line in (*_strays(compressed, asked), *(f"- {line}" for line in refusals(cells))):
        console.print(line, style="dim", markup=False, soft_wrap=True)


_GAP = 2


def _seen(name: str, cells: Sequence[Cell], budgets: Sequence[Budget]) -> str:
    """The tokens that a decoder layer sees on average, budget by budget."""
    results = {cell.keep: cell.result for cell in cells if cell.method == name}
    seen = [None if (result := results.get(keep)) is None else result.seen_per_layer for keep in budgets]
    return "/".join("-" if value is None else f"{value:.0f}" for value in seen)


def _asked(keep: Budget, cells: Sequence[Cell]) -> str:
    """How many tokens a budget means: of a fraction, what most methods keep; of "auto", nothing in particular."""
    if isinstance(keep, str):
        return ""
    if isinstance(keep, int):
        return str(keep)
    kept = Counter(_kept(cell.result) for cell in cells if cell.keep == keep and cell.result is not None)
    return kept.most_common(1)[0][0] if kept else ""


def _heading(keep: Budget, asked: str) -> str:
    return _number(keep) if asked in ("", str(keep)) else f"{_number(keep)} ({asked})"


def _text(cell: Cell, cells: Sequence[Cell], asked: dict[Budget, str]) -> Text:
    """A cell of the grid: a dash where there is nothing, a star where another number of tokens was kept."""
    from rich.text import Text

    if cell.result is None:
        return Text("- ")
    best = max(
        other.result.accuracy.value for other in cells if other.keep == cell.keep and other.result is not None
    )
    star = "*" if _strays([cell], asked) else " "
    style = "bold" if cell.result.accuracy.value == best else ""
    return Text.assemble((str(cell.result.accuracy), style), star)


def _strays(cells: Sequence[Cell], asked: dict[Budget, str]) -> list[str]:
    """A line on the methods that kept another number of tokens than they were asked for; none where there are none."""
    found = [
        f"{cell.method} {_kept(cell.result)} ({_number(cell.keep)})"
        for cell in cells
        if cell.result is not None and cell.keep is not None and _kept(cell.result) != asked[cell.keep]
    ]
    return [f"* kept another number of tokens than asked: {', '.join(found)}"] if found else []


def refusals(cells: Sequence[Cell]) -> list[str]:
    """A line for each reason that left cells empty, and which they are."""
    budgets: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        if cell.refusal and cell.keep is not None:
            budgets.setdefault((cell.refusal, cell.method), []).append(_number(cell.keep))
    methods: dict[tuple[str, str], list[str]] = {}
    for (reason, method), keeps in budgets.items():
        methods.setdefault((reason, " ".join(keeps)), []).append(method)
    return [f"{', '.join(names)} ({keeps}): {reason}" for (reason, keeps), names in methods.items()]
