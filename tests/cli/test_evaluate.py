from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support import vlm


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    for number in range(4):
        vlm.picture(number).save(tmp_path / f"{number}.png")
    rows = [
        {"image": f"{number}.png", "question": "is it a cat?", "answer": "yes", "type": "ab"[number % 2]}
        for number in range(4)
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_table_of_methods_and_budgets(run: Any, checkpoint: Path, mine: Path) -> None:
    ran = run("eval", "--data", mine, "--model", checkpoint, "--method", "none,random", "--keep", "16,1/4")
    assert ran.code == 0
    for part in ("all tokens", "random, 16", "random, 0.25", "questions/s"):
        assert part in ran.out


def test_rows_with_provenance_go_to_a_file(run: Any, checkpoint: Path, mine: Path, tmp_path: Path) -> None:
    out, predictions = tmp_path / "results.jsonl", tmp_path / "predictions.jsonl"
    for _ in range(2):
        arguments = ("--method", "none,dart", "--keep", "9", "--out", out, "--predictions", predictions)
        ran = run("eval", "--data", mine, "--model", checkpoint, *arguments, "--json", "--limit", 3)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["settings"]["method"] for row in rows] == ["none", "dart"] * 2
    assert rows[1]["settings"]["keep"] == 9
    assert rows[0]["data"] == "mine.jsonl"
    assert rows[0]["accuracy"]["count"] == 3
    assert rows[0]["provenance"]["command"].startswith("foveal eval --data")
    assert [row["settings"] for row in json.loads(ran.out)] == [row["settings"] for row in rows[2:]]
    said = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert len(said) == 12
    assert {"prediction", "score", "id", "settings"} <= set(said[0])


def test_one_json_file(run: Any, checkpoint: Path, mine: Path, tmp_path: Path) -> None:
    run("eval", "--data", mine, "--model", checkpoint, "--method", "none", "--out", tmp_path / "all.json")
    assert json.loads((tmp_path / "all.json").read_text())[0]["settings"]["method"] == "none"


@pytest.mark.parametrize("data", ["scenes", "easy-vqa"])
def test_built_in_data(run: Any, checkpoint: Path, data: str) -> None:
    ran = run("eval", "--data", data, "--model", checkpoint, "--method", "none", "--limit", 20, "--json")
    row = json.loads(ran.out)[0]
    assert row["accuracy"]["count"] == 20
    assert len(row["by_type"]) == (10 if data == "scenes" else 1)


def test_an_unreadable_image_is_reported(run: Any, checkpoint: Path, mine: Path) -> None:
    (mine.parent / "2.png").write_bytes(b"")
    ran = run("eval", "--data", mine, "--model", checkpoint, "--method", "none")
    assert ran.code == 0
    assert "not scored: question 3" in ran.out
    assert "2.png" in ran.out.replace("\n", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "nune"], "unknown method 'nune'"),
        (["--keep", "16,x"], "--keep x"),
        (["--data", "gone.jsonl"], "no such file: gone.jsonl"),
    ],
)
def test_what_is_refused(run: Any, options: list[str], message: str) -> None:
    ran = run("eval", *options)
    assert ran.code == 2
    assert len(ran.err.strip().splitlines()) == 1
    assert message in ran.err
