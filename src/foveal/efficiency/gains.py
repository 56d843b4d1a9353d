"""What measurements mean: how many times faster, what was possible, and where the difference went.

The same speed-up, from what could be to what is:

    FLOPs           plain FLOPs / compressed FLOPs
    roofline        the same of seconds on this machine's peak and bandwidth
    own layers      plain prefill / the prefill that this run's plain layers would make at the shorter lengths
    measured        plain seconds / compressed seconds, round by round
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

from foveal.efficiency.cost import Cost
from foveal.efficiency.roofline import Times
from foveal.efficiency.timeline import HEAD, PARTS, PROJECTOR, REST, SELECTION, TEXT_TOWER, TOWER, layer_part

__all__ = [
    "PREFILL",
    "PREPROCESSING",
    "SURE_ROUNDS",
    "Gain",
    "Seen",
    "Spread",
    "ceiling",
    "compare",
    "explanation",
    "own_bound",
    "prefill",
    "spread",
    "untouched",
]

PREPROCESSING, PREFILL = "preprocessing", "prefill"
_SMALL = 0.02  # of the time to first token: not worth a word
_CONFIDENCE = 0.95
SURE_ROUNDS = 6
"""Fewer values than these have no interval of 95 %."""


@dataclass(frozen=True)
class Spread:
    """A median, and the interval that the true one lies in with 95 % confidence."""

    median: float
    low: float
    high: float

    @property
    def noise(self) -> float:
        """How far the true median may be away."""
        return max(self.median - self.low, self.high - self.median)


def spread(values: Sequence[float]) -> Spread:
    """Of one or more values.

    The interval assumes nothing of how they are distributed: it leaves out as many values at either end as a fair coin
    would hardly put there. Fewer than six values leave none out, and are less sure than 95 %.
    """
    ordered, left_out = sorted(values), 0
    while 2 * _tail(left_out, len(ordered)) <= 1 - _CONFIDENCE:
        left_out += 1
    first = max(left_out - 1, 0)
    return Spread(median(ordered), ordered[first], ordered[-1 - first])


def _tail(most: int, count: int) -> float:
    """The chance that at most so many of the values lie on one side of the true median."""
    return sum(comb(count, number) for number in range(most + 1)) * 0.5**count


@dataclass(frozen=True)
class Seen:
    """What the clock said of one case, a list over rounds each; seconds.

    Attributes:
        first_token: from the model's inputs to the first token.
        next_token: decode steps, the median of each round's; 0 for an answer of one token.
        answer: from the inputs to the last token.
        parts: seconds by part of a prefill that was watched.
        memory: bytes that a request needs at its peak beside the weights; None where nobody says.
    """

    first_token: Sequence[float]
    next_token: Sequence[float]
    answer: Sequence[float]
    parts: Sequence[Mapping[str, float]]
    memory: int | None

    def part(self, name: str) -> float:
        """The median of a part."""
        return median(parts.get(name, 0.0) for parts in self.parts)

    def medians(self) -> dict[str, float]:
        """By part, the decoder's layers and head together as the prefill."""
        found = {name: self.part(name) for name in PARTS if name != HEAD}
        layers = [sum(map(parts.__getitem__, _decoder(parts))) for parts in self.parts]
        return found | {PREFILL: median(layers)}


@dataclass(frozen=True)
class Gain:
    """How many times faster than the plain model.

    Attributes:
        measured: over rounds, each compared with the same round's plain model.
        flops: the bound by FLOPs; None of decode steps, which memory bounds.
        roofline: the bound on this machine.
        own_layers: of a prefill, the bound by this run's own layers.
    """

    measured: Spread
    flops: float | None
    roofline: float
    own_layers: float | None = None

    @property
    def in_noise(self) -> bool:
        """Whether the clock cannot tell it from no difference at all."""
        return self.measured.low <= 1 <= self.measured.high

    @property
    def realised(self) -> float:
        """The share of the bound that was realised: of this run's own layers where there are some, else of FLOPs."""
        return self.measured.median / (self.own_layers or self.flops or self.roofline)


def prefill(parts: Mapping[str, float]) -> float:
    """Seconds of the language model's prefill and of choosing tokens for it."""
    return sum(parts[name] for name in [*_decoder(parts), SELECTION])


def _decoder(parts: Mapping[str, float]) -> list[str]:
    """The decoder's layers and its head."""
    return [name for name in parts if name not in PARTS or name == HEAD]


def own_bound(plain: Seen, rows: Sequence[int], prices: Mapping[int, Sequence[float]]) -> float:
    """How many times faster the prefill would be if dropped rows cost nothing, by this run's own layers.

    Args:
        plain: the plain model.
        rows: of a sample, by layer, under the method.
        prices: seconds of each of the plain model's layers, by the rows it is given.
    """
    head = plain.part(HEAD)
    whole = sum(plain.part(layer_part(index)) for index in range(len(rows))) + head
    return whole / (sum(prices[count][index] for index, count in enumerate(rows)) + head)


def compare(
    plain: Seen, seen: Seen, costs: tuple[Cost, Cost], times: tuple[Times, Times], own: float | None
) -> dict[str, Gain]:
    """The gains of a case over the plain model, by what was gained.

    Args:
        plain: the plain model.
        seen: the case, in the same rounds.
        costs: of the plain model and the case.
        times: their rooflines.
        own: see `own_bound`.
    """

    def ratios(before: Sequence[float], after: Sequence[float]) -> Spread:
        return spread([a / b for a, b in zip(before, after, strict=True)])

    def prefills(case: Seen) -> list[float]:
        return [prefill(parts) for parts in case.parts]

    def bounds(of: str) -> tuple[float, float]:
        flops = [getattr(cost, of if of != "answer" else "total") for cost in costs]
        seconds = [getattr(time, of) for time in times]
        return flops[0] / flops[1], seconds[0] / seconds[1]

    gains = {
        "prefill": Gain(ratios(prefills(plain), prefills(seen)), *bounds("prefill"), own),
        "first_token": Gain(ratios(plain.first_token, seen.first_token), *bounds("first_token")),
        "answer": Gain(ratios(plain.answer, seen.answer), *bounds("answer")),
    }
    if times[0].next_token:
        bound = times[0].next_token / times[1].next_token
        gains["next_token"] = Gain(ratios(plain.next_token, seen.next_token), None, bound)
    return gains


def untouched(plain: Seen, seen: Seen, preprocessing: float) -> dict[str, float]:
    """What is left of parts that come before and around the decoder, as shares of the plain time to the first token.

    Args:
        plain: the plain model.
        seen: the case.
        preprocessing: seconds before the model's inputs, which belong to that time; 0 where nobody knows.
    """
    before, after = plain.medians(), seen.medians()
    whole = sum(before.values()) + preprocessing
    left = {name: min(before[name], after[name]) for name in (TOWER, PROJECTOR, REST)}
    shares = {name: seconds / whole for name, seconds in ({PREPROCESSING: preprocessing} | left).items()}
    return {name: share for name, share in shares.items() if share > _SMALL}


def ceiling(shares: Mapping[str, float]) -> float:
    """How many times faster it can get at most if all but these shares cost nothing (Amdahl's law)."""
    left = sum(shares.values())
    return 1 / left if left else float("inf")


def explanation(plain: Seen, seen: Seen, gains: Mapping[str, Gain], preprocessing: float) -> tuple[str, ...]:
    """Why the first token is not as much earlier as FLOPs promise, a clause a reason."""
    shares = untouched(plain, seen, preprocessing)
    names = sorted(shares, key=lambda name: -shares[name])
    reasons = []
    if names:
        told = _listed([_WORDS[name] for name in names])
        many = "are" if len(names) > 1 else "is"
        reasons.append(
            f"{told} {many} {100 * sum(shares.values()):.0f} % of the time {_since(preprocessing)} the first token and "
            f"{'stay' if len(names) > 1 else 'stays'}: {ceiling(shares):.1f}x at most"
        )
    whole = sum(plain.medians().values()) + preprocessing
    added = [(SELECTION, seen.part(SELECTION)), (TEXT_TOWER, seen.part(TEXT_TOWER))]
    reasons += [f"{_WORDS[name]} adds {100 * s / whole:.0f} %" for name, s in added if s / whole > _SMALL]
    own, flops = gains["prefill"].own_layers, gains["prefill"].flops
    if own is not None and flops is not None and own < 0.95 * flops:
        reasons.append(
            f"layers are less efficient on fewer rows: here the prefill can be {own:.2f}x, not the {flops:.2f}x of its "
            "FLOPs"
        )
    return tuple(reasons)


_WORDS = {
    PREPROCESSING: "preprocessing",
    TOWER: "the vision tower",
    PROJECTOR: "the projector",
    REST: "what runs around the model's parts",
    SELECTION: "choosing tokens",
    TEXT_TOWER: "the text tower",
}


def _since(preprocessing: float) -> str:
    return "from the picture to" if preprocessing else "to"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
