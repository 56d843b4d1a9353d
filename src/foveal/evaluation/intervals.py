"""How sure a score is: Wilson intervals for one accuracy, paired intervals for the difference of two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from foveal.errors import FovealError

__all__ = ["Estimate", "estimate", "paired_difference", "wilson"]


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


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)
