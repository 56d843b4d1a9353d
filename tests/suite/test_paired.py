from __future__ import annotations

import random
from dataclasses import replace

import pytest

import foveal
from foveal.evaluation.intervals import mcnemar, paired_difference
from foveal.suite.answers import Answer
from foveal.suite.benchmarks import BENCHMARKS, SUITES
from foveal.suite.comparison import Comparison
from foveal.suite.harness import SuiteRun
from foveal.suite.paired import average_difference, by_category, difference, flips, pairs
from support import suites


def of(column: str, found: list[Answer]) -> SuiteRun:
    return SuiteRun({"method": "none"}, {column: suites.score(BENCHMARKS[column], found)}, {}, tuple(found))


def test_a_mean_has_the_paired_interval_in_its_unit() -> None:
    one, two = suites.three(["ocrbench"])[:2]
    found = difference(one, two, BENCHMARKS["ocrbench"])
    expected = paired_difference([a.score for a in one.answers], [a.score for a in two.answers])
    assert (found.value, found.low, found.high) == pytest.approx(
        (1000 * expected.value, 1000 * expected.low, 1000 * expected.high)
    )
    assert found.questions == suites.QUESTIONS
    assert found.p == mcnemar(found.better, found.worse)
    gained = sum(late.score > early.score for early, late in zip(one.answers, two.answers, strict=True))
    assert found.better == gained


@pytest.mark.parametrize("column", ["mme", "pope"])
def test_the_interval_of_a_sum_holds_the_difference(column: str) -> None:
    one, _, three = suites.three([column])
    found = difference(one, three, BENCHMARKS[column])
    assert found.value == three.scores[column] - one.scores[column]
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    back = difference(three, one, BENCHMARKS[column])
    assert back.value == -found.value
    assert back.low == pytest.approx(-found.high, abs=0.15 * (found.high - found.low))


def test_mme_needs_two_pictures_of_each_category() -> None:
    """One picture says nothing about how much pictures differ."""
    one, two = (suites.answers("mme", skill, seed)[:6] for skill, seed in ((0.9, 0), (0.5, 1)))
    found = difference(of("mme", one), of("mme", two), BENCHMARKS["mme"])
    assert (found.low, found.high) == (None, None)


# Both runs answer a question alike with chance 0.6, else each for itself.
def drawn(
    column: str, truth: list[Answer], skills: tuple[float, float], seed: int
) -> tuple[SuiteRun, SuiteRun]:
    draw = random.Random(seed)
    said: tuple[list[Answer], list[Answer]] = ([], [])
    for question in truth:
        shared = draw.random() if draw.random() < 0.6 else None
        for side, skill in zip(said, skills, strict=True):
            right = (draw.random() if shared is None else shared) < skill
            yes = (question.answers[0] == "yes") == right
            side.append(replace(question, prediction="yes" if yes else "no", score=float(right)))
    return of(column, said[0]), of(column, said[1])


@pytest.mark.parametrize("column", ["mme", "pope", "gqa"])
def test_95_of_100_intervals_hold_the_true_difference(column: str) -> None:
    """The truth is what a hundred times as many questions say."""
    skills = (0.85, 0.75)
    many = suites.answers(column, 1.0, 0, 20_000)
    first, second = drawn(column, many, skills, -1)
    true = second.scores[column] - first.scores[column]
    truth, rounds = suites.answers(column, 1.0, 0, 200), 100
    held = 0
    for seed in range(rounds):
        found = difference(*drawn(column, truth, skills, seed), BENCHMARKS[column])
        assert found.low is not None
        assert found.high is not None
        held += found.low <= true <= found.high
    assert 0.9 <= held / rounds <= 0.99


def test_pairs_are_found_by_name_not_by_place() -> None:
    one, two = suites.three(["gqa"])[:2]
    mixed = replace(two, answers=two.answers[::-1])
    assert pairs(one, mixed, "gqa") == pairs(one, two, "gqa")
    assert all(pair.before.id == pair.after.id for pair in pairs(one, mixed, "gqa"))


def test_other_questions_are_refused() -> None:
    one, two = suites.three(["gqa"])[:2]
    with pytest.raises(foveal.FovealError, match="gqa: two runs can only be compared on the same questions"):
        difference(one, replace(two, answers=two.answers[1:]), BENCHMARKS["gqa"])


def test_flips_both_ways() -> None:
    one, two = suites.three(["gqa"])[:2]
    found = flips(one, two, "gqa")
    expected = difference(one, two, BENCHMARKS["gqa"])
    assert sum(pair.change > 0 for pair in found) == expected.better > 0
    assert sum(pair.change < 0 for pair in found) == expected.worse > 0
    assert len(found) == expected.better + expected.worse


def test_categories_add_up() -> None:
    one, two = suites.three(["pope"])[:2]
    found = by_category(one, two, "pope")
    assert list(found) == ["count", "existence"]
    gained = sum(pair.change for pair in pairs(one, two, "pope"))
    assert sum(each.value * each.count for each in found.values()) == pytest.approx(gained)


def test_the_averages_interval_is_narrower_than_the_columns() -> None:
    """Ten independent columns of equal width: the average's is about a tenth of ten, divided by the root of ten."""
    comparison = Comparison("epic10", suites.three(), 576)
    found = comparison.differences[0]
    ten = {column: each for column, each in found.items() if column != "avg"}
    average = average_difference(ten, SUITES["epic10"])
    assert average == found["avg"]
    assert average.p is None
    whole, part = comparison.runs[:2]
    weights = {benchmark.column: benchmark.divisor for benchmark in SUITES["epic10"]}
    expected = sum((part.scores[c] - whole.scores[c]) / weights[c] for c in weights) / 10
    assert average.value == pytest.approx(expected)
    assert average.low is not None
    halves = [(each.value - (each.low or 0)) / weights[column] for column, each in ten.items()]
    assert average.value - average.low == pytest.approx(sum(half**2 for half in halves) ** 0.5 / 10)


def test_an_average_with_an_unknown_part_has_no_interval() -> None:
    ten = dict(Comparison("epic10", suites.three(), 576).differences[0])
    ten.pop("avg")
    ten["mme"] = replace(ten["mme"], low=None, high=None)
    average = average_difference(ten, SUITES["epic10"])
    assert (average.low, average.high) == (None, None)
