"""The tables of `foveal estimate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from foveal.cli.common import screen

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from foveal.efficiency.hardware import Hardware
    from foveal.efficiency.reasons import Setting
    from foveal.efficiency.returns import Area, Point

__all__ = ["print_estimate", "title_of"]

_NOTHING_GAINED = 1.1  # times faster: less than this is nothing
_BAR, _NARROW = 12, 72  # columns of a bar; a narrower terminal has no room for them


def print_estimate(setting: Setting, *, name: str, dtype: str, notes: Sequence[str]) -> None:
    """Print what a method gains, why it is not more, and what other budgets return.

    Args:
        setting: the method beside the plain model.
        name: of the model.
        dtype: of its weights.
        notes: what was taken for granted.
    """
    console = screen()
    console.print(
        f"{name} on {_device(setting.case.hardware)}, {dtype}", style="bold", markup=False, soft_wrap=True
    )
    console.print(_load(setting), markup=False, soft_wrap=True)
    console.print(_seen(setting), markup=False, soft_wrap=True)
    console.print()
    console.print(_gains(setting))
    console.print()
    _print_reasons(console, setting)
    console.print()
    console.print(_returns(setting))
    _print_areas(console, setting)
    for note in (
        *notes,
        "times are lower bounds: FLOPs at the peak, or bytes at the bandwidth",
        *_unknown(setting),
    ):
        console.print(note, style="dim", markup=False, soft_wrap=True)


def title_of(setting: Setting) -> str:
    """The method and its budget in a few words."""
    method = setting.method
    name = method.card.name if method.card else type(method).__name__
    return f"{name}, {setting.compressed.visual} of {setting.case.visual}"


def _device(hardware: Hardware) -> str:
    peak, bandwidth = _scaled(hardware.peak, "FLOP/s"), _scaled(hardware.bandwidth, "B/s")
    return f"{hardware.name} ({peak}, {bandwidth}, {hardware.memory:.0f} GiB)"


def _load(setting: Setting) -> str:
    load, visual = setting.case.load, setting.case.visual
    many = "1 image" if load.images == 1 else f"{load.images} images"
    return f"batch {load.batch}; {many} of {visual} visual tokens, {load.text} text tokens, an answer of {load.answer}"


def _seen(setting: Setting) -> str:
    """Both accountings: tokens behind the last stage, and averaged over the layers."""
    seen, runs, first = setting.compressed.cost.visual, [], 0
    for count, layers in groupby(seen):
        last = first + len(list(layers)) - 1
        runs.append(f"{count} in {f'layer {first}' if first == last else f'layers {first} to {last}'}")
        first = last + 1
    average = setting.compressed.cost.average_visual
    return f"{title_of(setting)} visual tokens: {', '.join(runs)}; {average:.4g} averaged over layers"


def _table(title: str | None, *columns: str) -> Table:
    from rich.table import Table

    table = Table(
        title=title, box=None, pad_edge=False, title_justify="left", title_style="bold", header_style="dim"
    )
    table.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _gains(setting: Setting) -> Table:
    table = _table(None, "", "plain", title_of(setting).split(",", maxsplit=1)[0], "gain")
    for group in (_flops, _memory, _times, _serving, _papers):
        for name, values, write in group(setting):
            if any(values):
                cells = (name, *(write(value) for value in values), _gain(*values, name))
                table.add_row(*cells, style="dim" if group is _papers else None)
    return table


Row = tuple[str, tuple[float, float], Callable[[float], str]]


def _flops(setting: Setting) -> Iterator[Row]:
    both = setting.plain.cost, setting.compressed.cost
    decode = sum(both[0].steps), sum(both[1].steps)
    rows: dict[str, tuple[float, float]] = {
        "vision tower": (both[0].tower, both[1].tower),
        "text tower": (both[0].text_tower, both[1].text_tower),
        "projector": (both[0].projector, both[1].projector),
        "selection": (both[0].selection or 0, both[1].selection or 0),
        "prefill": (both[0].prefill, both[1].prefill),
        f"{len(both[0].steps)} decode steps": decode,
        "all": (both[0].total, both[1].total),
    }
    for name, values in rows.items():
        yield f"FLOPs, {name}", values, _flop


def _memory(setting: Setting) -> Iterator[Row]:
    both = setting.plain.cost, setting.compressed.cost
    yield "KV cache behind the prompt", (sum(both[0].cache), sum(both[1].cache)), _byte
    yield "memory in all", (both[0].memory, both[1].memory), _gib


def _times(setting: Setting) -> Iterator[Row]:
    both, batch = (setting.plain.times, setting.compressed.times), setting.case.load.batch
    for name, attribute in (
        ("prefill", "prefill"),
        ("first token", "first_token"),
        ("next token", "next_token"),
        ("answer", "answer"),
    ):
        yield f"time, {name}", (getattr(both[0], attribute), getattr(both[1], attribute)), _second
    yield "answers/s", (batch / both[0].answer, batch / both[1].answer), _rate


def _serving(setting: Setting) -> Iterator[Row]:
    from foveal.efficiency.returns import serving

    full = [serving(setting.case, method) for method in (None, setting.method)]
    yield "largest batch in memory", (full[0].batch, full[1].batch), _whole
    yield "answers/s with it", (full[0].rate, full[1].rate), _rate


def _papers(setting: Setting) -> Iterator[Row]:
    from foveal.cli.estimate_papers import as_papers_count

    units = {"FLOPs": _flop, "KV cache": _byte, "time": _second}
    for name, values in as_papers_count(setting).items():
        unit = next(write for start, write in units.items() if name.startswith(start))
        yield name, values, unit


def _gain(plain: float, compressed: float, name: str) -> str:
    """How many times better; nothing where there is nothing to compare."""
    if not plain or not compressed:
        return ""
    more_is_better = name.startswith(("answers", "largest"))
    return f"{compressed / plain if more_is_better else plain / compressed:.2f}x"


def _print_reasons(console: Console, setting: Setting) -> None:
    from foveal.efficiency.reasons import reasons
    from foveal.efficiency.returns import paying_batch

    pays = paying_batch(setting.case, setting.method)
    when = f"from batch {pays} on" if pays else "at no batch"
    console.print(
        f"It pays {when}: there the prefill gains 90 % or more of what its FLOPs allow.", soft_wrap=True
    )
    before, after = setting.plain.times, setting.compressed.times
    gained = max(before.first_token / after.first_token, before.answer / after.answer)
    found = reasons(setting)
    if not found:
        return
    console.print("You will not gain here, because" if gained < _NOTHING_GAINED else "What limits the gain:")
    for reason in found:
        console.print(f"- {reason.sentence}", markup=False, soft_wrap=True)


def _returns(setting: Setting) -> Table:
    """The curve in figures and bars."""
    from foveal.efficiency.returns import QUANTITIES, area, curve, ladder

    case, method = setting.case, setting.method
    budgets = sorted({*ladder(case.visual), setting.compressed.visual}, reverse=True)
    areas = {name: area(case, method, QUANTITIES[name]) for name in ("flops", "time")}
    columns = ("keep", "average", "FLOPs", "", "return", "time", "", "return")
    table = _table("What each budget returns until the first token", *columns)
    for column in (3, 4, 6, 7):
        table.columns[column].justify = "left"
    for budget, point in zip(budgets, curve(case, method, budgets), strict=True):
        table.add_row(
            str(budget),
            f"{point.cost.average_visual:.0f}",
            *_share(setting, point, "flops", _flop, areas["flops"]),
            *_share(setting, point, "time", _second, areas["time"]),
            style="bold" if budget == setting.compressed.visual else None,
        )
    return table


def _share(
    setting: Setting, point: Point, name: str, write: Callable[[float], str], found: Area | None
) -> tuple[str, str, str]:
    """A quantity, a bar for its share of the plain model's, and the area it lies in."""
    from foveal.efficiency.returns import QUANTITIES

    value, whole = QUANTITIES[name](point), QUANTITIES[name](setting.plain)
    word = "" if found is None else found.of(point.visual)
    length = _BAR if screen().width >= _NARROW else 0
    return write(value), "█" * round(length * min(value / whole, 1)), word


def _print_areas(console: Console, setting: Setting) -> None:
    from foveal.efficiency.returns import QUANTITIES, area

    for name, title in (("flops", "FLOPs"), ("time", "time"), ("cache", "KV cache")):
        found = area(setting.case, setting.method, QUANTITIES[name])
        where = (
            "nothing to gain" if found is None else f"high from {found.high} to {found.low} tokens, low below"
        )
        console.print(f"return in {title}: {where}", style="dim")


def _unknown(setting: Setting) -> Iterator[str]:
    if setting.compressed.cost.selection is None:
        yield "what choosing tokens costs is not known of this method, and left out"
    room = setting.case.hardware.memory * 2**30
    if setting.compressed.cost.memory > room:
        yield f"this does not fit into the memory of {setting.case.hardware.name}, compressed or not"
    elif setting.plain.cost.memory > room:
        yield f"the plain model does not fit into the memory of {setting.case.hardware.name}"


# ---------------------------------------------------------------------------------------------------------- units


def _scaled(value: float, unit: str) -> str:
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def _flop(value: float) -> str:
    return _scaled(value, "").strip() if value else "-"


def _byte(value: float) -> str:
    return _scaled(value, "B")


def _gib(value: float) -> str:
    return f"{value / 2**30:.3g} GiB" if value >= 2**30 else f"{value / 2**20:.3g} MiB"


def _second(value: float) -> str:
    return (
        f"{value:.3g} s"
        if value >= 1
        else f"{1e3 * value:.3g} ms"
        if value >= 1e-3
        else f"{1e6 * value:.3g} µs"
    )


def _rate(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"
