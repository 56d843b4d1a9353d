"""Tables of `foveal bench`: where time goes, what was gained of what could be, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from foveal.cli.common import screen
from foveal.efficiency.bench_report import Report, Row, verdict
from foveal.efficiency.gains import Gain

__all__ = ["print_gains", "print_parts", "print_throughput", "print_verdicts"]

_MIB = 2**20
_WIDE = 4  # cases side by side
_GAINS = ("first_token", "prefill", "next_token", "answer")


def print_parts(report: Report) -> None:
    """Milliseconds of each part, and in brackets what this machine needs at least."""
    setting, hardware = report.setting, report.hardware
    device = f"{hardware.name}: {hardware.peak / 1e12:.3g} TFLOP/s, {hardware.bandwidth / 1e9:.3g} GB/s"
    prompt = f"{setting['text']} text and {setting['visual']} visual tokens, {setting['dtype']}"
    screen().print(f"{setting['model']}, {prompt}; {device}", style="dim", markup=False, soft_wrap=True)
    for rows in _by_batch(report):
        for start in range(0, len(rows), _WIDE):
            screen().print(_parts(rows[start : start + _WIDE]))


def _parts(rows: Sequence[Row]) -> Table:
    table = _table(f"ms (at least), batch {rows[0].batch}", *(row.name for row in rows))
    for part in rows[0].parts:
        if any(row.parts[part] for row in rows):
            table.add_row(part, *(_at_least(row.parts[part], row.least.get(part)) for row in rows))
    table.add_section()
    table.add_row(
        "first token", *(_at_least(row.first_token.median, row.least["first_token"]) for row in rows)
    )
    if rows[0].next_token is not None:
        steps = [(row.next_token, row.least["next_token"]) for row in rows]
        table.add_row(
            "next token", *("" if step is None else _at_least(step.median, least) for step, least in steps)
        )
    return table


def print_gains(report: Report) -> None:
    """How many times faster, of what FLOPs allow; next tokens, of what the memory's bandwidth allows.

    Beside it what this run's own layers allow of the prefill.
    """
    for rows in _by_batch(report):
        shown = [name for name in _GAINS if any(name in row.gains for row in rows)]
        table = _table("", *(name.replace("_", " ") for name in shown), "layers", "MiB")
        table.title = f"x faster (bound), batch {rows[0].batch}"
        for row in rows:
            gains = [_of(row.gains[name]) if name in row.gains else "" for name in shown]
            own = row.gains["prefill"].own_layers if row.gains else None
            memory = "" if row.memory is None else f"{row.memory / _MIB:.0f}"
            table.add_row(row.name, *gains, "" if own is None else f"{own:.2f}", memory)
        screen().print(table)


def print_throughput(report: Report) -> None:
    """Samples a second at each number of threads."""
    table = _table("samples/s", "batch", "threads", "median", "quartiles")
    for each in report.throughput:
        ends = f"{each.samples.low:.3g}..{each.samples.high:.3g}"
        table.add_row(each.name, str(each.batch), str(each.concurrency), f"{each.samples.median:.3g}", ends)
    screen().print(table)


def print_verdicts(report: Report) -> None:
    """In words, a line a row."""
    for row in report.rows:
        if row.explanation:
            screen().print(verdict(row), markup=False, soft_wrap=True)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), title_justify="left", title_style="bold")
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right" if name else "left")
    return table


def _by_batch(report: Report) -> list[list[Row]]:
    batches = dict.fromkeys(row.batch for row in report.rows)
    return [[row for row in report.rows if row.batch == batch] for batch in batches]


def _at_least(seconds: float, least: float | None) -> str:
    bound = "" if not least else f" ({_milliseconds(least)})"
    return f"{_milliseconds(seconds)}{bound}" if seconds else ""


def _milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _of(gain: Gain) -> str:
    bound = gain.roofline if gain.flops is None else gain.flops
    return f"{gain.measured.median:.2f} ({bound:.2f})"
