"""Pictures of a measurement: where time goes, what was realised of each bound, and throughput."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from foveal.efficiency.bench_report import Report, Row
from foveal.efficiency.gains import PREFILL, PREPROCESSING, SURE_ROUNDS, Spread
from foveal.efficiency.timeline import PROJECTOR, REST, SELECTION, TEXT_TOWER, TOWER

__all__ = ["plot"]

# Okabe and Ito (2008): told apart with any colour vision.
_COLOURS = {
    PREPROCESSING: "#999999",
    TOWER: "#56B4E9",
    TEXT_TOWER: "#CC79A7",
    PROJECTOR: "#009E73",
    SELECTION: "#D55E00",
    PREFILL: "#0072B2",
    REST: "#F0E442",
    "next tokens": "#E69F00",
}
_BOUNDS = {"FLOPs": "#C8C8C8", "this machine's roofline": "#999999", "its own layers": "#56B4E9"}
_MEASURED = "#0072B2"
_CASES = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "os^Dv*P"  # where there are more cases than colours, markers tell them apart
_FEW = 3
_GAINS = {"prefill": "prefill", "first_token": "first token", "next_token": "next token", "answer": "answer"}


def plot(report: Report, folder: Path) -> list[Path]:
    """Draw `time.png`, `gains.png` and `throughput.png` into a folder.

    Returns:
        the files.
    """
    drawn = [_save(_time(report), folder / "time.png")]
    if any(row.gains for row in report.rows):
        drawn.append(_save(_gains(report), folder / "gains.png"))
    if len({(row.batch, 1) for row in report.rows} | _loads(report)) > 1:
        drawn.append(_save(_throughput(report), folder / "throughput.png"))
    return drawn


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure).print_figure(path)
    return path


def _title(report: Report) -> str:
    setting = report.setting
    device = report.hardware.name
    compiled = ", compiled decode" if setting["compiled"] else ""
    return f"{setting['model']}, {setting['dtype']}, {device}{compiled}"


def _name(row: Row, report: Report) -> str:
    several = len({other.batch for other in report.rows}) > 1
    return f"{row.name}, batch {row.batch}" if several else row.name


def _time(report: Report) -> Figure:
    """Stacked bars: the parts of a request."""
    figure = Figure(figsize=(9, 1.6 + 0.42 * len(report.rows)), dpi=150, layout="constrained")
    axes: Any = figure.subplots()
    names = [_name(row, report) for row in report.rows]
    left = [0.0] * len(names)
    for part, colour in _COLOURS.items():
        widths = [1e3 * _seconds(row, part) for row in report.rows]
        if any(widths):
            axes.barh(names, widths, left=left, color=colour, label=part)
            left = [start + width for start, width in zip(left, widths, strict=True)]
    answer = report.setting["answer"]
    axes.set_xlabel(f"ms of a request with an answer of {answer} token{'s' if answer > 1 else ''}")
    axes.invert_yaxis()
    figure.suptitle(_title(report), fontsize=10)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _seconds(row: Row, part: str) -> float:
    if part == "next tokens":
        return max(row.answer.median - row.first_token.median, 0.0)
    return row.parts[part]


def _gains(report: Report) -> Figure:
    """Bars: bounds and what was measured."""
    rows = [row for row in report.rows if row.gains]
    kinds = [kind for kind in _GAINS if any(kind in row.gains for row in rows)]
    width = max(7, 1.3 * len(rows))
    figure = Figure(figsize=(width, 1.2 + 2.1 * len(kinds)), dpi=150, layout="constrained")
    all_axes: Any = figure.subplots(len(kinds), 1, squeeze=False)[:, 0]
    for axes, kind in zip(all_axes, kinds, strict=True):
        _draw_gain(axes, rows, kind)
        axes.set_ylabel(f"{_GAINS[kind]}, x faster", fontsize=8)
        axes.set_xticks(range(len(rows)), [_name(row, report) for row in rows], fontsize=7)
    fewest = min(row.rounds for row in rows)
    lines = "where the true ones lie (95 %)" if fewest >= SURE_ROUNDS else f"the range of {fewest} rounds"
    figure.suptitle(f"{_title(report)}\nmedians; lines: {lines}", fontsize=10)
    handles: dict[str, Any] = {}
    for axes in all_axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw_gain(axes: Any, rows: Sequence[Row], kind: str) -> None:
    width = 0.2
    values = {bound: [_bound(row, kind, bound) for row in rows] for bound in _BOUNDS}
    shown = [bound for bound in _BOUNDS if any(values[bound])]
    middle = len(shown) / 2
    for place, bound in enumerate(shown):
        starts = [index + width * (place - middle) for index in range(len(rows))]
        axes.bar(starts, values[bound], width, color=_BOUNDS[bound], label=bound)
    spreads = [row.gains[kind].measured for row in rows]
    medians = [each.median for each in spreads]
    errors = [
        [each.median - each.low for each in spreads],
        [each.high - each.median for each in spreads],
    ]
    starts = [index + width * middle for index in range(len(rows))]
    bars = axes.bar(starts, medians, width, yerr=errors, capsize=2, color=_MEASURED, label="measured")
    axes.bar_label(bars, [f"{value:.2f}" for value in medians], fontsize=7, padding=2)
    axes.axhline(1, color="black", linewidth=0.6)
    axes.margins(y=0.15)
    spare = max(0, _FEW - len(rows)) / 2  # a lone bar would fill the picture
    axes.set_xlim(-0.6 - spare, len(rows) - 0.4 + spare)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)


def _bound(row: Row, kind: str, bound: str) -> float:
    gain = row.gains[kind]
    return {"FLOPs": gain.flops, "its own layers": gain.own_layers}.get(bound, gain.roofline) or 0.0


def _loads(report: Report) -> set[tuple[int, int]]:
    return {(each.batch, each.concurrency) for each in report.throughput}


def _throughput(report: Report) -> Figure:
    """Lines: samples a second over the batch, and over the threads that ask."""
    names = list(dict.fromkeys(row.name for row in report.rows))
    threads = bool(report.throughput)
    figure = Figure(figsize=(9 if threads else 6, 3.8), dpi=150, layout="constrained")
    panels: Any = figure.subplots(1, 2 if threads else 1, squeeze=False)[0]
    for index, name in enumerate(names):
        style: Any = {
            "color": _CASES[index % len(_CASES)],
            "marker": _MARKERS[index // len(_CASES) % len(_MARKERS)],
            "capsize": 3,
        }
        own = [row for row in report.rows if row.name == name]
        rates = [_rate(row) for row in own]
        _draw_rates(panels[0], [row.batch for row in own], rates, label=name, **style)
        if threads:
            batch = min(each.batch for each in report.throughput)
            asked = [each for each in report.throughput if (each.name, each.batch) == (name, batch)]
            _draw_rates(
                panels[1], [each.concurrency for each in asked], [each.samples for each in asked], **style
            )
            panels[1].set_xlabel(f"threads that ask, batch {batch}")
    panels[0].set(xlabel="batch", ylabel="samples a second")
    for axes in panels:
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
    figure.suptitle(_title(report), fontsize=10)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _rate(row: Row) -> Spread:
    """Samples a second of requests one after the other."""
    answer = row.answer
    return Spread(row.batch / answer.median, row.batch / answer.high, row.batch / answer.low)


def _draw_rates(axes: Any, places: Sequence[int], rates: Sequence[Spread], **style: Any) -> None:
    medians = [rate.median for rate in rates]
    errors = [
        [rate.median - rate.low for rate in rates],
        [rate.high - rate.median for rate in rates],
    ]
    axes.errorbar(places, medians, yerr=errors, **style)
