"""Tables of `foveal bench`: where time goes, what was gained of what could be, and why not more."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from rich.table import Table

from foveal.cli.common import screen
from foveal.efficiency.bench_report import Report, Row
from foveal.efficiency.gains import SURE_ROUNDS, Gain

__all__ = ["print_report"]

_MIB = 2**20
_TITLE, _TIME, _GAIN = 34, 14, 20  # columns of the terminal that a row's title, a time and a gain take
_GAINS = {
    "first_token": "first token",
    "prefill": "prefill",
    "next_token": "next token",
    "answer": "whole answer",
}
_NOISY = 0.1  # of a time: worth a word


def print_report(report: Report) -> None:
    """Print all that was measured: times beside bounds, gains beside bounds, throughput, and reasons."""
    _print_setting(report)
    for rows in _by_batch(report):
        for some in _portions(rows, _TIME):
            screen().print(_parts(some))
            screen().print()
    for rows in _by_batch(report):
        for some in _portions([row for row in rows if row.gains], _GAIN):
            screen().print(_gains(some))
            screen().print()
    if report.throughput:
        screen().print(_throughput(report))
        screen().print()
    for row in report.rows:
        _print_reasons(row)
    for note in _notes(report):
        screen().print(note, style="dim", markup=False)


def _print_setting(report: Report) -> None:
    setting, hardware = report.setting, report.hardware
    visual = setting["visual"]
    tokens = visual if isinstance(visual, int) else f"{visual[0]}x{visual[1]}"
    load = f"{setting['text']} text and {tokens} visual tokens, an answer of {setting['answer']}"
    lines = (
        f"{setting['model']}, {setting['dtype']}: {load}",
        f"{hardware.name}: {hardware.peak / 1e12:.3g} TFLOP/s, {hardware.bandwidth / 1e9:.3g} GB/s, measured",
    )
    for line in lines:
        screen().print(line, style="dim", markup=False, soft_wrap=True)
    screen().print()


def _parts(rows: Sequence[Row]) -> Table:
    """Milliseconds of each part, and in brackets what this machine needs at least."""
    table = _table(f"Milliseconds (at least), batch {rows[0].batch}", [row.name for row in rows])
    for part in rows[0].parts:
        if any(row.parts[part] for row in rows):
            table.add_row(part, *(_at_least(row.parts[part], row.least.get(part)) for row in rows))
    table.add_section()
    firsts = [(row.first_token.median, row.least["first_token"]) for row in rows]
    table.add_row("first token", *(_at_least(*each) for each in firsts))
    if rows[0].next_token is not None:
        steps = [(row.next_token, row.least["next_token"]) for row in rows]
        table.add_row(
            "next token", *("" if step is None else _at_least(step.median, least) for step, least in steps)
        )
    table.add_row("whole answer", *(_at_least(row.answer.median, row.least["answer"]) for row in rows))
    if any(row.memory is not None for row in rows):
        held = ("" if row.memory is None else f"{row.memory / _MIB:,.0f}" for row in rows)
        table.add_row("MiB beside the weights", *held)
    return table


def _gains(rows: Sequence[Row]) -> Table:
    """How many times faster, each above what bounds it."""
    table = _table(f"Times faster than plain, batch {rows[0].batch}", [row.name for row in rows])
    for kind, title in _GAINS.items():
        gains = [row.gains.get(kind) for row in rows]
        if any(gains):
            table.add_row(title, *(_measured(gain) for gain in gains), style="bold")
            for name, bounds in _bounds(gains):
                table.add_row(f"  {name}", *bounds)
    return table


def _bounds(gains: Sequence[Gain | None]) -> Iterator[tuple[str, list[str]]]:
    """What bounds a gain, and how much it allows each case."""
    if all(gain is None or gain.flops is None for gain in gains):
        yield "this machine allows", [_factor(gain, "roofline") for gain in gains]
        return
    yield "FLOPs allow", [_factor(gain, "flops") for gain in gains]
    if any(gain is not None and gain.own_layers is not None for gain in gains):
        yield "its own layers allow", [_factor(gain, "own_layers") for gain in gains]


def _measured(gain: Gain | None) -> str:
    if gain is None:
        return ""
    noise = f" ±{gain.measured.noise:.2f}" if gain.measured.noise else ""
    return f"{'noise: ' if noise and gain.in_noise else ''}{gain.measured.median:.2f}{noise}"


def _throughput(report: Report) -> Table:
    """Samples a second at each number of threads."""
    table = _table("Throughput", ["batch", "threads", "samples/s", "95 %"])
    for each in report.throughput:
        ends = f"{each.samples.low:.3g}..{each.samples.high:.3g}"
        table.add_row(each.name, str(each.batch), str(each.concurrency), f"{each.samples.median:.3g}", ends)
    return table


def _print_reasons(row: Row) -> None:
    if not row.explanation:
        return
    gain = row.gains["first_token"]
    title = (
        f"Why the first token of {row.name}, batch {row.batch}, comes {gain.measured.median:.2f}x and not "
        f"{gain.flops:.2f}x as fast:"
    )
    screen().print(title, markup=False, soft_wrap=True)
    for reason in row.explanation:
        screen().print(f"- {reason}", markup=False, soft_wrap=True)


def _notes(report: Report) -> Iterator[str]:
    """How to read it, and whether to believe it."""
    rounds = sorted({row.rounds for row in report.rows})
    ends = f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    if rounds[0] >= SURE_ROUNDS:
        yield f"medians of {ends} rounds; ±: where the true median lies (95 %)"
    else:
        many = "round" if rounds[-1] == 1 else "rounds"
        yield f"medians of {ends} {many}: too few to be sure; {SURE_ROUNDS} or more tell noise"
    if any(gain.in_noise for row in report.rows for gain in row.gains.values()) and rounds[-1] > 1:
        yield "noise: the clock cannot tell this from no difference"
    setting, cores = report.setting, os.cpu_count() or 1
    load = setting["load_average_before"]
    if setting["device"] == "cpu" and setting["clock"] == "wall" and load is not None and load > cores:
        yield (
            f"this machine was busy before (load {load:.1f} on {cores} cores), which blurs the clock: stop other "
            "programs, or count this one's time alone with --threads 1 --processor-time"
        )
    worst = max(row.answer.noise / row.answer.median for row in report.rows)
    if worst > _NOISY:
        yield (
            f"the clock was noisy: an answer's time is known to ±{100 * worst:.0f} %; stop other programs, pass more "
            "--rounds, or --threads 1 --processor-time"
        )


def _table(first: str, others: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _by_batch(report: Report) -> list[list[Row]]:
    batches = dict.fromkeys(row.batch for row in report.rows)
    return [[row for row in report.rows if row.batch == batch] for batch in batches]


def _portions(rows: Sequence[Row], width: int) -> Iterator[Sequence[Row]]:
    """As many rows at once as fit side by side."""
    wide = max(1, (screen().width - _TITLE) // max(width, *(1 + len(row.name) for row in rows), 1))
    for start in range(0, len(rows), wide):
        yield rows[start : start + wide]


def _at_least(seconds: float, least: float | None) -> str:
    bound = "" if not least else f" ({_milliseconds(least)})"
    return f"{_milliseconds(seconds)}{bound}" if seconds else ""


def _milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    if value < 0.01:
        return "<0.01"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _factor(gain: Gain | None, bound: str) -> str:
    value = None if gain is None else getattr(gain, bound)
    return "" if value is None else f"{value:.2f}"
