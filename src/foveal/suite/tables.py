"""A suite's scores as the field prints them, with published rows: for the terminal, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console
from rich.table import Table

from foveal.suite.benchmarks import Benchmark
from foveal.suite.comparison import AVERAGE, Comparison, average_of, published_name
from foveal.suite.paired import Difference

__all__ = [
    "MINUS",
    "PUBLISHED",
    "RUN",
    "Row",
    "cells_of",
    "change",
    "columns_of",
    "csv_table",
    "format_change",
    "format_score",
    "latex_table",
    "markdown_table",
    "notes",
    "print_changes",
    "print_scores",
    "published_title",
    "rows",
]

RUN, PUBLISHED, MINUS = "run", "published", "difference"
_TOKENS = ("tokens", "per layer")


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        kind: "run", "published", or "difference" of a run from a published row.
        name: the line's heading.
        kept: visual tokens after the last stage.
        seen: visual tokens averaged over layers.
        scores: by column, in the published unit; Avg as "avg".
        source: of a published row.
    """

    kind: str
    name: str
    kept: float | None
    seen: float | None
    scores: Mapping[str, float]
    source: str = ""


def rows(comparison: Comparison) -> list[Row]:
    """The runs, the published rows, and if wanted how the runs differ from those at their budget."""
    own = [
        Row(RUN, name, *_counts(run.kept, run.seen, comparison.whole), _with_average(run.scores))
        for name, run in zip(comparison.names, comparison.runs, strict=True)
    ]
    published = [
        Row(
            PUBLISHED,
            published_name(row),
            row.visual_tokens,
            row.seen,
            {**row.scores, AVERAGE: row.average},
            row.source,
        )
        for row in comparison.published
    ]
    return [*own, *published, *(_minus(comparison, own) if comparison.subtract else ())]


def _counts(kept: float | None, seen: float | None, whole: float) -> tuple[float, float]:
    return (whole if kept is None else kept), (whole if seen is None else seen)


def _with_average(scores: Mapping[str, float]) -> dict[str, float]:
    average = average_of(scores)
    return dict(scores) if average is None else {**scores, AVERAGE: average}


def _minus(comparison: Comparison, own: Sequence[Row]) -> list[Row]:
    found = []
    for row, run in zip(own, comparison.runs, strict=True):
        for published in comparison.near(run.kept):
            theirs = {**published.scores, AVERAGE: published.average}
            scores = {
                column: value - theirs[column] for column, value in row.scores.items() if column in theirs
            }
            found.append(
                Row(MINUS, f"{row.name} - {published_name(published)}", None, None, scores, published.source)
            )
    return found


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know beside the numbers."""
    sources = "; ".join(dict.fromkeys(row.source for row in comparison.published))
    about = f"Published rows: LLaVA-1.5-7B and methods on it ({sources}), at the nearest share of tokens kept"
    if comparison.apart:
        about += f"; they are of {comparison.apart}, so they show the field, not this run's equals"
    lines = ["tokens: after the last stage; per layer: averaged over the decoder's layers"]
    if average_of(comparison.runs[0].scores) is not None:
        lines.append("Avg: EPIC's, the mean of the ten with MME/28 and OCRBench/10")
    return [*lines, *_extras(comparison), about]


def _extras(comparison: Comparison) -> list[str]:
    """Numbers beside the columns, such as MME's perception, in the order of the runs."""
    return [
        f"{_words(name)}: {', '.join(_number(run.extra.get(name)) for run in comparison.runs)}"
        for name in comparison.runs[0].extra
    ]


def _words(name: str) -> str:
    """Such as "MME perception" of "mme_perception"."""
    benchmark, *words = name.split("_")
    return " ".join([benchmark.upper(), *words]).replace(" f1", " F1")


def format_score(benchmark: Benchmark | None, value: float, *, signed: bool = False) -> str:
    """As the field prints it: MME and OCRBench in whole points, the others and Avg (None) with one decimal."""
    digits = 0 if benchmark is not None and benchmark.divisor != 1 else 1
    return f"{value:{'+' if signed else ''}.{digits}f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _columns(comparison: Comparison) -> list[tuple[str, str, Benchmark | None]]:
    """Key, heading and benchmark of each column of scores."""
    found: list[tuple[str, str, Benchmark | None]] = [(b.column, b.title, b) for b in comparison.benchmarks]
    if average_of(comparison.runs[0].scores) is not None:
        found.append((AVERAGE, "Avg", None))
    return found


def _cells(row: Row, columns: Sequence[tuple[str, str, Benchmark | None]]) -> list[str]:
    return [
        format_score(benchmark, row.scores[key], signed=row.kind == MINUS) if key in row.scores else ""
        for key, _, benchmark in columns
    ]


def columns_of(comparison: Comparison) -> list[str]:
    """The headings; that of the names is empty."""
    return ["", *_TOKENS, *(title for _, title, _ in _columns(comparison))]


def cells_of(row: Row, comparison: Comparison) -> list[str]:
    """A line's cells below `columns_of`."""
    return [row.name, _number(row.kept), _number(row.seen), *_cells(row, _columns(comparison))]


def published_title(comparison: Comparison) -> str:
    """What published rows are called, and what keeps them apart."""
    return f"published, {comparison.apart}" if comparison.apart else "published"


def _narrow(text: str) -> str:
    return text.replace(", ", ",\n").replace(" and ", "\nand ")


def markdown_table(comparison: Comparison) -> str:
    """The scores, and every later run's differences from the first."""
    header = columns_of(comparison)
    body = []
    for kind, group in _groups(comparison):
        if kind == PUBLISHED:
            body.append([f"*{published_title(comparison)}*", *[""] * (len(header) - 1)])
        body += [cells_of(row, comparison) for row in group]
    parts = [_markdown(header, body), "\n".join(f"- {line}" for line in notes(comparison))]
    if comparison.differences:
        parts.append(_markdown(*change(comparison)))
        parts.append(f"- {_CHANGE_NOTE}")
    return "\n\n".join(parts) + "\n"


def _groups(comparison: Comparison) -> list[tuple[str, list[Row]]]:
    """The rows by kind."""
    return [(kind, list(group)) for kind, group in groupby(rows(comparison), key=lambda row: row.kind)]


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def csv_table(comparison: Comparison) -> str:
    """A line a row, with unrounded numbers and the names of `published.csv`."""
    columns = [key for key, _, _ in _columns(comparison)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kind", "name", "visual_tokens", "visual_tokens_per_layer", *columns, "source"])
    for row in rows(comparison):
        values = [row.kept, row.seen, *(row.scores.get(key) for key in columns)]
        cells = ["" if value is None else f"{value:.6g}" for value in values]
        kind = published_title(comparison) if row.kind == PUBLISHED else row.kind
        writer.writerow([kind, row.name, *cells, row.source])
    return text.getvalue()


def latex_table(comparison: Comparison) -> str:
    """A `tabular` for the booktabs package."""
    heading = ["Method", "Tokens", "Per layer", *columns_of(comparison)[3:]]
    lines = ["% \\usepackage{booktabs}", f"\\begin{{tabular}}{{l{'r' * (len(heading) - 1)}}}", "\\toprule"]
    lines.append(_latex(heading))
    for kind, group in _groups(comparison):
        lines.append("\\midrule")
        if kind == PUBLISHED:
            title = _escape(published_title(comparison))
            lines.append(f"\\multicolumn{{{len(heading)}}}{{l}}{{\\emph{{{title}}}}} \\\\")
        lines += [_latex(cells_of(row, comparison)) for row in group]
    lines += ["\\bottomrule", "\\end{tabular}", *(f"% {line}" for line in notes(comparison))]
    return "\n".join(lines) + "\n"


def _latex(cells: Sequence[str]) -> str:
    return " & ".join([_escape(cells[0]), *(_minus_sign(_escape(cell)) for cell in cells[1:])]) + r" \\"


def _escape(text: str) -> str:
    text = text.replace("\\", r"\textbackslash ")
    for mark in "&%$#_{}":
        text = text.replace(mark, f"\\{mark}")
    return text.replace(" - ", " $-$ ").replace("~", r"\textasciitilde ")


def _minus_sign(cell: str) -> str:
    """In mathematics a minus is no hyphen."""
    return f"${cell}$" if cell[:1] in ("+", "-") else cell


_CHANGE_NOTE = (
    "95 % intervals over the same questions, none where a category of MME has a single picture; * p < 0.05 (McNemar, "
    "exact)"
)


def change(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the differences from the first run: a line a benchmark, a column a run."""
    header = [f"against {comparison.names[0]}", *comparison.names[1:], "questions"]
    lines = []
    for key, title, benchmark in _columns(comparison):
        found = [differences[key] for differences in comparison.differences]
        cells = (format_change(each, benchmark) for each in found)
        lines.append([title, *cells, str(found[0].questions)])
    return header, lines


def format_change(each: Difference, benchmark: Benchmark | None) -> str:
    """Such as "-3.1 (-5.0..-1.2)*"."""
    value, low, high = (
        None if end is None else format_score(benchmark, end, signed=True)
        for end in (each.value, each.low, each.high)
    )
    star = "*" if each.p is not None and each.p < 0.05 else ""
    return f"{value}{star}" if low is None else f"{value} ({low}..{high}){star}"


def print_scores(comparison: Comparison, console: Console) -> None:
    """Runs and published rows, then differences; each table cut into as many as the console is wide."""
    found = rows(comparison)
    scored = [row for row in found if row.kind != MINUS]
    fixed = [
        ["", "tokens", "per\nlayer"],
        *([row.name, _number(row.kept), _number(row.seen)] for row in scored),
    ]
    _print_rows(scored, fixed, comparison, console)
    if minus := [row for row in found if row.kind == MINUS]:
        _print_rows(minus, [["minus published"], *([row.name] for row in minus)], comparison, console)
    for line in notes(comparison):
        console.print(line, style="dim", markup=False, soft_wrap=True)


def _print_rows(
    found: Sequence[Row], fixed: Sequence[Sequence[str]], comparison: Comparison, console: Console
) -> None:
    """Tables of rows, each of which starts with `fixed` cells; the first of those are headings."""
    columns = _columns(comparison)
    values = [_cells(row, columns) for row in found]
    headings = [title for _, title, _ in columns]
    widths = [_width(cells) for cells in zip(headings, *values, strict=True)]
    taken = sum(map(_width, zip(*fixed, strict=True)))
    for start, end in _chunks(widths, console.width - taken):
        table = _table(*fixed[0], *headings[start:end])
        kind = found[0].kind
        for row, front, cells in zip(found, fixed[1:], values, strict=True):
            if row.kind != kind:
                kind = row.kind
                table.add_row(_narrow(published_title(comparison)), style="dim italic")
            table.add_row(*front, *cells[start:end], style="dim" if kind == PUBLISHED else "")
        console.print(table)
        console.print()


def print_changes(comparison: Comparison, console: Console) -> None:
    """Every later run's differences from the first, as many runs a table as the console is wide."""
    if not comparison.differences:
        return
    header, lines = change(comparison)
    widths = [_width(cells) for cells in zip(header, *lines, strict=True)]
    for start, end in _chunks(widths[1:-1], console.width - widths[0] - widths[-1]):
        table = _table(header[0], *header[1 + start : 1 + end], header[-1])
        for line in lines:
            table.add_row(line[0], *line[1 + start : 1 + end], line[-1])
        console.print()
        console.print(table)
    console.print(_CHANGE_NOTE, style="dim", markup=False, soft_wrap=True)


_GAP = 1


def _width(cells: Sequence[str]) -> int:
    return max(len(line) for cell in cells for line in (cell.splitlines() or [""])) + _GAP


def _chunks(widths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Places from which to which columns go into one table, at least one each."""
    found, start, used = [], 0, 0
    for place, width in enumerate(widths):
        if place > start and used + width > room:
            found.append((start, place))
            start, used = place, 0
        used += width
    return [*found, (start, len(widths))]


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", no_wrap=True)
    return table
