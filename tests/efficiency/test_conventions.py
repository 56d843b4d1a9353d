"""Published numbers, to the digits that were published."""

from __future__ import annotations

from typing import Any

import pytest

import foveal
from foveal.efficiency import Load, cost, model_shape
from foveal.efficiency.conventions import (
    EPIC_ROWS,
    epic_cache,
    epic_flops,
    fastv_flops,
    llm_viewer,
)

MB, T, TENTH = 1e6, 1e12, 0.05


@pytest.fixture(scope="module")
def small() -> Any:
    return model_shape("llava-hf/llava-1.5-7b-hf")


@pytest.fixture(scope="module")
def large() -> Any:
    return model_shape("llava-hf/llava-1.5-13b-hf")


def test_the_exact_numbers_beside_epics(small: Any) -> None:
    for method, cache, prefill in ((None, 334.5, 8.64), (foveal.DART(keep=64, layer=2), 82.8, 2.10)):
        exact = cost(small, method, Load(text=62))
        all_logits = 2 * exact.rows[-1] * small.width * small.vocabulary
        assert sum(exact.cache) / MB == pytest.approx(cache, abs=TENTH)
        assert (sum(exact.layers) + all_logits) / T == pytest.approx(prefill, abs=TENTH / 10)


@pytest.mark.parametrize(
    ("visual", "published"),
    [(576, 9.3), (256, 4.4), (128, 2.5), (64, 1.5), (36, 1.1), (18, 0.8), (9, 0.7), (2, 0.6)],
)
def test_epics_curve_of_flops(visual: int, published: float, small: Any) -> None:
    assert epic_flops(small, visual) / T == pytest.approx(published, abs=TENTH)


def test_epics_cache_as_far_as_it_can_be_reproduced(small: Any) -> None:
    assert epic_cache(small, 576) / MB == pytest.approx(367.2, abs=TENTH)
    assert epic_cache(small, 1) / MB == pytest.approx(0.6375, abs=TENTH / 1000)
    assert epic_cache(small, 64) / MB == pytest.approx(40.80, abs=0.005)  # 40.9 is published
    row = epic_cache(small, 576) / EPIC_ROWS
    assert 78 * row / MB == pytest.approx(40.9, abs=TENTH)
    assert [round(rows * row / MB, 1) for rows in (700, 701)] == [367.0, 367.5]


def test_fastvs_flops(large: Any) -> None:
    plain = fastv_flops(large, [612] * 40)
    halved = fastv_flops(large, [612] * 2 + [612 - 288] * 38)
    assert plain / 1e9 == pytest.approx(154.6, abs=TENTH)
    assert halved / 1e9 == pytest.approx(84.6, abs=TENTH)
    assert round(100 * (1 - halved / plain)) == 45
    exact = cost(large, None, Load(text=36))
    assert 0.38 < plain * 40 / sum(exact.layers) < 0.41


def test_prumerges_roofline(small: Any) -> None:
    plain, merged = llm_viewer(small, 699), llm_viewer(small, 70)
    assert plain.flops / T == pytest.approx(9.3, abs=TENTH)
    assert plain.seconds * 1e3 == pytest.approx(88.6, abs=TENTH)
    assert merged.flops / T == pytest.approx(0.91, abs=TENTH / 10)
    assert merged.seconds * 1e3 == pytest.approx(15.42, abs=0.005)  # 15.3 is published
    assert llm_viewer(small, 576 + 30).flops / T < 8.1  # the text that 70 rows leave beside 40 visual tokens
    assert llm_viewer(small, 40 + 123).flops / T > 2.1  # the text that 699 rows leave beside 576


def test_trims_shares_are_near_the_same_roofline(small: Any) -> None:
    plain, trimmed = llm_viewer(small, 576 + 123), llm_viewer(small, 121 + 123)
    assert 1 - trimmed.seconds / plain.seconds == pytest.approx(0.660, abs=0.0005)  # 0.67 is published
    assert 1 - trimmed.bytes / plain.bytes == pytest.approx(0.323, abs=0.0005)  # 0.30 is published


@pytest.mark.parametrize(("keep", "average"), [(36, 69.75), (64, 96), (128, 156), (192, 216), (256, 276)])
def test_tokens_of_an_average_layer(keep: int, average: float, small: Any) -> None:
    """What VisionZip's and PyramidDrop's tables call a number of tokens."""
    assert cost(small, foveal.FastV(keep=keep, layer=2)).average_visual == average


def test_pyramiddrops_average(small: Any) -> None:
    assert cost(small, foveal.PyramidDrop(keep=72)).average_visual == (576 + 288 + 144 + 72) / 4
