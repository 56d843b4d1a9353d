"""Two runs on the same questions: differences with intervals, McNemar's test, and the questions that flipped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveal.errors import FovealError
from foveal.evaluation.intervals import Estimate, bootstrap, mcnemar, paired_difference
from foveal.suite.answers import Answer
from foveal.suite.benchmarks import Benchmark, average
from foveal.suite.harness import SuiteRun

__all__ = ["Difference", "Pair", "average_difference", "by_category", "difference", "flips", "pairs"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """A question and what two runs made of it."""

    before: Answer
    after: Answer

    @property
    def change(self) -> float:
        """Score won, or lost where negative."""
        return self.after.score - self.before.score


@dataclass(frozen=True)
class Difference:
    """What a second run scores more than a first, in the benchmark's published unit.

    Attributes:
        value: second minus first.
        low: end of the 95 % interval; None where there are too few questions for one.
        high: the other end.
        questions: how many both answered.
        better: those that the second answered better.
        worse: those that it answered worse.
        p: of McNemar's exact test on `better` and `worse`; None of an average over benchmarks.
    """

    value: float
    low: float | None
    high: float | None
    questions: int
    better: int
    worse: int
    p: float | None


def pairs(before: SuiteRun, after: SuiteRun, column: str) -> list[Pair]:
    """The questions of a benchmark, as both runs answered them.

    Raises:
        FovealError: they answered different questions.
    """
    first = [answer for answer in before.answers if answer.benchmark == column]
    second = {answer.id: answer for answer in after.answers if answer.benchmark == column}
    if {answer.id for answer in first} != set(second):
        raise FovealError(
            f"{column}: two runs can only be compared on the same questions: use the same data and --limit for both"
        )
    return [Pair(answer, second[answer.id]) for answer in first]


def flips(before: SuiteRun, after: SuiteRun, column: str) -> list[Pair]:
    """The questions whose score changed."""
    return [pair for pair in pairs(before, after, column) if pair.change]


def by_category(before: SuiteRun, after: SuiteRun, column: str) -> dict[str, Estimate]:
    """The difference of mean scores in each category, as fractions, sorted by name."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs(before, after, column):
        groups.setdefault(pair.before.category, []).append(pair)
    return {name: _mean_difference(group) for name, group in sorted(groups.items())}


def _mean_difference(found: Sequence[Pair]) -> Estimate:
    return paired_difference([pair.before.score for pair in found], [pair.after.score for pair in found])


def difference(before: SuiteRun, after: SuiteRun, benchmark: Benchmark) -> Difference:
    """How the score of a benchmark differs.

    Means have Bonett and Price's interval. Others have the paired bootstrap's: POPE's F1 by question, MME's score by
    picture, whose two questions belong together, within each category.

    Raises:
        FovealError: the runs answered different questions.
    """
    found = pairs(before, after, benchmark.column)
    value = after.scores[benchmark.column] - before.scores[benchmark.column]
    better, worse = sum(pair.change > 0 for pair in found), sum(pair.change < 0 for pair in found)
    low, high = _interval(found, benchmark) or (None, None)
    return Difference(value, low, high, len(found), better, worse, mcnemar(better, worse))


def _interval(found: Sequence[Pair], benchmark: Benchmark) -> tuple[float, float] | None:
    """In the published unit."""
    if benchmark.column == "mme":
        return _mme_interval(found)
    if any("f1" in metric for metric in benchmark.metrics):
        ends = bootstrap([_counts(pair) for pair in found], [""] * len(found), _f1_difference)
    else:
        mean = _mean_difference(found)
        ends = (mean.low, mean.high)
    return None if ends is None else (benchmark.scale * ends[0], benchmark.scale * ends[1])


def _counts(pair: Pair) -> list[float]:
    """Whether yes is right, said and both, in each run; what is neither yes nor no is not missed, as in lmms-eval."""
    counts: list[float] = []
    for answer in (pair.before, pair.after):
        true, said = answer.answers[0].strip().lower(), answer.prediction.strip().lower()
        counts += [true == "yes" and said in ("yes", "no"), said == "yes", true == said == "yes"]
    return counts


def _f1_difference(means: Floats) -> Floats:
    return _f1(means[:, 0, 3:]) - _f1(means[:, 0, :3])


def _f1(means: Floats) -> Floats:
    true, said, both = means.T
    found: Floats = 2 * both / np.maximum(true + said, 1e-12)
    return found


def _mme_interval(found: Sequence[Pair]) -> tuple[float, float] | None:
    """Of the sum over categories."""
    pictures: dict[tuple[str, str], list[Pair]] = {}
    for pair in found:
        pictures.setdefault((pair.before.category, _picture(pair.before)), []).append(pair)
    changes = [
        [_worth([p.after for p in two]) - _worth([p.before for p in two])] for two in pictures.values()
    ]
    return bootstrap(changes, [category for category, _ in pictures], lambda means: means[:, :, 0].sum(1))


def _worth(answers: Sequence[Answer]) -> float:
    """MME's points of a picture: accuracy of its questions, and 100 more if all are right."""
    right = sum(answer.score for answer in answers)
    return 100 * right / len(answers) + 100 * (right == len(answers))


def _picture(answer: Answer) -> str:
    """The name before the row's number."""
    return answer.id.rpartition("#")[0]


def average_difference(differences: Mapping[str, Difference], suite: Sequence[Benchmark]) -> Difference:
    """How EPIC's Avg differs.

    The columns' intervals are independent, and join by Zou and Donner's (2008) MOVER.

    Args:
        differences: by column, all of the suite's.
        suite: the ten benchmarks.
    """
    value = average({column: each.value for column, each in differences.items()})
    low = high = 0.0
    for benchmark in suite:
        each, weight = differences[benchmark.column], 1 / (len(suite) * benchmark.divisor)
        low += math.inf if each.low is None else (weight * (each.value - each.low)) ** 2
        high += math.inf if each.high is None else (weight * (each.high - each.value)) ** 2
    known = math.isfinite(low)
    better, worse = (
        sum(getattr(each, name) for each in differences.values()) for name in ("better", "worse")
    )
    return Difference(
        value,
        value - math.sqrt(low) if known else None,
        value + math.sqrt(high) if known else None,
        sum(each.questions for each in differences.values()),
        better,
        worse,
        None,
    )
