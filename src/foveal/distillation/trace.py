"""A schedule's course: what may be drawn at each moment of training."""

from __future__ import annotations

import random
from dataclasses import dataclass

from foveal.distillation.config import EpicConfig
from foveal.distillation.schedules import Plan, Schedule, draw_of_step, progress

__all__ = ["Moment", "layer_of", "plans", "trace"]

Range = tuple[float, float]


@dataclass(frozen=True)
class Moment:
    """The plans that are possible at one moment.

    Attributes:
        t: training progress in [0, 1].
        layer: first 0-based decoder layer at whose entry tokens are dropped; None where none are.
        student: least and largest fraction of visual tokens that the student keeps.
        teacher: the same of the teacher; None without one.
    """

    t: float
    layer: int | None
    student: Range
    teacher: Range | None


class _End(random.Random):
    """Draws one end of every range."""

    def __init__(self, upper: bool) -> None:
        super().__init__(0)
        self._upper = upper

    def uniform(self, a: float, b: float) -> float:
        """The end."""
        return b if self._upper else a


def trace(config: EpicConfig, depth: int, moments: int = 101) -> list[Moment]:
    """The course of the schedule that `config` describes, at evenly spaced moments.

    Args:
        config: names the schedule and its numbers.
        depth: number of decoder layers.
        moments: how many, at least 2.
    """
    schedule = config.make_schedule(depth)
    return [_moment(config, depth, schedule, place / (moments - 1)) for place in range(moments)]


def plans(config: EpicConfig, depth: int, steps: int) -> list[tuple[float, Plan]]:
    """(progress, plan) of every step of a training run of so many steps: what EpicTrainer draws with this seed."""
    schedule = config.make_schedule(depth)
    moments = [progress(step, steps) for step in range(steps)]
    return [(t, schedule.plan(t, draw_of_step(config.seed, step))) for step, t in enumerate(moments)]


def layer_of(config: EpicConfig, plan: Plan, depth: int) -> int | None:
    """The first decoder layer at whose entry a plan drops tokens, 0 if before the decoder; None if it drops none."""
    if plan.student == 1 and plan.layer is None:
        return None
    return config.make_compressor().stages(depth)[0].layer if plan.layer is None else plan.layer


def _moment(config: EpicConfig, depth: int, schedule: Schedule, t: float) -> Moment:
    least, most = (
        schedule.plan(t, _End(upper)) for upper in (True, False)
    )  # the most removed, the least kept
    teacher = None
    if least.teacher is not None and most.teacher is not None:
        teacher = (least.teacher, most.teacher)
    return Moment(t, layer_of(config, least, depth), (least.student, most.student), teacher)
