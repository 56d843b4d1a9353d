"""Several runs of a suite side by side: against the first of them, and beside published rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from foveal.errors import FovealError
from foveal.evaluation.intervals import Estimate, estimate
from foveal.suite.benchmarks import SUITES, Benchmark, average, benchmarks
from foveal.suite.harness import SuiteRun
from foveal.suite.paired import Difference, average_difference, by_category, difference
from foveal.suite.published import WHOLE, PublishedRow, published_rows, rows_beside

__all__ = ["AVERAGE", "Comparison", "average_of", "published_name"]

AVERAGE = "avg"
_TEN = SUITES["epic10"]


def average_of(scores: Mapping[str, float]) -> float | None:
    """EPIC's Avg; None unless all ten of its benchmarks were scored."""
    return average(scores) if all(benchmark.column in scores for benchmark in _TEN) else None


def published_name(row: PublishedRow) -> str:
    """What tables call a published row."""
    return row.method if row.visual_tokens == WHOLE else f"{row.method}, {row.visual_tokens}"


@dataclass(frozen=True)
class Comparison:
    """Runs on the same questions, and what they are held against.

    Attributes:
        suite: names of suites and benchmarks, see `foveal.suite.benchmarks.benchmarks`.
        runs: in the order of tables; the others are compared with the first.
        whole: visual tokens of a picture with no compression.
        apart: why published rows are not of the same kind, such as "another model"; empty where they are.
        subtract: whether differences from published rows are told; they mean something where nothing is `apart`.
    """

    suite: str
    runs: tuple[SuiteRun, ...]
    whole: float
    apart: str = ""
    subtract: bool = True

    def __post_init__(self) -> None:
        if not self.runs:
            raise FovealError("there are no runs to compare: name at least one method")

    @cached_property
    def benchmarks(self) -> tuple[Benchmark, ...]:
        """The columns."""
        return benchmarks(self.suite)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What tables call the runs: method and budget, and the layer where it takes that to tell them apart."""
        short = [_name(run.settings) for run in self.runs]
        twice = {name for name, count in Counter(short).items() if count > 1}
        return tuple(
            f"{name}, layer {run.settings.get('layer')}" if name in twice else name
            for name, run in zip(short, self.runs, strict=True)
        )

    @cached_property
    def published(self) -> tuple[PublishedRow, ...]:
        """The whole model's row, and those nearest to the runs' budgets, in the order of the papers' tables."""
        wanted = {id(row) for kept in (None, *(run.kept for run in self.runs)) for row in self.near(kept)}
        return tuple(row for row in published_rows() if id(row) in wanted)

    def near(self, kept: float | None) -> tuple[PublishedRow, ...]:
        """The published rows at a run's budget."""
        return rows_beside(kept, self.whole)

    @cached_property
    def differences(self) -> tuple[dict[str, Difference], ...]:
        """Of every run but the first, from the first: by column, and Avg as `AVERAGE` where all ten are there."""
        return tuple(self._differences(run) for run in self.runs[1:])

    def _differences(self, run: SuiteRun) -> dict[str, Difference]:
        found = {each.column: difference(self.runs[0], run, each) for each in self.benchmarks}
        if average_of(run.scores) is None:
            return found
        ten = {benchmark.column: found[benchmark.column] for benchmark in _TEN}
        return found | {AVERAGE: average_difference(ten, _TEN)}

    def categories(self, column: str) -> dict[str, tuple[Estimate, ...]]:
        """The share of questions that each run answers rightly, by category; nothing where there is but one."""
        names = sorted({answer.category for answer in self.runs[0].answers if answer.benchmark == column})
        if len(names) < 2:
            return {}
        return {name: tuple(_share(run, column, name) for run in self.runs) for name in names}

    def category_differences(self, column: str) -> dict[str, tuple[Estimate, ...]]:
        """How those shares differ from the first run's, in every run but the first."""
        found = [by_category(self.runs[0], run, column) for run in self.runs[1:]]
        return {name: tuple(each[name] for each in found) for name in self.categories(column)}

    def record(self) -> dict[str, Any]:
        """All of it but the answers, ready for JSON."""
        return {
            "suite": self.suite,
            "visual_tokens": self.whole,
            "published_rows_are_of": self.apart,
            "runs": [self._run(place) for place in range(len(self.runs))],
            "published": [
                {**asdict(row), "name": published_name(row), "seen": row.seen} for row in self.published
            ],
        }

    def _run(self, place: int) -> dict[str, Any]:
        run = self.runs[place]
        found: dict[str, Any] = {
            "name": self.names[place],
            "settings": run.settings,
            "scores": run.scores,
            "average": average_of(run.scores),
            "extra": run.extra,
            "categories": self._by_category(self.categories, place),
            "kept": run.kept,
            "seen": run.seen,
            "seconds": run.seconds,
            "provenance": run.provenance,
        }
        if place:
            differences = self.differences[place - 1]
            found["against_the_first"] = {column: asdict(each) for column, each in differences.items()}
            found["categories_against_the_first"] = self._by_category(self.category_differences, place - 1)
        return found

    def _by_category(
        self, estimates: Callable[[str], dict[str, tuple[Estimate, ...]]], place: int
    ) -> dict[str, dict[str, Any]]:
        """By column and category, as fractions; only of columns with several categories."""
        found = {
            each.column: {name: asdict(values[place]) for name, values in estimates(each.column).items()}
            for each in self.benchmarks
        }
        return {column: categories for column, categories in found.items() if categories}


def _name(settings: Mapping[str, Any]) -> str:
    if settings["method"] == "none":
        return "all tokens"
    keep = settings.get("keep")
    return f"{settings['method']}, {keep:.3g}" if isinstance(keep, float) else f"{settings['method']}, {keep}"


def _share(run: SuiteRun, column: str, category: str) -> Estimate:
    return estimate(
        [each.score for each in run.answers if (each.benchmark, each.category) == (column, category)]
    )
