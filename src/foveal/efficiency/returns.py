"""What a budget returns: the curve from all visual tokens down to one, its areas, and the batch at which it pays.

Of all that dropping visual tokens could save (everything but the last one), a budget of n saves the share

    s(n) = (plain - cost(n)) / (plain - cost(1))

*High return* is where s goes from 75 to 90 %, *low return* is what lies beyond: the last tenth, bought with the tokens
that hurt most. Counted in FLOPs, LLaVA-1.5-7B at K = 2 has high return from 144 to 58 of its 576 tokens; EPIC's figure
(arXiv 2510.00515) calls 128 and 64 high, 36 and below low. Counted in time, a device's bandwidth cuts the curve off
earlier: weights are read however few tokens there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf

from foveal.compressors import Compressor
from foveal.efficiency.cost import Cost, Load, cost, resolve
from foveal.efficiency.hardware import GIB, Hardware
from foveal.efficiency.roofline import Times, roofline
from foveal.efficiency.shape import ModelShape

__all__ = [
    "QUANTITIES",
    "Area",
    "Case",
    "Point",
    "Serving",
    "area",
    "curve",
    "ladder",
    "paying_batch",
    "products_alone",
    "serving",
]

_HIGH, _LOW = 0.75, 0.9  # shares of what can be saved
_PAYS = 0.9  # of the speed-up that products alone allow
_LARGEST_BATCH = 4096
_USABLE = 0.9  # of a device's memory; the rest is the driver's, the libraries' and the allocator's
_NOTHING = 0.01  # of the plain cost: no area is worth marking


@dataclass(frozen=True)
class Point:
    """A budget, or the plain model.

    Attributes:
        cost: exact.
        times: at best.
    """

    cost: Cost
    times: Times

    @property
    def visual(self) -> int:
        """Visual tokens of an image behind the last stage."""
        return self.cost.visual[-1]


@dataclass(frozen=True)
class Case:
    """A load on a device.

    Attributes:
        shape: of the model.
        load: what it is asked; its visual tokens are filled in.
        hardware: where it runs.
    """

    shape: ModelShape
    load: Load
    hardware: Hardware

    def __post_init__(self) -> None:
        object.__setattr__(self, "load", resolve(self.shape, self.load))

    @property
    def visual(self) -> int:
        """Visual tokens of an image."""
        return self.load.tokens

    def at(self, method: Compressor | None) -> Point:
        """What the load costs under a method; None for the plain model."""
        found = cost(self.shape, method, self.load)
        return Point(found, roofline(found, self.shape, self.load, self.hardware))

    def of_batch(self, batch: int) -> Case:
        """The same with another batch."""
        return replace(self, load=replace(self.load, batch=batch))


# What a budget may save: until the first token, since decode steps are dominated by weights.
QUANTITIES: dict[str, Callable[[Point], float]] = {
    "flops": lambda point: point.cost.first_token,
    "time": lambda point: point.times.first_token,
    "cache": lambda point: sum(point.cost.cache),
}


@dataclass(frozen=True)
class Area:
    """Where a curve's return is high, and where it is low.

    Attributes:
        high: the most visual tokens at which 75 % of what can be saved is saved: high return begins.
        low: the most at which 90 % is saved: below it, low return begins.
    """

    high: int
    low: int

    def of(self, visual: int) -> str:
        """The area that a budget lies in: "high", "low", or none yet."""
        return "" if visual > self.high else "high" if visual >= self.low else "low"


def area(case: Case, method: Compressor, quantity: Callable[[Point], float]) -> Area | None:
    """Mark a curve's areas.

    Args:
        case: where.
        method: whose budget varies.
        quantity: what is saved; see `QUANTITIES`.

    Returns:
        None if even a single token saves nothing worth a mark.
    """
    plain = quantity(case.at(None))
    most = plain - quantity(case.at(_with(method, 1)))
    if most < _NOTHING * plain:
        return None

    def saved(visual: int) -> float:
        return (plain - quantity(case.at(_with(method, visual)))) / most

    return Area(*(_most_tokens(saved, share, case.visual) for share in (_HIGH, _LOW)))


def _most_tokens(saved: Callable[[int], float], share: float, visual: int) -> int:
    """The largest budget that saves so much; the fewer tokens, the more is saved."""
    low, high = 1, visual
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if saved(middle) >= share else (low, middle - 1)
    return low


def ladder(visual: int) -> list[int]:
    """Budgets from all visual tokens down to one: halves, and three quarters in between."""
    found = {1}
    step = float(visual)
    while step >= 1:
        found |= {round(step), max(1, round(0.75 * step))}
        step /= 2
    return sorted(found, reverse=True)


def curve(case: Case, method: Compressor, budgets: Sequence[int]) -> list[Point]:
    """A method's points at several budgets."""
    return [case.at(_with(method, visual)) for visual in budgets]


def _with(method: Compressor, visual: int) -> Compressor:
    return replace(method, keep=visual)


def products_alone(case: Case, method: Compressor) -> float:
    """How many times faster the prefill is where nothing but its products takes time."""
    ideal = replace(case, hardware=replace(case.hardware, bandwidth=inf))
    return ideal.at(None).times.prefill / ideal.at(method).times.prefill


def paying_batch(case: Case, method: Compressor) -> int | None:
    """The smallest batch at which it pays: the prefill's speed-up is 90 % of what its products alone would allow.

    Below that, the compressed prefill waits for the weights, which a batch reads once. None if no batch up to 4,096
    suffices, or nothing is saved.
    """

    def pays(batch: int) -> bool:
        there = case.of_batch(batch)
        gained, promised = (
            there.at(None).times.prefill / there.at(method).times.prefill,
            products_alone(there, method),
        )
        return promised > 1 and gained >= _PAYS * promised

    high = 1
    while not pays(high):
        high *= 2
        if high > _LARGEST_BATCH:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if pays(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Serving:
    """A device that is filled up.

    Attributes:
        batch: samples that its memory holds at once, 0 if not even one.
        rate: answers/s at best, all starting together.
    """

    batch: int
    rate: float


def serving(case: Case, method: Compressor | None) -> Serving:
    """How many samples fit at once beside the weights in 90 % of memory, and how fast they are answered."""
    one = case.of_batch(1).at(method).cost
    weights = sum(one.weights.values())
    room = _USABLE * case.hardware.memory * GIB - weights
    batch = max(0, int(room / (one.memory - weights)))
    if batch == 0:
        return Serving(0, 0.0)
    return Serving(batch, batch / case.of_batch(batch).at(method).times.answer)
