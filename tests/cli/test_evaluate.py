from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import foveal
from foveal.cli.progress import EvaluationBar
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
    ran = run(
        "eval", "--questions", mine, "--model", checkpoint, "--method", "none,random", "--keep", "16,1/4"
    )
    assert ran.code == 0
    for part in ("all tokens", "random, 16", "random, 0.25", "questions/s"):
        assert part in ran.out


def test_several_values_after_an_option(run: Any, checkpoint: Path, mine: Path) -> None:
    methods = ("--method", "random", "pooling", "none")
    ran = run("eval", *methods, "--keep", "16,", "47", "--questions", mine, "--model", checkpoint, "--json")
    found = [(row["settings"]["method"], row["settings"].get("keep")) for row in json.loads(ran.out)]
    assert found == [("random", 16), ("random", 47), ("pooling", 16), ("pooling", 47), ("none", None)]
    assert [row["kept_per_image"] for row in json.loads(ran.out)] == [16, 47, 16, 45, None]


def test_each_method_has_a_layer_of_its_own_by_default(run: Any, checkpoint: Path, mine: Path) -> None:
    common = ("eval", "--questions", mine, "--model", checkpoint, "--keep", "9", "--json")
    rows = json.loads(run(*common, "--method", "dart", "divprune", "pyramiddrop").out)
    assert [row["settings"].get("layer") for row in rows] == [2, 0, None]
    rows = json.loads(run(*common, "--method", "dart", "divprune", "--layer", 1).out)
    assert [row["settings"]["layer"] for row in rows] == [1, 1]


def test_positions_are_each_methods_own_or_those_given(run: Any, checkpoint: Path, mine: Path) -> None:
    common = (
        "eval",
        "--questions",
        mine,
        "--model",
        checkpoint,
        "--keep",
        "9",
        "--method",
        "dart",
        "divprune",
        "--json",
    )
    rows = json.loads(run(*common).out)
    assert [row["settings"]["positions"] for row in rows] == ["original", "packed"]
    assert [row["seen_per_layer"] for row in rows] == [(2 * 144 + 2 * 9) / 4, 9]
    rows = json.loads(run(*common, "--positions", "original").out)
    assert [row["settings"]["positions"] for row in rows] == ["original", "original"]


def test_rows_with_provenance_go_to_a_file(run: Any, checkpoint: Path, mine: Path, tmp_path: Path) -> None:
    out, predictions = tmp_path / "results.jsonl", tmp_path / "predictions.jsonl"
    for _ in range(2):
        arguments = ("--method", "none,dart", "--keep", "9", "--out", out, "--predictions", predictions)
        ran = run("eval", "--questions", mine, "--model", checkpoint, *arguments, "--json", "--limit", 3)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["settings"]["method"] for row in rows] == ["none", "dart"] * 2
    assert rows[1]["settings"]["keep"] == 9
    assert rows[0]["data"] == "mine.jsonl"
    assert rows[0]["accuracy"]["count"] == 3
    assert rows[0]["provenance"]["command"].startswith("foveal eval --questions")
    assert [row["settings"] for row in json.loads(ran.out)] == [row["settings"] for row in rows[2:]]
    said = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert len(said) == 12
    assert {"prediction", "score", "id", "settings"} <= set(said[0])


def test_one_json_file(run: Any, checkpoint: Path, mine: Path, tmp_path: Path) -> None:
    run(
        "eval", "--questions", mine, "--model", checkpoint, "--method", "none", "--out", tmp_path / "all.json"
    )
    assert json.loads((tmp_path / "all.json").read_text())[0]["settings"]["method"] == "none"


def test_each_question_has_a_metric_of_its_own(run: Any, checkpoint: Path, mine: Path) -> None:
    rows = [json.loads(line) for line in mine.read_text().splitlines()]
    for row, metric in zip(rows, ("exact", "vqa", "pope", "choice"), strict=True):
        row.update(metric=metric, type=metric)
    mine.write_text("\n".join(map(json.dumps, rows)))
    ran = run("eval", "--questions", mine, "--model", checkpoint, "--method", "none", "--json")
    assert set(json.loads(ran.out)[0]["by_type"]) == {"exact", "vqa", "pope", "choice"}


@pytest.mark.parametrize("data", ["scenes", "easy-vqa"])
def test_built_in_data(run: Any, checkpoint: Path, data: str) -> None:
    ran = run("eval", "--data", data, "--model", checkpoint, "--method", "none", "--limit", 20, "--json")
    row = json.loads(ran.out)[0]
    assert row["accuracy"]["count"] == 20
    assert len(row["by_type"]) == (10 if data == "scenes" else 1)


def test_an_unreadable_image_is_reported(run: Any, checkpoint: Path, mine: Path) -> None:
    (mine.parent / "2.png").write_bytes(b"")
    ran = run("eval", "--questions", mine, "--model", checkpoint, "--method", "none")
    assert ran.code == 0
    assert "not scored: question 3" in ran.out
    assert "2.png" in ran.out.replace("\n", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "nune"], "unknown method 'nune'"),
        (["--keep", "16,x"], "--keep x"),
        (["--questions", "gone.jsonl"], "no such file: gone.jsonl"),
        (["--questions", "a.jsonl", "--data", "scenes"], "--questions and --data: pass one of them"),
        (["--keep", ","], "--keep: pass at least one"),
        (["--method", ","], "--method: name at least one"),
        (["--method", "dart", "tome", "--layer", "3"], "--layer 3: tome drops tokens before the decoder"),
        (["--method", "dart", "--keep", "auto"], 'keep="auto" needs a method'),
        (["--all-methods", "--method", "dart"], "leave --method out"),
        (["--all-methods", "--keep", "16", "0"], "keep=0 must be at least 1"),
    ],
)
def test_what_is_refused(run: Any, options: list[str], message: str) -> None:
    ran = run("eval", *options)
    assert ran.code == 2
    assert len(ran.err.strip().splitlines()) == 1
    assert message in ran.err


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A handful of methods, of every kind; "tome" cannot leave 9 tokens in a tower this shallow."""
    names = ("dart", "pooling", "tome", "trim")
    monkeypatch.setattr("foveal.compressors.available", lambda: names)
    return names


def test_all_methods_in_one_table(
    run: Any, checkpoint: Path, mine: Path, tmp_path: Path, few: tuple[str, ...]
) -> None:
    common = ("eval", "--all-methods", "--keep", "72", "9", "--questions", mine, "--model", checkpoint)
    ran = run(*common, "--out", tmp_path / "rows.jsonl")
    assert ran.code == 0, ran.err
    first, whole, head, *lines = (line for line in ran.out.splitlines() if line.strip())
    assert "on 4 questions" in first
    assert whole.startswith("all tokens")
    assert head.split() == ["72", "9", "a", "layer", "sees"]
    assert [line.split()[0] for line in lines[:4]] == list(few)
    cells = {line.split()[0]: line.split()[1:] for line in lines[:4]}
    assert cells["trim"] == ["-", "-", "-/-"]
    assert len(cells["tome"]) == 4  # a score, its interval, a dash, and what a layer sees
    assert cells["tome"][-2:] == ["-", "72/-"]
    assert len(cells["dart"]) == 5
    assert cells["dart"][-1] == "108/76"  # layers 0 and 1 of 4 see all 144
    reasons = "\n".join(lines[4:])
    assert "- trim (72 9): no text tower" in reasons
    assert "- tome (9): keep=9 cannot be reached" in reasons
    assert "another number of tokens" not in reasons

    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    found = [(row["settings"]["method"], row["settings"].get("keep")) for row in rows]
    assert found == [("none", None), ("dart", 72), ("dart", 9), ("pooling", 72), ("pooling", 9), ("tome", 72)]
    assert all(row["provenance"]["command"].startswith("foveal eval --all-methods") for row in rows)


@pytest.mark.usefixtures("few")
def test_a_number_of_tokens_that_was_not_asked_for_is_named(run: Any, checkpoint: Path, mine: Path) -> None:
    common = ("eval", "--all-methods", "--questions", mine, "--model", checkpoint)
    lines = run(*common, "--keep", "47", "1/9").out.splitlines()
    pooling = next(line for line in lines if line.startswith("pooling"))
    dart = next(line for line in lines if line.startswith("dart"))
    assert pooling.count("*") == 1
    assert "*" not in dart
    assert "* kept another number of tokens than asked: pooling 45 (47)" in lines
    assert any(line.split()[:3] == ["47", "0.111", "(16)"] for line in lines)


@pytest.mark.usefixtures("few")
def test_a_narrow_screen_gets_several_tables(run: Any, checkpoint: Path, mine: Path) -> None:
    common = ("eval", "--all-methods", "--questions", mine, "--model", checkpoint)
    lines = run(*common, "--keep", "48", "32", "16", columns=60).out.splitlines()
    table = [line for line in lines if not line.startswith("- ")]
    assert max(map(len, table)) <= 60
    heads = [line.split()[:-3] for line in table if line.endswith("a layer sees")]
    assert heads == [["48", "32"], ["16"]]
    assert sum(line.startswith("dart") for line in table) == 2


@pytest.mark.usefixtures("few")
def test_refusals_beside_json(run: Any, checkpoint: Path, mine: Path) -> None:
    ran = run("eval", "--all-methods", "--keep", "9", "--questions", mine, "--model", checkpoint, "--json")
    assert [row["settings"]["method"] for row in json.loads(ran.out)] == ["none", "dart", "pooling"]
    assert [line.split()[:2] for line in ran.err.splitlines()] == [["foveal:", "tome"], ["foveal:", "trim"]]


def test_what_was_asked_for_by_name_must_work(run: Any, checkpoint: Path, mine: Path) -> None:
    ran = run("eval", "--method", "dart", "trim", "--keep", "9", "--questions", mine, "--model", checkpoint)
    assert (ran.code, ran.out) == (2, "")
    assert "no text tower" in ran.err


@pytest.mark.usefixtures("few")
def test_a_failure_keeps_the_rows_before_it(
    run: Any, checkpoint: Path, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a defect")

    monkeypatch.setattr(foveal.AveragePooling, "choose", broken)
    out = tmp_path / "rows.json"
    with pytest.raises(RuntimeError, match="a defect"):
        run("eval", "--all-methods", "--keep", "9", "--questions", mine, "--model", checkpoint, "--out", out)
    assert [row["settings"]["method"] for row in json.loads(out.read_text())] == ["none", "dart"]


def test_every_method_works_on_the_bundled_model(run: Any) -> None:
    ran = run("eval", "--all-methods", "--keep", "16", "--limit", "2", "--json")
    assert ran.err == ""
    rows = json.loads(ran.out)
    assert [row["settings"]["method"] for row in rows] == ["none", *foveal.available()]
    assert {row["kept_per_image"] for row in rows[1:]} == {16}


@pytest.mark.usefixtures("few")
def test_the_bar_ends_at_its_end(
    run: Any, checkpoint: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was refused on the way."""
    left = []

    class Watched(EvaluationBar):
        def __exit__(self, *error: object) -> None:
            left.append(self.left)
            super().__exit__(*error)

    monkeypatch.setattr("foveal.cli.progress.EvaluationBar", Watched)
    run("eval", "--all-methods", "--keep", "72", "9", "--questions", mine, "--model", checkpoint)
    assert left == [0]
