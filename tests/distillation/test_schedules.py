"""Schedules: bounds, ends, draws."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal import FovealError
from foveal.distillation import FixedSchedule, TokenSchedule, progress

times = st.floats(0, 1)


@given(t=times, seed=st.integers(0, 2**32))
def test_tcd_stays_between_its_bounds(t: float, seed: int) -> None:
    plan = TokenSchedule().plan(t, random.Random(seed))
    removed = 1 - plan.student
    assert 0.5 * t - 1e-9 <= removed <= 0.05 + 0.85 * t + 1e-9
    assert plan.teacher is not None
    assert plan.teacher == pytest.approx(1 - max(0, removed - (0.05 + 0.25 * t)))
    assert 0 < plan.student <= plan.teacher <= 1


def test_tcd_reaches_both_bounds() -> None:
    draw = random.Random(0)
    for t, low, high in ((0.0, 0.0, 0.05), (0.5, 0.25, 0.475), (1.0, 0.5, 0.9)):
        removed = [1 - TokenSchedule().plan(t, draw).student for _ in range(4000)]
        assert min(removed) == pytest.approx(low, abs=0.01)
        assert max(removed) == pytest.approx(high, abs=0.01)
        assert sum(removed) / len(removed) == pytest.approx((low + high) / 2, abs=0.01)


def test_the_gap_is_the_teachers_advantage() -> None:
    plan = TokenSchedule(gap=(0.2, 0.2)).plan(1.0, random.Random(0))
    assert plan.gap == pytest.approx(0.2)
    early = TokenSchedule(gap=(0.2, 0.2)).plan(0.0, random.Random(0))
    assert early.teacher == 1.0
    assert 0 < early.gap < 0.05


def test_the_same_seed_draws_the_same_plan() -> None:
    schedule = TokenSchedule()
    assert schedule.plan(0.3, random.Random("0/7/0")) == schedule.plan(0.3, random.Random("0/7/0"))
    assert schedule.plan(0.3, random.Random("0/7/0")) != schedule.plan(0.3, random.Random("0/8/0"))


def test_fixed_schedules_have_no_teacher() -> None:
    for t in (0.0, 0.4, 1.0):
        plan = FixedSchedule(0.25).plan(t, random.Random(0))
        assert (plan.student, plan.teacher, plan.gap) == (0.25, None, 0.0)


def test_progress_runs_from_zero_to_one() -> None:
    assert [progress(step, 5) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert progress(0, 1) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenSchedule(most_removed=(0.05, 1.0)), "most_removed"),
        (lambda: TokenSchedule(gap=(-0.1, 0.3)), "gap"),
        (lambda: TokenSchedule(least_removed=(0.2, 0.5)), "above most_removed"),
        (lambda: FixedSchedule(0), "keep=0"),
        (lambda: FixedSchedule(16), "keep=16"),
    ],
)
def test_impossible_schedules_are_refused(make, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        make()
