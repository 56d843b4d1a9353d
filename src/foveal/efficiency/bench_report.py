"""The result of a measurement: a row a case and batch, throughput, and all of it as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from foveal.compressors import Compressor
from foveal.efficiency.cost import Cost
from foveal.efficiency.gains import (
    PREFILL,
    PREPROCESSING,
    Gain,
    Seen,
    Spread,
    ceiling,
    compare,
    explanation,
    own_bound,
    spread,
    untouched,
)
from foveal.efficiency.hardware import Hardware
from foveal.efficiency.roofline import Times
from foveal.efficiency.timeline import HEAD, PARTS, REST, layer_part
from foveal.efficiency.units import hardware_record
from foveal.evaluation.provenance import provenance

__all__ = ["PLAIN", "SEED", "Report", "Row", "Throughput", "make_row", "record"]

PLAIN = "plain"
SEED = 0
"""Of the order in which cases take their turns."""


@dataclass(frozen=True)
class Row:
    """A case with a batch. Times in seconds.

    Attributes:
        name: of the case.
        batch: samples at once.
        rounds: that its medians are of.
        method: its options; None of the plain model.
        visual: visual tokens of an image, by decoder layer.
        first_token: time to first token, from the model's inputs on.
        next_token: of a decode step; None for answers of one token.
        answer: the whole request.
        parts: medians of a prefill's parts, its layers and the head together as "prefill"; "preprocessing" comes
            before the inputs.
        layers: medians of the prefill by decoder layer.
        memory: bytes beside the weights at the peak.
        least: the roofline's seconds, by part and for the first token, the next and the answer.
        least_memory: bytes of cache and activations.
        gains: over the plain model, by what was gained; none of the plain model.
        ceiling: how many times earlier the first token can be if what the method touches cost nothing.
        explanation: why it is not as early as FLOPs promise, a clause a reason; empty without a method.
    """

    name: str
    batch: int
    rounds: int
    method: dict[str, Any] | None
    visual: tuple[int, ...]
    first_token: Spread
    next_token: Spread | None
    answer: Spread
    parts: dict[str, float]
    layers: list[float]
    memory: int | None
    least: dict[str, float]
    least_memory: int
    gains: dict[str, Gain] = field(default_factory=dict)
    ceiling: float | None = None
    explanation: tuple[str, ...] = ()


@dataclass(frozen=True)
class Throughput:
    """Requests answered in a second by threads that each wait for their own.

    Attributes:
        name: of the case.
        batch: samples of a request.
        concurrency: threads.
        samples: answered in a second.
    """

    name: str
    batch: int
    concurrency: int
    samples: Spread


@dataclass(frozen=True)
class Report:
    """All that was measured.

    Attributes:
        setting: what was run, and how often.
        hardware: this machine, measured.
        rows: the cases by batch; the first of each batch is the plain model.
        throughput: at each concurrency asked for.
    """

    setting: dict[str, Any]
    hardware: Hardware
    rows: list[Row]
    throughput: list[Throughput]


def make_row(
    name: str,
    batch: int,
    method: Compressor | None,
    seen: Mapping[str, Seen],
    costs: Mapping[str, Cost],
    times: Mapping[str, Times],
    prices: Mapping[int, Sequence[float]],
    preprocessing: float,
) -> Row:
    """The row of a case.

    Args:
        name: of the case.
        batch: samples at once.
        method: of the case.
        seen: what the clock said, by case.
        costs: by case.
        times: the rooflines, by case.
        prices: see `own_bound`.
        preprocessing: seconds before the model's inputs.
    """
    own, plain, rows = seen[name], seen[PLAIN], costs[name].rows
    row = Row(
        name=name,
        batch=batch,
        rounds=len(own.answer),
        method=None if method is None else method.options(),
        visual=costs[name].visual,
        first_token=spread(own.first_token),
        next_token=spread(own.next_token) if any(own.next_token) else None,
        answer=spread(own.answer),
        parts={PREPROCESSING: preprocessing} | own.medians(),
        layers=[own.part(layer_part(index)) for index in range(len(rows))],
        memory=own.memory,
        least=_least(times[name]),
        least_memory=max(costs[name].peak, sum(costs[name].cache_at_end)),
    )
    if name == PLAIN:
        return row
    gains = compare(
        plain, own, (costs[PLAIN], costs[name]), (times[PLAIN], times[name]), own_bound(plain, rows, prices)
    )
    return replace(
        row,
        gains=gains,
        ceiling=ceiling(untouched(plain, own, preprocessing)),
        explanation=() if method is None else explanation(plain, own, gains, preprocessing),
    )


def _least(times: Times) -> dict[str, float]:
    """The roofline by part and moment."""
    parts = {part: getattr(times, part.replace(" ", "_")) for part in PARTS if part not in (HEAD, REST)}
    whole = {name: getattr(times, name) for name in (PREFILL, "first_token", "next_token", "answer")}
    return parts | whole


def record(report: Report) -> dict[str, Any]:
    """All that was measured, ready for JSON with units in its names, and where it comes from."""
    return {
        "setting": report.setting,
        "machine": hardware_record(report.hardware),
        "rows": [_row_record(row) for row in report.rows],
        "throughput": [
            {
                "name": each.name,
                "batch": each.batch,
                "concurrency": each.concurrency,
                "samples_per_second": asdict(each.samples),
            }
            for each in report.throughput
        ],
        **provenance(seed=SEED),
    }


def _row_record(row: Row) -> dict[str, Any]:
    following = None if row.next_token is None else asdict(row.next_token)
    return {
        "name": row.name,
        "batch": row.batch,
        "rounds": row.rounds,
        "method": row.method,
        "visual_tokens_by_layer": row.visual,
        "seconds": {
            "first_token": asdict(row.first_token),
            "next_token": following,
            "answer": asdict(row.answer),
        },
        "part_seconds": row.parts,
        "layer_seconds": row.layers,
        "memory_bytes": row.memory,
        "least_seconds": row.least,
        "least_memory_bytes": row.least_memory,
        "times_faster": {
            name: {**asdict(gain), "realised": gain.realised, "in_noise": gain.in_noise}
            for name, gain in row.gains.items()
        },
        "first_token_ceiling": row.ceiling,
        "explanation": row.explanation,
    }
