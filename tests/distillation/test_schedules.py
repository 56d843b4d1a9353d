"""Schedules: bounds, ends, draws."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal import FovealError
from foveal.distillation import (
    SCHEDULES,
    EpicConfig,
    FixedSchedule,
    IntegratedSchedule,
    LayerSchedule,
    Plan,
    TokenSchedule,
    WithoutTeacher,
    even_layers,
    progress,
)

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


@given(t=times, seed=st.integers(0, 2**32))
def test_the_released_code_differs_from_the_paper(t: float, seed: int) -> None:
    plan = TokenSchedule.released().plan(t, random.Random(seed))
    removed = 1 - plan.student
    assert 0.1 + 0.16 * t - 1e-9 <= removed <= 0.1 + 0.64 * t + 1e-9
    assert plan.teacher == pytest.approx(1 - max(0, removed - min(0.1 + 0.5 * t, 0.3)))


def test_lcd_goes_from_the_deepest_layer_to_the_shallowest() -> None:
    """Round(32 - 30 t), and at 32 nothing is compressed and nobody teaches."""
    schedule = LayerSchedule(32)
    assert schedule.plan(0.0, random.Random(0)) == Plan(student=1.0, teacher=None, layer=None)
    for t, layer in ((0.1, 29), (0.25, 25), (0.5, 17), (0.99, 2), (1.0, 2)):
        assert schedule.plan(t, random.Random(0)).layer == layer
    steps = [schedule.plan(t / 1000, random.Random(0)).layer or 32 for t in range(1001)]
    assert steps == sorted(steps, reverse=True)
    assert set(steps) == set(range(2, 33))


@given(t=times, seed=st.integers(0, 2**32))
def test_lcd_draws_from_one_range_throughout(t: float, seed: int) -> None:
    plan = LayerSchedule(8, first_layer=7).plan(t, random.Random(seed))
    removed = 1 - plan.student
    assert 0.2 - 1e-9 <= removed <= 0.9 + 1e-9
    assert plan.teacher == pytest.approx(1 - max(0, removed - (0.05 + 0.25 * t)))


@pytest.mark.parametrize("resets", [True, False])
@pytest.mark.parametrize("t", [0.0, 0.1, 0.26, 0.49, 0.5, 0.8, 1.0])
def test_icd_runs_tcd_anew_at_each_layer(t: float, resets: bool) -> None:
    schedule = IntegratedSchedule(8, (7, 5, 3, 2), gap_resets=resets)
    place, within = (3, 1.0) if t == 1 else (int(4 * t), 4 * t % 1)
    plan = schedule.plan(t, random.Random(3))
    alone = TokenSchedule().plan(within, random.Random(3))
    assert plan.layer == (7, 5, 3, 2)[place]
    assert plan.student == pytest.approx(alone.student)
    gap = 0.05 + 0.25 * (within if resets else t)
    assert plan.teacher == pytest.approx(min(1, plan.student + gap))


def test_even_layers_reach_both_ends() -> None:
    assert even_layers(32, 2, 4) == (32, 22, 12, 2)
    assert even_layers(8, 2, 7) == (8, 7, 6, 5, 4, 3, 2)
    assert even_layers(3, 2, 2) == (3, 2)


def test_without_a_teacher_the_students_are_the_same() -> None:
    schedule = LayerSchedule(8)
    for t in (0.3, 0.7, 1.0):
        plan, alone = (s.plan(t, random.Random(1)) for s in (schedule, WithoutTeacher(schedule)))
        assert (alone.student, alone.layer, alone.teacher) == (plan.student, plan.layer, None)
        assert plan.teacher is not None


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_by_name(name: str, tmp_path: Path) -> None:
    """What every name stands for, at the end of training and half way."""
    config = EpicConfig(output_dir=str(tmp_path), schedule=name, keep=0.25, layer=2, use_cpu=True)
    schedule = config.make_schedule(8)
    half, end = ([schedule.plan(t, random.Random(seed)) for seed in range(200)] for t in (0.5, 1.0))
    taught = name not in ("direct", "none") and not name.endswith("no-distill")
    assert all((plan.teacher is not None) == taught for plan in end)
    assert {plan.layer for plan in end} == (
        {2} if name.startswith(("lcd", "icd")) else {None}
    ) or name == "icd-no-progress"
    removed = [1 - plan.student for plan in end]
    if name in ("direct", "none") or (name.endswith("no-progress") and not name.startswith("lcd")):
        assert removed == pytest.approx([0.0 if name == "none" else 0.75] * 200)
        assert half[0].student == end[0].student
    else:
        low, high = {"lcd": (0.2, 0.9), "tcd-released": (0.26, 0.74)}.get(
            "tcd-released" if "released" in name else name[:3], (0.5, 0.9)
        )
        assert min(removed) == pytest.approx(low, abs=0.02)
        assert max(removed) == pytest.approx(high, abs=0.02)
    moved = {"lcd": 5, "icd": 4}.get(name[:3]) if not name.endswith("no-progress") else None
    if moved:
        assert {plan.layer for plan in half} == {moved}


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
        (lambda: LayerSchedule(8, first_layer=9), "layers 9, 2 must go from deep to shallow, between 8"),
        (lambda: LayerSchedule(8, last_layer=-1), "layers 8, -1"),
        (lambda: LayerSchedule(8, removed=(0.9, 0.2)), "lower bound"),
        (lambda: IntegratedSchedule(8, (2, 5)), "layers 2, 5"),
        (lambda: IntegratedSchedule(8, ()), "layers"),
        (lambda: even_layers(4, 2, 4), "pass 2 to 3"),
        (lambda: FixedSchedule(0), "keep=0"),
        (lambda: FixedSchedule(16), "keep=16"),
    ],
)
def test_impossible_schedules_are_refused(make, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        make()
