"""How hard the compression is at each moment of training: pure functions of progress t in [0, 1] and a seed.

The paper counts the fraction of visual tokens removed, r. Here plans carry the fraction kept, 1 - r.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

from foveal.errors import FovealError

__all__ = ["FixedSchedule", "Plan", "ProgressiveSchedule", "Schedule", "progress"]

Range = tuple[float, float]


@dataclass(frozen=True)
class Plan:
    """The compression of one training step.

    Attributes:
        student: fraction of visual tokens the student keeps.
        teacher: fraction the teacher keeps, at least the student's; None without a teacher.
    """

    student: float
    teacher: float | None

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


@dataclass(frozen=True)
class ProgressiveSchedule:
    """Token consistency distillation (EPIC, arXiv 2510.00515, TCD): easy to hard.

    The fraction removed by the student is drawn uniformly between two bounds that rise linearly with progress; the
    teacher removes a little less, by a gap that rises too. Each range is (value at t = 0, value at t = 1), in
    fractions of visual tokens removed.

    Args:
        least_removed: the lower bound. The paper says it rises to at most 0.5 and gives no curve: linear here.
        most_removed: the upper bound.
        gap: how much less the teacher removes; never below removing nothing.

    Raises:
        FovealError: a value outside [0, 1), or a lower bound above the upper one.
    """

    least_removed: Range = (0.0, 0.5)
    most_removed: Range = (0.05, 0.9)
    gap: Range = (0.05, 0.3)

    def __post_init__(self) -> None:
        for name in ("least_removed", "most_removed", "gap"):
            for value in getattr(self, name):
                if not 0 <= value < 1:
                    raise FovealError(f"{name}={getattr(self, name)} must hold fractions removed, in [0, 1)")
        if any(low > high for low, high in zip(self.least_removed, self.most_removed, strict=True)):
            raise FovealError(f"least_removed={self.least_removed} is above most_removed={self.most_removed}")

    def plan(self, t: float, draw: random.Random) -> Plan:
        """Draw the student's fraction; the teacher follows at the gap of this moment."""
        removed = draw.uniform(_between(self.least_removed, t), _between(self.most_removed, t))
        return Plan(student=1 - removed, teacher=1 - max(0.0, removed - _between(self.gap, t)))


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


def _between(ends: Range, t: float) -> float:
    return ends[0] + t * (ends[1] - ends[0])
