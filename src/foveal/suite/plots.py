"""Pictures of a suite's runs: what each benchmark loses, Avg beside published curves, and scores by category."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from foveal.suite.comparison import AVERAGE, Comparison, average_of
from foveal.suite.harness import SuiteRun
from foveal.suite.published import WHOLE, published_rows

__all__ = ["average_curves", "category_bars", "change_bars"]

# Okabe and Ito (2008): told apart with any colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = "osD^vPX*"


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def change_bars(comparison: Comparison) -> Figure:
    """What each benchmark loses or wins against the first run, with intervals; MME and OCRBench as in EPIC's Avg."""
    shown = [(each.column, each.title, each.divisor) for each in comparison.benchmarks]
    if average_of(comparison.runs[0].scores) is not None:
        shown.append((AVERAGE, "Avg", 1.0))
    figure = _figure(9.6, 3.8)
    axes: Any = figure.subplots()
    width = 0.8 / len(comparison.differences)
    for place, (name, differences) in enumerate(
        zip(comparison.names[1:], comparison.differences, strict=True)
    ):
        starts = [index - 0.4 + width * (place + 0.5) for index in range(len(shown))]
        found = [(differences[column], divisor) for column, _, divisor in shown]
        values = [each.value / divisor for each, divisor in found]
        axes.bar(starts, values, 0.92 * width, color=_colour(place + 1), label=name)
        for start, (each, divisor) in zip(starts, found, strict=True):
            if each.low is not None and each.high is not None:
                axes.plot(
                    [start] * 2, [each.low / divisor, each.high / divisor], color="#333333", linewidth=1
                )
    axes.axhline(0, color="black", linewidth=0.8)
    titles = [title if divisor == 1 else f"{title}\n/ {divisor:.0f}" for _, title, divisor in shown]
    axes.set_xticks(range(len(shown)), titles)
    axes.set_ylabel(f"points against {comparison.names[0]}", fontsize=9)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    _plain(axes)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def average_curves(comparison: Comparison) -> Figure:
    """Avg against visual tokens, the runs and the published methods: in one panel only if nothing keeps them apart."""
    figure = _figure(9.6, 4)
    if not comparison.apart:
        panels: list[Any] = [figure.subplots()]
        panels[0].set_title("this model, and published", fontsize=10)
    else:
        panels = list(figure.subplots(1, 2))
        panels[0].set_title("this model", fontsize=10)
        panels[1].set_title(f"published: {comparison.apart}", fontsize=10)
    least = min(_kept(run, comparison) for run in comparison.runs) * WHOLE / comparison.whole
    _draw_published(panels[-1], min(least, 36))
    _draw_runs(panels[0], comparison)
    for axes, whole in zip(panels, (comparison.whole, WHOLE), strict=False):
        _draw_scale(axes, whole)
        axes.legend(frameon=False, fontsize=7, ncols=2)
    panels[0].set_ylabel("Avg of the ten, MME/28 and OCRBench/10", fontsize=9)
    return figure


def _kept(run: SuiteRun, comparison: Comparison) -> float:
    return comparison.whole if run.kept is None else run.kept


def _draw_scale(axes: Any, whole: float) -> None:
    """Powers of two of all tokens, and what they are in tokens."""
    axes.set_xscale("log", base=2)
    least = min(min(line.get_xdata()) for line in axes.get_lines())
    ticks = [whole / 2**power for power in range(math.ceil(math.log2(whole / least)) + 1)]
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(f"visual tokens kept after the last stage, of {whole:.0f}", fontsize=9)
    axes.grid(alpha=0.25)
    _plain(axes)


def _draw_runs(axes: Any, comparison: Comparison) -> None:
    """A line a method, to the point of all tokens where that was run."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for run in comparison.runs:
        average = average_of(run.scores)
        assert average is not None
        lines.setdefault(run.settings["method"], []).append((_kept(run, comparison), average))
    whole = lines.pop("none", [])
    for place, (method, points) in enumerate(lines.items(), start=1):
        style = f"{_MARKERS[place % len(_MARKERS)]}-"
        _line(axes, [*points, *whole], style, color=_colour(place), label=method)
    if whole:
        _line(axes, whole, "o", color=_colour(0), label="all tokens", zorder=3)


def _draw_published(axes: Any, least: float) -> None:
    """A grey line a method, told apart by its marks; budgets far below those of the runs are left out."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in published_rows():
        if row.visual_tokens >= least / 2:
            lines.setdefault(row.method, []).append((row.visual_tokens, row.average))
    greys = ("#444444", "#999999")
    for place, (method, points) in enumerate(lines.items()):
        style = f"{_MARKERS[place % len(_MARKERS)]}--"
        _line(axes, points, style, color=greys[place % 2], markersize=5, linewidth=1, label=method)


def _line(axes: Any, points: Sequence[tuple[float, float]], style: str, **options: Any) -> None:
    axes.plot(*zip(*sorted(points), strict=True), style, **options)


def category_bars(comparison: Comparison, column: str) -> Figure | None:
    """The share of right answers by category, a bar a run, with intervals; None where there is but one category."""
    categories = comparison.categories(column)
    if not categories:
        return None
    names = list(categories)
    runs = len(comparison.runs)
    height = 0.8 / runs
    figure = _figure(8, 0.9 + len(names) * max(0.3, 0.15 * runs))
    axes: Any = figure.subplots()
    for place, name in enumerate(comparison.names):
        starts = [index - 0.4 + height * (place + 0.5) for index in range(len(names))]
        found = [categories[category][place] for category in names]
        ends = _ends([(100 * each.value, 100 * each.low, 100 * each.high) for each in found])
        axes.barh(
            starts,
            [100 * each.value for each in found],
            0.92 * height,
            xerr=ends,
            color=_colour(place),
            error_kw={"linewidth": 0.8, "ecolor": "#333333"},
            label=name,
        )
    labels = [f"{name or '(none)'} ({categories[name][0].count})" for name in names]
    axes.set_yticks(range(len(names)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("questions answered rightly, % (number of questions in brackets)", fontsize=8)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    _plain(axes)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _ends(found: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    """Lengths of error bars, below and above."""
    return [
        [max(0.0, value - low) for value, low, _ in found],
        [max(0.0, high - value) for value, _, high in found],
    ]
