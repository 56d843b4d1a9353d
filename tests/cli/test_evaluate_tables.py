from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from foveal.cli import evaluate_tables
from foveal.cli.evaluate_tables import Cell, print_grid, refusals
from foveal.evaluation import EvaluationResult, Record


def result(right: int, kept: float | None = None) -> EvaluationResult:
    records = tuple(
        Record(str(number), "", "", "exact", "?", ("yes",), "yes", float(number < right))
        for number in range(10)
    )
    return EvaluationResult(records, kept_per_image=kept)


CELLS = [
    Cell("none", None, result=result(9)),
    Cell("dart", 16, result=result(5, 16.0)),
    Cell("dart", 0.5, result=result(8, 72.0)),
    Cell("fastv", 16, result=result(3, 16.0)),
    Cell("fastv", 0.5, result=result(8, 72.0)),
    Cell("pooling", 16, refusal="too few"),
    Cell("pooling", 0.5, result=result(7, 70.25)),
    Cell("tome", 16, refusal="too few"),
    Cell("tome", 0.5, refusal="too [many]"),
]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, highlight=False)
    monkeypatch.setattr(evaluate_tables, "screen", lambda: console)
    print_grid(CELLS, [16, 0.5])
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_best_of_each_budget_is_bold(printed: str) -> None:
    bold = re.findall(r"\x1b\[1m([0-9.]+) \(", printed)
    assert bold == ["50.0", "80.0", "80.0"]


def test_strays_and_refusals(printed: str) -> None:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed).splitlines()
    rows = {line.split()[0]: line for line in plain if line.strip()}
    assert rows["pooling"].split() == ["pooling", "-", "70.0", "(39.7..89.2)*", "-/-"]
    assert rows["16"].split() == ["16", "0.5", "(72)", "a", "layer", "sees"]
    assert plain[-3:] == [
        "* kept another number of tokens than asked: pooling 70.2 (0.5)",
        "- pooling, tome (16): too few",
        "- tome (0.5): too [many]",
    ]


def test_the_same_reason_is_given_once() -> None:
    cells = [Cell(name, keep, refusal="no") for name in ("a", "b") for keep in (9, 16)]
    assert refusals(cells) == ["a, b (9 16): no"]


def test_an_automatic_budget_says_what_it_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=100)
    monkeypatch.setattr(evaluate_tables, "screen", lambda: console)
    print_grid([CELLS[0], Cell("trim", "auto", result=result(5, 12.5))], ["auto"])
    assert isinstance(console.file, io.StringIO)
    assert "trim 12.5 (auto)" in console.file.getvalue()
