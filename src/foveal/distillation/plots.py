"""A picture of a schedule: how many visual tokens student and teacher keep, and from which layer on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from foveal.distillation.config import EpicConfig
from foveal.distillation.trace import layer_of, plans, trace
from foveal.errors import FovealError

__all__ = ["plot_schedule"]

# Blue and orange of Okabe and Ito (2008): told apart with any colour vision, and by brightness.
_STUDENT, _TEACHER = "#0072B2", "#E69F00"
_STEPS = 160


def plot_schedule(config: EpicConfig, depth: int, path: str | Path) -> None:
    """Draw the schedule that `config` describes: bands are what may be drawn, dots the draws of a run of 160 steps.

    Args:
        config: names the schedule and its numbers.
        depth: number of decoder layers.
        path: a PNG, PDF or SVG file.

    Raises:
        FovealError: matplotlib cannot write such a file.
    """
    figure = Figure(figsize=(8, 5.6), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    tokens, layers = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    tokens.set_title(_title(config, depth), loc="left")
    _draw_tokens(tokens, config, depth)
    _draw_layers(layers, config, depth)
    layers.set_xlabel("training progress t")
    try:
        canvas.print_figure(path)
    except ValueError as error:
        raise FovealError(f"{path}: {error}; end the name in .png, .pdf or .svg") from error


def _title(config: EpicConfig, depth: int) -> str:
    start, end = config.weight(0), config.weight(1)
    weight = f"lambda {start:g}" if start == end else f"lambda {start:g} to {end:g}"
    taught = any(moment.teacher for moment in trace(config, depth))
    return f"Schedule {config.schedule}: {depth} layers, {weight if taught else 'no teacher'}"


def _draw_tokens(axes: Any, config: EpicConfig, depth: int) -> None:
    course = trace(config, depth, 401)
    dots = plans(config, depth, _STEPS)
    taught = [(t, plan.teacher) for t, plan in dots if plan.teacher is not None]
    if taught:
        bands = [moment.teacher or (float("nan"), float("nan")) for moment in course]
        _band(axes, [moment.t for moment in course], bands, _TEACHER)
        axes.plot(*zip(*taught, strict=True), "^", color=_TEACHER, markersize=4, label="teacher")
    _band(axes, [moment.t for moment in course], [moment.student for moment in course], _STUDENT)
    axes.plot(
        [t for t, _ in dots],
        [plan.student for _, plan in dots],
        "o",
        color=_STUDENT,
        markersize=4,
        label="student",
    )
    axes.set(ylabel="visual tokens kept", ylim=(0, 1.05), xlim=(-0.01, 1.01))
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)


def _band(axes: Any, times: list[float], bands: list[tuple[float, float]], color: str) -> None:
    low, high = zip(*bands, strict=True)
    axes.fill_between(times, low, high, color=color, alpha=0.2, linewidth=1.5)


def _draw_layers(axes: Any, config: EpicConfig, depth: int) -> None:
    dots = plans(config, depth, _STEPS)
    layers = [layer_of(config, plan, depth) for _, plan in dots]
    axes.step(
        [t for t, _ in dots], [depth if layer is None else layer for layer in layers], "k-", where="post"
    )
    axes.set(ylabel="dropped at layer", ylim=(-0.08 * depth, 1.08 * depth))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(alpha=0.25)
    if None in layers:
        axes.text(0.99, depth, f"{depth}: none dropped", ha="right", va="top", fontsize=9)
