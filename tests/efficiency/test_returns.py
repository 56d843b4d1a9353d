from __future__ import annotations

from functools import cache

import pytest

from foveal.compressors import DART, FastV
from foveal.efficiency import Load, ModelShape, model_shape
from foveal.efficiency.hardware import GIB, HARDWARE, Hardware
from foveal.efficiency.returns import (
    QUANTITIES,
    Area,
    Case,
    area,
    curve,
    ladder,
    paying_batch,
    products_alone,
    serving,
)

LLAVA = "llava-hf/llava-1.5-7b-hf"
METHOD = DART(keep=64)


@cache
def shape_of(name: str) -> ModelShape:
    return model_shape(name)


def case_of(hardware: str = "a100", name: str = LLAVA, **load: int) -> Case:
    return Case(shape_of(name), Load(**load), HARDWARE[hardware])  # type: ignore[arg-type]


def test_the_ladder_goes_down_to_one_token() -> None:
    assert ladder(576)[:8] == [576, 432, 288, 216, 144, 108, 72, 54]
    for visual in (1, 2, 144, 577, 1024):
        steps = ladder(visual)
        assert (steps[0], steps[-1]) == (visual, 1)
        assert steps == sorted(set(steps), reverse=True)


def test_areas_of_a_straight_line() -> None:
    """Keys and values are linear in tokens: (576 - n) / 575 is 75 % up to 144 tokens, and 90 % up to 58."""
    assert area(case_of(), METHOD, QUANTITIES["cache"]) == Area(high=144, low=58)


def test_areas_agree_with_epics_figure() -> None:
    """Its "high ROI" is at 128 and 64 tokens, its "low ROI" at 36 and below."""
    found = area(case_of(), METHOD, QUANTITIES["flops"])
    assert found == Area(high=147, low=59)
    assert [found.of(visual) for visual in (576, 256, 128, 64, 36, 9)] == [
        "",
        "",
        "high",
        "high",
        "low",
        "low",
    ]


def test_bandwidth_cuts_the_curve_off() -> None:
    """One sample's prefill waits for the weights from some 140 tokens on; eight samples' does not."""
    one, eight = (area(case_of(batch=batch), METHOD, QUANTITIES["time"]) for batch in (1, 8))
    assert one is not None
    assert eight is not None
    assert one.low > 130
    assert abs(eight.low - 59) <= 1
    times = [point.times.first_token for point in curve(case_of(), METHOD, [64, 32, 1])]
    assert max(times) / min(times) < 1.01


def test_nothing_to_mark_where_nothing_is_saved() -> None:
    """A mixture of experts reads all of its 61 GB whatever is kept."""
    case = case_of("h100", "Qwen/Qwen3-VL-30B-A3B-Instruct", visual=1024)
    assert area(case, METHOD, QUANTITIES["time"]) is None


def test_the_curve_is_the_methods_at_each_budget() -> None:
    case = case_of()
    points = curve(case, FastV(keep=1, layer=3), [576, 64])
    assert [point.visual for point in points] == [576, 64]
    assert points[1].cost.visual == (576,) * 3 + (64,) * 29
    assert points[1] == case.at(FastV(keep=64, layer=3))


@pytest.mark.parametrize(
    ("hardware", "name", "visual"),
    [("a100", LLAVA, 576), ("h200", LLAVA, 576), ("h100", "Qwen/Qwen3-VL-30B-A3B-Instruct", 1024)],
)
def test_the_batch_at_which_it_pays(hardware: str, name: str, visual: int) -> None:
    """It is the first whose prefill gains 90 % of what its products alone allow."""

    def share(batch: int) -> float:
        case = case_of(hardware, name, visual=visual, batch=batch)
        gained = case.at(None).times.prefill / case.at(METHOD).times.prefill
        return gained / products_alone(case, METHOD)

    batch = paying_batch(case_of(hardware, name, visual=visual), METHOD)
    assert batch is not None
    assert batch > 1
    assert share(batch) >= 0.9 > share(batch - 1)


def test_no_batch_pays_where_experts_are_many_and_bandwidth_is_little() -> None:
    slow = Hardware("slow", 80, bandwidth=1e6, peak=1e15)
    case = Case(shape_of("Qwen/Qwen3-VL-30B-A3B-Instruct"), Load(visual=1024), slow)
    assert paying_batch(case, METHOD) is None


def test_no_batch_pays_where_nothing_is_dropped() -> None:
    assert paying_batch(case_of(), DART(keep=576)) is None


def test_products_alone_gain_what_flops_do() -> None:
    """But for the half of attention that a causal mask hides."""
    case = case_of()
    flops = case.at(None).cost.prefill / case.at(METHOD).cost.prefill
    assert products_alone(case, METHOD) == pytest.approx(flops, rel=0.02)


@pytest.mark.parametrize("method", [None, METHOD])
def test_the_largest_batch_is_the_largest_that_fits(method: DART | None) -> None:
    found = serving(case_of("rtx4090"), method)
    room = 0.9 * 24 * GIB
    assert case_of(batch=found.batch).at(method).cost.memory <= room
    assert case_of(batch=found.batch + 1).at(method).cost.memory > room
    times = case_of("rtx4090", batch=found.batch).at(method).times
    assert found.rate == pytest.approx(found.batch / times.answer)


def test_a_model_that_does_not_fit() -> None:
    found = serving(case_of("t4", "llava-hf/llava-1.5-13b-hf"), None)
    assert (found.batch, found.rate) == (0, 0)
