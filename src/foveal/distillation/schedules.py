"""How hard the compression is at each moment of training: pure functions of progress t in [0, 1] and a seed.

The paper (EPIC, arXiv 2510.00515) counts the fraction of visual tokens removed, r. Plans carry what is kept, 1 - r.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol

from foveal.errors import FovealError

__all__ = [
    "FixedSchedule",
    "IntegratedSchedule",
    "LayerSchedule",
    "Plan",
    "Schedule",
    "TeacherSeesAll",
    "TokenSchedule",
    "WithoutTeacher",
    "draw_of_step",
    "even_layers",
    "progress",
]

Range = tuple[float, float]


@dataclass(frozen=True)
class Plan:
    """The compression of one training step.

    Attributes:
        student: fraction of visual tokens the student keeps.
        teacher: fraction the teacher keeps, at least the student's; None without a teacher.
        layer: the 0-based decoder layer at whose entry both drop tokens; None for the methods' own.
    """

    student: float
    teacher: float | None
    layer: int | None = None

    @property
    def gap(self) -> float:
        """How much more the teacher keeps, as a fraction of the visual tokens."""
        return 0.0 if self.teacher is None else self.teacher - self.student


class Schedule(Protocol):
    """Anything that plans a step."""

    def plan(self, t: float, draw: random.Random) -> Plan:
        """The plan at progress t, with random numbers from `draw`."""
        ...


def progress(step: int, steps: int) -> float:
    """Training progress in [0, 1] of 0-based optimiser step `step` out of `steps`."""
    return min(1.0, step / max(1, steps - 1))


def draw_of_step(seed: int, step: int) -> random.Random:
    """The random numbers of a training run's optimiser step: the same in all its processes and micro-batches."""
    return random.Random(f"{seed}/{step}")


@dataclass(frozen=True)
class TokenSchedule:
    """Token consistency distillation (TCD): ever fewer tokens, at one layer.

    The fraction removed by the student is drawn uniformly between two bounds that rise linearly with progress; the
    teacher removes a little less, by a gap that rises too. Each range is (value at t = 0, value at t = 1), in
    fractions of visual tokens removed.

    Args:
        least_removed: the lower bound. The paper says it rises to at most 0.5 and gives no curve: linear here.
        most_removed: the upper bound.
        gap: how much less the teacher removes; never below removing nothing.
        widest_gap: the gap stops rising here.

    Raises:
        FovealError: a value outside [0, 1), or a lower bound above the upper one.
    """

    least_removed: Range = (0.0, 0.5)
    most_removed: Range = (0.05, 0.9)
    gap: Range = (0.05, 0.3)
    widest_gap: float = 1.0

    def __post_init__(self) -> None:
        _check_fractions(least_removed=self.least_removed, most_removed=self.most_removed, gap=self.gap)
        if any(low > high for low, high in zip(self.least_removed, self.most_removed, strict=True)):
            raise FovealError(f"least_removed={self.least_removed} is above most_removed={self.most_removed}")

    @classmethod
    def released(cls) -> TokenSchedule:
        """What the authors' released code does in place of the paper's text."""
        return cls(least_removed=(0.1, 0.26), most_removed=(0.1, 0.74), gap=(0.1, 0.6), widest_gap=0.3)

    def plan(self, t: float, draw: random.Random) -> Plan:
        """Draw the student's fraction; the teacher follows at the gap of this moment."""
        removed = draw.uniform(_between(self.least_removed, t), _between(self.most_removed, t))
        return _pair(removed, min(_between(self.gap, t), self.widest_gap))


@dataclass(frozen=True)
class LayerSchedule:
    """Layer consistency distillation (LCD): the compression moves from the deepest layer to the shallowest.

    At progress t it acts at layer round(first - t (first - last)), for teacher and student alike; the fraction removed
    is drawn from one range throughout.

    Args:
        depth: number of decoder layers.
        first_layer: where it starts; None for `depth`, where no layer is left to see fewer tokens, so that the step is
            plain fine-tuning.
        last_layer: where it ends. The paper does not say; it evaluates at layer 2.
        removed: between these the student's fraction is drawn.
        gap: how much less the teacher removes, at t = 0 and at t = 1. Not given for LCD: TCD's.

    Raises:
        FovealError: a fraction outside [0, 1), or layers that are not 0 <= last <= first <= depth.
    """

    depth: int
    first_layer: int | None = None
    last_layer: int = 2
    removed: Range = (0.2, 0.9)
    gap: Range = (0.05, 0.3)

    def __post_init__(self) -> None:
        _check_fractions(removed=self.removed, gap=self.gap)
        if self.removed[0] > self.removed[1]:
            raise FovealError(f"removed={self.removed} must be (lower bound, upper bound)")
        _check_layers((self._first, self.last_layer), self.depth)

    @property
    def _first(self) -> int:
        return self.depth if self.first_layer is None else self.first_layer

    def plan(self, t: float, draw: random.Random) -> Plan:
        """Draw the student's fraction at the layer of this moment."""
        layer = math.floor(self._first - t * (self._first - self.last_layer) + 0.5)
        plan = _pair(draw.uniform(*self.removed), _between(self.gap, t))
        return _at(layer, plan, self.depth)


@dataclass(frozen=True)
class IntegratedSchedule:
    """Integrated consistency distillation (ICD, the paper's appendix C): TCD's path anew at each of several layers.

    Args:
        depth: number of decoder layers.
        layers: the layers visited, deep to shallow, each for an equal share of training; `depth` itself means plain
            fine-tuning. The paper gives neither layers nor shares.
        tokens: the path at each layer. Its gap, too, begins anew unless `gap_resets` is False.
        gap_resets: whether the teacher's gap starts again with every layer, or rises once over the whole training.

    Raises:
        FovealError: layers that are not 0 <= ... <= depth from deep to shallow.
    """

    depth: int
    layers: tuple[int, ...]
    tokens: TokenSchedule = field(default_factory=TokenSchedule)
    gap_resets: bool = True

    def __post_init__(self) -> None:
        _check_layers(self.layers, self.depth)

    def plan(self, t: float, draw: random.Random) -> Plan:
        """TCD's plan at the progress made within this moment's layer."""
        place = min(int(t * len(self.layers)), len(self.layers) - 1)
        within = t * len(self.layers) - place
        tokens = self.tokens
        if not self.gap_resets:
            gap = _between(tokens.gap, t)
            tokens = replace(tokens, gap=(gap, gap))
        return _at(self.layers[place], tokens.plan(within, draw), self.depth)


@dataclass(frozen=True)
class FixedSchedule:
    """The same compression throughout and no teacher: what EPIC is compared with.

    `FixedSchedule(1 - 0.889)` trains straight at the target ("direct"); `FixedSchedule(1.0)` is plain fine-tuning.
    """

    keep: float

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise FovealError(f"keep={self.keep} must be the fraction of visual tokens kept, in (0, 1]")

    def plan(self, t: float, draw: random.Random) -> Plan:
        """The same plan at every t."""
        return Plan(student=self.keep, teacher=None)


@dataclass(frozen=True)
class WithoutTeacher:
    """A schedule's students by themselves: the ablation without distillation."""

    schedule: Schedule

    def plan(self, t: float, draw: random.Random) -> Plan:
        """The plan of `schedule` without its teacher."""
        return replace(self.schedule.plan(t, draw), teacher=None)


@dataclass(frozen=True)
class TeacherSeesAll:
    """A schedule whose teacher keeps all tokens."""

    schedule: Schedule

    def plan(self, t: float, draw: random.Random) -> Plan:
        """The plan of `schedule`, its teacher uncompressed where there is one."""
        plan = self.schedule.plan(t, draw)
        return plan if plan.teacher is None else replace(plan, teacher=1.0)


def even_layers(depth: int, last_layer: int, count: int) -> tuple[int, ...]:
    """`count` layers, evenly spaced from `depth` down to `last_layer`.

    Raises:
        FovealError: fewer than two layers, or more than there are.
    """
    if not 2 <= count <= depth - last_layer + 1:
        raise FovealError(
            f"{count} layers cannot be spread from {depth} down to {last_layer}: pass 2 to {depth - last_layer + 1}"
        )
    step = (depth - last_layer) / (count - 1)
    return tuple(math.floor(depth - place * step + 0.5) for place in range(count))


def _pair(removed: float, gap: float) -> Plan:
    return Plan(student=1 - removed, teacher=1 - max(0.0, removed - gap))


def _at(layer: int, plan: Plan, depth: int) -> Plan:
    """The plan at a layer; behind the last one nothing is dropped and nobody can be taught."""
    return replace(plan, layer=layer) if layer < depth else Plan(student=1.0, teacher=None)


def _between(ends: Range, t: float) -> float:
    return ends[0] + t * (ends[1] - ends[0])


def _check_fractions(**ranges: Range) -> None:
    for name, values in ranges.items():
        if not all(0 <= value < 1 for value in values):
            raise FovealError(f"{name}={values} must hold fractions removed, in [0, 1)")


def _check_layers(layers: tuple[int, ...], depth: int) -> None:
    deep_first = all(before >= after for before, after in pairwise(layers))
    if not layers or not deep_first or layers[0] > depth or layers[-1] < 0:
        raise FovealError(
            f"layers {', '.join(map(str, layers))} must go from deep to shallow, between {depth} (the number of "
            "decoder layers) and 0"
        )
