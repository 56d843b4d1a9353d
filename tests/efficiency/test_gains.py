from __future__ import annotations

import random
from dataclasses import replace
from math import log
from typing import Any

import pytest

import foveal
from foveal.efficiency import Load, cost, model_shape
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
    prefill,
    spread,
    untouched,
)
from foveal.efficiency.hardware import Hardware
from foveal.efficiency.roofline import roofline
from foveal.efficiency.timeline import HEAD, PARTS, PROJECTOR, REST, SELECTION, TEXT_TOWER, TOWER
from support import tiny

NOTHING = dict.fromkeys(PARTS, 0.0)


def seen(first: list[float], parts: dict[str, float], following: float = 1.0) -> Seen:
    return Seen(
        first, [following] * len(first), [each + 2 * following for each in first], [NOTHING | parts] * 3, 1
    )


PLAIN = seen([10, 10, 12], {TOWER: 3, PROJECTOR: 1, REST: 1, HEAD: 1, "layer 0": 2, "layer 1": 2})
SHORT = seen(
    [5, 4, 6], {TOWER: 2, PROJECTOR: 1, REST: 1.5, HEAD: 1, SELECTION: 0.5, "layer 0": 2, "layer 1": 0.5}
)


def test_a_median_and_where_the_true_one_lies() -> None:
    """By the sign test: of 9 values one may be left out at either end (4 % of fair coins), of 8 none with two (7 %)."""
    assert spread([7]) == Spread(7, 7, 7)
    assert spread([5, 1, 2, 4, 3]) == Spread(3, 1, 5)
    assert spread([1, 2, 3, 4, 5, 6]) == Spread(3.5, 1, 6)
    assert spread(range(9)) == Spread(4, 1, 7)
    assert spread(range(8)) == Spread(3.5, 0, 7)
    assert spread(range(100)) == Spread(49.5, 39, 60)
    assert spread(range(9)).noise == 3


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    draw = random.Random(0)
    found = [spread([draw.expovariate(1) for _ in range(15)]) for _ in range(2000)]
    share = sum(each.low <= log(2) <= each.high for each in found) / len(found)
    assert 0.95 < share < 0.98


@pytest.mark.parametrize(("low", "high", "noise"), [(0.9, 1.1, True), (1.01, 1.3, False), (0.7, 0.99, False)])
def test_a_gain_within_the_noise(low: float, high: float, noise: bool) -> None:
    assert Gain(Spread((low + high) / 2, low, high), 2.0, 2.0).in_noise is noise


def test_the_prefill_is_layers_head_and_selection() -> None:
    assert prefill(SHORT.parts[0]) == 2 + 0.5 + 1 + 0.5
    assert SHORT.medians() == {
        TOWER: 2, TEXT_TOWER: 0, PROJECTOR: 1, SELECTION: 0.5, REST: 1.5, PREFILL: 3.5,
    }  # fmt: skip


def test_the_bound_by_own_layers() -> None:
    prices = {100: [2.0, 2.0], 20: [0.5, 0.25]}
    assert own_bound(PLAIN, (100, 20), prices) == (2 + 2 + 1) / (2 + 0.25 + 1)
    assert own_bound(PLAIN, (20, 20), prices) == (2 + 2 + 1) / (0.5 + 0.25 + 1)


def test_gains_are_medians_of_rounds_and_not_of_times() -> None:
    shape = model_shape(tiny.llava())
    load = Load(text=8, answer=3)
    costs = cost(shape, None, load), cost(shape, foveal.DART(keep=4), load)
    device = Hardware("a device", 1, 1e9, 1e9)
    times = roofline(costs[0], shape, load, device), roofline(costs[1], shape, load, device)
    gains = compare(PLAIN, SHORT, costs, times, own=1.5)
    assert gains["first_token"].measured.median == 2.0  # of 2, 2.5 and 2
    assert gains["prefill"].measured.median == 5 / 4
    assert gains["answer"].measured.median == pytest.approx(14 / 8)  # of 12/7, 2 and 14/8
    assert gains["next_token"].measured.median == 1.0
    assert gains["prefill"].flops == costs[0].prefill / costs[1].prefill
    assert gains["answer"].flops == costs[0].total / costs[1].total
    assert gains["first_token"].roofline == times[0].first_token / times[1].first_token
    assert gains["next_token"].roofline == times[0].next_token / times[1].next_token
    assert gains["prefill"].realised == pytest.approx(1.25 / 1.5)
    assert gains["first_token"].realised == 2.0 / gains["first_token"].flops
    assert gains["next_token"].flops is None


def test_what_is_left_of_the_parts_around_the_decoder() -> None:
    shares = untouched(PLAIN, SHORT, preprocessing=10)
    assert shares == {PREPROCESSING: 0.5, TOWER: 0.1, PROJECTOR: 0.05, REST: 0.05}
    assert ceiling(shares) == pytest.approx(1 / 0.7)
    assert ceiling({}) == float("inf")


def gains(flops: float, own: float, measured: float = 2.0) -> dict[str, Any]:
    one = Gain(Spread(measured, measured, measured), flops, flops, own)
    return {"first_token": replace(one, own_layers=None), "prefill": one}


def test_the_reasons_in_words() -> None:
    assert explanation(PLAIN, SHORT, gains(4.0, 2.5), preprocessing=10) == (
        (
            "preprocessing, the vision tower, the projector and what runs around the model's parts are 70 % of the "
            "time from the picture to the first token and stay: 1.4x at most"
        ),
        "choosing tokens adds 2 %",
        "layers are less efficient on fewer rows: here the prefill can be 2.50x, not the 4.00x of its FLOPs",
    )


def test_only_reasons_that_count() -> None:
    plain = seen([100], {TOWER: 40, REST: 1, "layer 0": 59})
    short = seen([60], {TOWER: 40, REST: 1, "layer 0": 19, TEXT_TOWER: 5, SELECTION: 1})
    assert explanation(plain, short, gains(3.0, 2.99), preprocessing=0) == (
        "the vision tower is 40 % of the time to the first token and stays: 2.5x at most",
        "the text tower adds 5 %",
    )


def test_nothing_to_explain() -> None:
    plain, short = seen([100], {"layer 0": 100}), seen([50], {"layer 0": 50})
    assert explanation(plain, short, gains(2.0, 2.0), preprocessing=0) == ()
