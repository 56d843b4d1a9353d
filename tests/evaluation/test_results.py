from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from foveal import FovealError
from foveal.evaluation import EvaluationResult, Record, append_row, write_json


def record(number: int, score: float, **changes: str) -> Record:
    values = {"type": "count", "subset": "", "metric": "exact", "prediction": "1", "error": "", **changes}
    return Record(id=str(number), question="?", answers=("yes",), score=score, **values)


RESULT = EvaluationResult(
    (
        record(1, 1.0),
        record(2, 0.0, type="color"),
        record(3, 1.0, type="existence", subset="random", metric="pope", prediction="yes"),
        record(4, 0.0, type="existence", subset="popular", metric="pope", prediction="no"),
        record(5, 0.0, error="cannot read it"),
    ),
    {"method": "none"},
    {"seed": 0},
    1.23456,
)


def test_scores_leave_out_what_was_never_asked() -> None:
    assert (RESULT.accuracy.value, RESULT.accuracy.count) == (0.5, 4)
    assert {name: found.value for name, found in RESULT.by_type.items()} == {
        "color": 0,
        "count": 1,
        "existence": 0.5,
    }
    assert [item.id for item in RESULT.unreadable] == ["5"]


def test_pope_in_total_and_by_subset() -> None:
    assert set(RESULT.pope) == {"existence"}
    assert list(RESULT.pope["existence"]) == ["total", "popular", "random"]
    assert RESULT.pope["existence"]["total"].recall == 0.5
    assert RESULT.pope["existence"]["popular"].yes_rate == 0


def test_the_row_is_json_and_complete() -> None:
    row = json.loads(json.dumps(RESULT.row()))
    assert row["settings"] == {"method": "none"}
    assert row["accuracy"]["count"] == 4
    assert row["by_type"]["color"]["value"] == 0
    assert row["pope"]["existence"]["random"]["accuracy"] == 1
    assert row["unreadable"] == {"5": "cannot read it"}
    assert (row["seconds"], row["provenance"]) == (1.235, {"seed": 0})
    assert row["kept_per_image"] is None
    assert EvaluationResult((), kept_per_image=16.0).row()["kept_per_image"] == 16


def test_difference_is_paired_and_signed() -> None:
    better = EvaluationResult(tuple(record(number, 1.0) for number in (1, 2, 3, 4)))
    assert better.difference(RESULT).value == 0.5
    assert RESULT.difference(better).value == -0.5
    with pytest.raises(FovealError, match="the same questions"):
        better.difference(EvaluationResult((record(9, 1.0),)))


def test_rows_are_appended_whole_by_parallel_writers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: append_row(path, {"number": number, "文": "x" * 5000}), range(64)))
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert sorted(row["number"] for row in rows) == list(range(64))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, [object()])
    assert json.loads(path.read_text()) == [1]
    assert list(tmp_path.iterdir()) == [path]
