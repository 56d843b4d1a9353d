"""Made-up runs of a suite, scored as lmms-eval would."""

from __future__ import annotations

import random
from collections.abc import Sequence

from foveal.suite.answers import Answer
from foveal.suite.benchmarks import SUITES, Benchmark
from foveal.suite.harness import SuiteRun

QUESTIONS = 40
_CATEGORIES = ("existence", "count")


def answer(column: str, number: int, truth: str, said: str, category: str = "", picture: str = "") -> Answer:
    return Answer(
        benchmark=column,
        id=f"{picture}#{number}" if picture else str(number),
        question=f"is <question> {number} of {column} right?",
        answers=(truth,),
        prediction=said,
        score=float(truth.lower() == said),
        category=category,
        row=number,
    )


def answers(column: str, skill: float, seed: int, questions: int = QUESTIONS) -> list[Answer]:
    """Of a model that knows a share `skill` of the answers; the truth is the same for every seed."""
    truths, draw = random.Random(column), random.Random(f"{column} {seed}")
    found = []
    for number in range(questions):
        truth = "yes" if truths.random() < 0.5 else "no"
        wrong = "no" if truth == "yes" else "yes"
        said = truth if draw.random() < skill else wrong
        category = _CATEGORIES[number // 2 % 2] if column in ("mme", "pope") else ""
        picture = f"{category}/{number // 2}.png" if column == "mme" else ""
        found.append(answer(column, number, truth, said, category, picture))
    return found


def score(benchmark: Benchmark, found: Sequence[Answer]) -> float:
    """By the definitions, spelled out."""
    if benchmark.column == "mme":
        return mme(found)
    if benchmark.column == "pope":
        return 100 * f1(found)
    return benchmark.scale * sum(each.score for each in found) / len(found)


def f1(found: Sequence[Answer]) -> float:
    hits = sum(each.answers[0] == each.prediction == "yes" for each in found)
    said = sum(each.prediction == "yes" for each in found)
    true = sum(each.answers[0] == "yes" for each in found)
    return 2 * hits / (said + true) if said + true else 0.0


def mme(found: Sequence[Answer]) -> float:
    total = 0.0
    for category in {each.category for each in found}:
        pictures: dict[str, list[float]] = {}
        for each in found:
            if each.category == category:
                pictures.setdefault(each.id.partition("#")[0], []).append(each.score)
        points = [100 * sum(two) / 2 + 100 * (sum(two) == 2) for two in pictures.values()]
        total += sum(points) / len(points)
    return total


def run(
    method: str, keep: int | float | None, skill: float, seed: int, columns: Sequence[str] | None = None
) -> SuiteRun:
    wanted = [b for b in SUITES["epic10"] if columns is None or b.column in columns]
    found = {benchmark.column: answers(benchmark.column, skill, seed) for benchmark in wanted}
    scores = {benchmark.column: score(benchmark, found[benchmark.column]) for benchmark in wanted}
    settings = {"method": method, **({"keep": keep, "layer": 2} if keep is not None else {}), "limit": None}
    kept = None if keep is None else 64.0
    return SuiteRun(
        settings,
        scores,
        {"mme_perception": scores["mme"]} if "mme" in scores else {},
        tuple(each for one in found.values() for each in one),
        kept,
        None if kept is None else 96.0,
        1.0,
        {"command": "foveal eval"},
    )


def three(columns: Sequence[str] | None = None) -> tuple[SuiteRun, ...]:
    """All tokens, and two methods that lose something."""
    return (
        run("none", None, 0.95, 0, columns),
        run("dart", 64, 0.85, 1, columns),
        run("fastv", 64, 0.65, 2, columns),
    )
