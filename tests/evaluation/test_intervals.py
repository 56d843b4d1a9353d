import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal import FovealError
from foveal.evaluation.intervals import bootstrap, estimate, mcnemar, paired_difference, wilson


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [  # from Newcombe (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_published_values(successes: int, total: int, low: float, high: float) -> None:
    assert wilson(successes, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_at_the_ends() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == pytest.approx(1.0)
    assert wilson(5, 10, confidence=0.99)[0] < wilson(5, 10)[0]


@given(st.integers(1, 2000), st.floats(0, 1))
def test_wilson_holds_the_rate_and_mirrors(total: int, share: float) -> None:
    successes = round(share * total)
    low, high = wilson(successes, total)
    assert 0 <= low <= successes / total + 1e-12
    assert successes / total - 1e-12 <= high <= 1
    mirrored = wilson(total - successes, total)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high))


@pytest.mark.parametrize(("successes", "total", "confidence"), [(-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0)])
def test_wilson_refuses_what_is_no_proportion(successes: float, total: int, confidence: float) -> None:
    with pytest.raises(FovealError):
        wilson(successes, total, confidence)


def test_estimate() -> None:
    result = estimate([1.0, 0.0, 1.0, 1.0])
    assert (result.value, result.count) == (0.75, 4)
    assert (result.low, result.high) == wilson(3, 4)
    assert str(result) == "75.0 (30.1..95.4)"
    assert estimate([]).value == 0.0


def test_paired_difference_by_hand() -> None:
    # 100 questions, 12 gained, 4 lost: the mean is 0.08; Bonett and Price pad to 13 and 5 of 102.
    before = [0.0] * 12 + [1.0] * 4 + [1.0] * 84
    after = [1.0] * 12 + [0.0] * 4 + [1.0] * 84
    result = paired_difference(before, after)
    center = (13 - 5) / 102
    spread = 1.959964 * math.sqrt(((13 + 5) / 102 - center**2) / 102)
    assert result.value == pytest.approx(0.08)
    assert (result.low, result.high) == pytest.approx((center - spread, center + spread), abs=1e-6)


def test_paired_difference_stays_honest_when_nothing_changed() -> None:
    result = paired_difference([1.0] * 50, [1.0] * 50)
    assert result.value == 0
    assert result.low < 0 < result.high


def test_paired_difference_swaps_sign_with_its_arguments() -> None:
    one, two = [1.0, 0.0, 0.3], [0.0, 1.0, 1.0]
    forth, back = paired_difference(one, two), paired_difference(two, one)
    assert (forth.value, forth.low, forth.high) == pytest.approx((-back.value, -back.high, -back.low))


def test_paired_difference_needs_pairs() -> None:
    with pytest.raises(FovealError, match="2 and 1 scores"):
        paired_difference([1.0, 0.0], [1.0])


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (5, 0), (0, 5), (7, 2), (6, 6), (30, 11)])
def test_mcnemar_equals_the_binomial_sum(better: int, worse: int) -> None:
    changed = better + worse
    tail = sum(math.comb(changed, count) for count in range(min(better, worse) + 1))
    assert mcnemar(better, worse) == pytest.approx(float(min(Fraction(1), Fraction(2 * tail, 2**changed))))


def test_mcnemar_of_thousands_of_changes() -> None:
    """Where the coefficients exceed any float; the normal approximation is good there."""
    better, worse = 10_200, 9_800
    z = (better - worse - 1) / math.sqrt(better + worse)
    assert mcnemar(better, worse) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


def mean(means: np.ndarray) -> np.ndarray:
    return means[:, :, 0].sum(axis=1)


def test_the_bootstrap_of_a_mean_equals_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = bootstrap([[value] for value in values], [""] * 400, mean, draws=20_000)
    assert found is not None
    half = 1.96 * values.std(ddof=1) / 20
    assert found == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_the_bootstrap_draws_within_strata() -> None:
    """What differs between strata only has no spread; drawn from all it would have."""
    units, strata = [[0.0]] * 20 + [[5.0]] * 10, ["a"] * 20 + ["b"] * 10
    assert bootstrap(units, strata, mean) == (5.0, 5.0)
    low, high = bootstrap(units, [""] * 30, mean) or (0.0, 0.0)
    assert low < 5 / 3 < high


def test_small_strata_do_not_look_surer_than_they_are() -> None:
    """Two units each: drawing two of two, the spread would be half as large as it is."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=800)
    strata = [str(place // 2) for place in range(800)]
    low, high = bootstrap([[value] for value in values], strata, mean) or (0.0, 0.0)
    assert (high - low) / (2 * 1.96) == pytest.approx(math.sqrt(400 / 2), rel=0.1)


def test_the_bootstrap_needs_two_units_of_each_stratum() -> None:
    assert bootstrap([[1.0], [2.0], [3.0]], ["a", "a", "b"], mean) is None


def test_the_same_seed_gives_the_same_interval() -> None:
    units = [[float(value)] for value in range(30)]
    assert bootstrap(units, [""] * 30, mean) == bootstrap(units, [""] * 30, mean)
    assert bootstrap(units, [""] * 30, mean) != bootstrap(units, [""] * 30, mean, seed=1)
