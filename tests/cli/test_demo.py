from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import foveal.mini
from foveal.cli import demo_study
from foveal.evaluation import EvaluationResult, Record

TINY = demo_study.Plan(questions=12, budgets=(9,), steps=2, batch_size=2)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    """The demo at its smallest, on a random model."""
    monkeypatch.setattr(demo_study, "QUICK", TINY)
    monkeypatch.setattr(foveal.mini, "weights_path", lambda: checkpoint)


@pytest.mark.usefixtures("tiny")
def test_the_demo_from_start_to_report(run: Any, tmp_path: Path) -> None:
    ran = run("demo", "--quick", "--out", tmp_path / "report")
    assert ran.code == 0
    for part in (
        "all 144 tokens",
        "DART, 16",
        "FastV, 16",
        "Random, 16",
        "before",
        "plain",
        "EPIC",
        "are not just more training",
    ):
        assert part in " ".join(ran.out.split())
    files = {path.name for path in (tmp_path / "report").iterdir()}
    assert files == {"report.html", "results.json", "accuracy.png", "example-1.png", "example-2.png"}
    page = (tmp_path / "report" / "report.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 3
    rows = json.loads((tmp_path / "report" / "results.json").read_text("utf-8"))
    assert [row["model"] for row in rows] == ["before"] * 5 + ["plain"] * 5 + ["EPIC"] * 5
    assert {row["accuracy"]["count"] for row in rows} == {12}


@pytest.mark.usefixtures("tiny")
def test_json_is_all_of_stdout(run: Any, tmp_path: Path) -> None:
    found = json.loads(run("demo", "--quick", "--json", "--out", tmp_path).out)
    assert found["report"] == str(tmp_path / "report.html")
    assert len(found["results"]) == 15


def test_the_plan_keeps_its_promises() -> None:
    assert demo_study.Plan().questions >= 300


def scored(right: int) -> EvaluationResult:
    scores = [1.0] * right + [0.0] * (100 - right)
    return EvaluationResult(
        tuple(Record(str(n), "", "", "exact", "?", ("a",), "a", score) for n, score in enumerate(scores))
    )


def outcome(compressed: int, full: int) -> demo_study.Outcome:
    return demo_study.Outcome({("dart", 16): scored(compressed), ("none", 144): scored(full)})


def test_the_verdict_gives_epic_only_what_plain_training_did_not() -> None:
    verdict = demo_study.Study(TINY, outcome(50, 90), outcome(60, 90), outcome(75, 84)).verdict()
    assert "EPIC changed accuracy by +25.0" in verdict
    assert "equally many steps by +10.0" in verdict
    assert "So +15.0" in verdict
    assert "With all tokens EPIC changed it by -6.0" in verdict
    assert "cannot tell" not in verdict


def test_the_verdict_admits_noise() -> None:
    study = demo_study.Study(TINY, outcome(50, 90), outcome(60, 90), outcome(61, 90))
    assert "cannot tell" in study.verdict()
