"""How sure a score is: Wilson intervals for one accuracy, paired ones and tests for the difference of two."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from foveal.errors import FovealError

__all__ = ["Estimate", "bootstrap", "estimate", "mcnemar", "paired_difference", "wilson"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval: `value`, `low` and `high` are fractions, `count` the questions behind them."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} ({100 * self.low:.1f}..{100 * self.high:.1f})"

    def points(self) -> str:
        """The same with signs, for differences in percentage points: "+3.1 (+0.4..+5.8)"."""
        return f"{100 * self.value:+.1f} ({100 * self.low:+.1f}..{100 * self.high:+.1f})"


def wilson(successes: float, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a proportion, as (low, high) within [0, 1]; (0, 1) when `total` is 0.

    `successes` may be a sum of partial credits (VQA accuracy); the interval is then wider than it need be.
    """
    if not 0 < confidence < 1:
        raise FovealError(f"confidence is {confidence}, but must lie between 0 and 1, such as 0.95")
    if not 0 <= successes <= total:
        raise FovealError(
            f"{successes} successes of {total} questions: the number must lie between 0 and {total}"
        )
    if total == 0:
        return 0.0, 1.0
    z2 = _z(confidence) ** 2
    rate = successes / total
    center = rate + z2 / (2 * total)
    spread = math.sqrt(z2 * (rate * (1 - rate) + z2 / (4 * total)) / total)
    scale = 1 + z2 / total
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


def estimate(scores: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The mean of scores in [0, 1] with its Wilson interval; 0 with the interval (0, 1) for no scores."""
    total = sum(scores)
    return Estimate(
        total / len(scores) if scores else 0.0, *wilson(total, len(scores), confidence), len(scores)
    )


def paired_difference(before: Sequence[float], after: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The mean of `after - before` over the same questions in the same order, with its interval.

    The interval is Bonett and Price's (2012): it adds one win and one loss to the questions, and so stays honest when
    few answers changed.

    Raises:
        FovealError: the two differ in length.
    """
    if len(before) != len(after):
        raise FovealError(
            f"{len(before)} and {len(after)} scores cannot be paired: evaluate the same questions"
        )
    differences = [late - early for early, late in zip(before, after, strict=True)]
    padded = [*differences, 1.0, -1.0]
    center = math.fsum(padded) / len(padded)
    variance = math.fsum((value - center) ** 2 for value in padded) / len(padded)
    spread = _z(confidence) * math.sqrt(variance / len(padded))
    value = math.fsum(differences) / len(differences) if differences else 0.0
    return Estimate(value, max(-1.0, center - spread), min(1.0, center + spread), len(differences))


def mcnemar(better: int, worse: int) -> float:
    """McNemar's exact test (the sign test): how often two equal runs would differ at least as one-sidedly.

    Args:
        better: questions that only the second run answered, or answered better.
        worse: the opposite.

    Returns:
        the two-sided p-value; 1 where nothing changed.
    """
    changed = better + worse
    # Logarithms: the binomial coefficients of thousands of changes exceed any float.
    whole = math.lgamma(changed + 1) - changed * math.log(2)
    tail = math.fsum(
        math.exp(whole - math.lgamma(count + 1) - math.lgamma(changed - count + 1))
        for count in range(min(better, worse) + 1)
    )
    return min(1.0, 2 * tail)


def bootstrap(
    units: Sequence[Sequence[float]],
    strata: Sequence[str],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    confidence: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """The percentile bootstrap interval of a statistic of means.

    Units are drawn anew within their stratum, one less than there are (Rao and Wu, 1988), without which small strata
    would look surer than they are.

    Args:
        units: (units, features) what is drawn: questions, or pairs of them, with what the statistic needs of each.
        strata: of each unit, such as a category whose size is fixed.
        statistic: (draws, strata, features) means within strata, in order of their names, to (draws,) values.
        confidence: of the interval.
        draws: how many.
        seed: the same seed, the same interval.

    Returns:
        (low, high); None where a stratum has a single unit, which says nothing about its spread.
    """
    generator = np.random.default_rng(seed)
    values, names = np.asarray(units, np.float64), np.asarray(strata)
    means = []
    for name in np.unique(names):
        # Equal units are drawn together: how often each kind comes up is multinomial.
        kinds, counts = np.unique(values[names == name], axis=0, return_counts=True)
        size = int(counts.sum())
        if size < 2:
            return None
        means.append(generator.multinomial(size - 1, counts / size, draws) @ kinds / (size - 1))
    drawn = statistic(np.stack(means, axis=1))
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)
