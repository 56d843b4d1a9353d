from __future__ import annotations

import random
from typing import Any

import pytest

from foveal.distillation import SCHEDULES, EpicConfig
from foveal.distillation.trace import layer_of, plans, trace


def config(schedule: str, **options: Any) -> EpicConfig:
    return EpicConfig(schedule=schedule, use_cpu=True, **options)


def test_tcd_as_the_paper_gives_it() -> None:
    first, middle, last = trace(config("tcd"), depth=32, moments=3)
    assert (first.t, middle.t, last.t) == (0, 0.5, 1)
    assert first.student == pytest.approx((0.95, 1.0))
    assert first.teacher == pytest.approx((1.0, 1.0))
    assert last.student == pytest.approx((0.1, 0.5))
    assert last.teacher == pytest.approx((0.4, 0.8))
    assert {moment.layer for moment in (first, middle, last)} == {2}


def test_lcd_walks_down_from_where_nothing_is_dropped() -> None:
    first, *_, last = trace(config("lcd", layer=3), depth=8, moments=6)
    assert (first.layer, first.student, first.teacher) == (None, (1.0, 1.0), None)
    assert (last.layer, last.student) == (3, pytest.approx((0.1, 0.8)))


def test_a_teacher_that_sees_all() -> None:
    assert trace(config("tcd", teacher="all"), depth=4)[-1].teacher == (1.0, 1.0)
    assert trace(config("tcd-no-distill", teacher="all"), depth=4)[-1].teacher is None


@pytest.mark.parametrize(("method", "layer"), [("visionzip", 0), ("pyramiddrop", 8), ("dart", 2)])
def test_methods_that_choose_their_own_layer(method: str, layer: int) -> None:
    assert trace(config("direct", method=method), depth=32)[0].layer == layer


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_stays_within_the_bounds(schedule: str) -> None:
    chosen, depth, steps = config(schedule), 12, 61
    for (t, plan), moment in zip(plans(chosen, depth, steps), trace(chosen, depth, steps), strict=True):
        assert t == pytest.approx(moment.t)
        assert moment.student[0] - 1e-9 <= plan.student <= moment.student[1] + 1e-9
        assert layer_of(chosen, plan, depth) == moment.layer
        assert (plan.teacher is None) == (moment.teacher is None)
        if plan.teacher is not None and moment.teacher is not None:
            assert moment.teacher[0] - 1e-9 <= plan.teacher <= moment.teacher[1] + 1e-9


def test_a_run_draws_what_the_trainer_draws() -> None:
    """EpicTrainer seeds each step by (seed, step)."""
    chosen = config("tcd", seed=5)
    expected = chosen.make_schedule(4).plan(3 / 9, random.Random("5/3"))
    assert plans(chosen, 4, 10)[3][1] == expected
