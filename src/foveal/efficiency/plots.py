"""A picture of what a budget returns: FLOPs and time against visual tokens kept, with the areas marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from foveal.compressors import DART, Compressor, FastV, Random
from foveal.efficiency.cost import Load
from foveal.efficiency.returns import QUANTITIES, Area, Case, Point, area, curve, ladder
from foveal.errors import FovealError

__all__ = ["PUBLISHED", "has_published", "plot_returns"]

# Of Okabe and Ito (2008): told apart with any colour vision, and by brightness.
_LINE, _CHOSEN, _PAPER, _HIGH, _LOW = "#0072B2", "#D55E00", "#000000", "#009E73", "#999999"
_TITLES = {"flops": "FLOPs until the first token", "time": "time to first token, at best"}

# EPIC's figure (arXiv 2510.00515): LLaVA-1.5-7B at K = 2; TFLOPs, and seconds for POPE's 8,910 questions on an A100.
_TOKENS = (576, 256, 128, 64, 36, 18, 9, 2)
PUBLISHED: dict[str, tuple[str, dict[int, float]]] = {
    "flops": ("EPIC's figure", dict(zip(_TOKENS, (9.3, 4.4, 2.5, 1.5, 1.1, 0.8, 0.7, 0.6), strict=True))),
    "time": (
        "EPIC's figure: POPE in all, A100",
        dict(zip(_TOKENS, (1145, 787, 738, 700, 710, 700, 675, 667), strict=True)),
    ),
}


def has_published(model: str, method: Compressor, load: Load) -> bool:
    """Whether `PUBLISHED` is about this: EPIC's methods at their layer in its model."""
    kinds = isinstance(method, DART | FastV | Random)
    return kinds and method.layer == 2 and Path(model).name == "llava-1.5-7b-hf" and load.images == 1


def plot_returns(
    case: Case, method: Compressor, path: str | Path, *, title: str, published: bool = False
) -> None:
    """Draw the curves.

    Args:
        case: where.
        method: whose budget varies; its own is marked.
        path: a PNG, PDF or SVG file.
        title: of the picture.
        published: draw `PUBLISHED` beside, too.

    Raises:
        FovealError: matplotlib cannot write such a file.
    """
    figure = Figure(figsize=(10, 4.8), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    budgets = ladder(case.visual)
    points, plain, chosen = curve(case, method, budgets), case.at(None), case.at(method)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, name in zip(panels, _TITLES, strict=True):
        quantity = QUANTITIES[name]
        whole = quantity(plain)
        axes.set_title(f"{_TITLES[name]}: {_plain(name, whole)} with all", fontsize=10)
        _draw_area(axes, area(case, method, quantity), case.visual)
        axes.plot(
            budgets,
            _shares(points, quantity, whole),
            "-",
            color=_LINE,
            linewidth=2,
            label="Foveal, estimated",
        )
        _draw_chosen(axes, chosen.visual, quantity(chosen) / whole)
        if published:
            _draw_published(axes, *PUBLISHED[name])
        _draw_scale(axes, case.visual)
    panels[0].set_ylabel("share of the plain model's")
    figure.supxlabel("visual tokens kept", fontsize=10)
    try:
        canvas.print_figure(path)
    except ValueError as error:
        raise FovealError(f"{path}: {error}; end the name in .png, .pdf or .svg") from error


def _plain(name: str, value: float) -> str:
    if name == "flops":
        return f"{value / 1e12:.3g} T" if value >= 1e11 else f"{value / 1e9:.3g} G"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _shares(points: Sequence[Point], quantity: Callable[[Point], float], whole: float) -> list[float]:
    return [quantity(point) / whole for point in points]


def _draw_area(axes: Any, found: Area | None, visual: int) -> None:
    if found is None:
        return
    for left, right, color, name in (
        (found.low, found.high, _HIGH, "high return"),
        (0.8, found.low, _LOW, "low return"),
    ):
        axes.axvspan(
            left, right, color=color, alpha=0.18, linewidth=0, label=f"{name}: {_range(left, right)}"
        )


def _range(left: float, right: int) -> str:
    return f"{left:g} to {right}" if left >= 1 else f"below {right}"


def _draw_chosen(axes: Any, visual: int, share: float) -> None:
    axes.plot(
        [visual], [share], "o", color=_CHOSEN, markersize=8, label=f"{visual} tokens: {1 / share:.1f}x less"
    )
    axes.vlines(visual, 0, share, color=_CHOSEN, linewidth=1.2, linestyle=":")


def _draw_published(axes: Any, label: str, values: dict[int, float]) -> None:
    whole = values[max(values)]
    axes.plot(values.keys(), [value / whole for value in values.values()], "^--", color=_PAPER, linewidth=0.8,
              markersize=5, label=label)  # fmt: skip


def _draw_scale(axes: Any, visual: int) -> None:
    axes.set_xscale("log")
    axes.set(xlim=(0.8, 1.15 * visual), ylim=(0, 1.05))
    marks = [visual // 2**step for step in range(visual.bit_length())]
    axes.xaxis.set_major_locator(FixedLocator(marks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.grid(alpha=0.25)
    axes.legend(loc="best", fontsize=9, framealpha=0.9)
