"""`foveal eval --suite` without lmms-eval: what is refused, and what is printed and written of given runs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

import foveal
from foveal.evaluation.chat import Chat
from support import suites, vlm


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "epic11"], "no suite or benchmark is called 'epic11'"),
        (["--suite", "epic10", "--tasks", "chess"], "--tasks chess: epic10 has vqav2, gqa"),
        (["--suite", "epic10", "--format", "word"], "--format word: pass one of table, markdown"),
        (["--suite", "epic10", "--format", "csv", "--json"], "--json and --format csv: pass one of them"),
        (["--suite", "epic10", "--out", "rows.jsonl"], "--out rows.jsonl: a suite writes several files"),
        (["--suite", "epic10", "--questions", "mine.jsonl"], "--questions does not go with --suite"),
        (["--suite", "epic10", "--predictions", "all.jsonl"], "--predictions does not go with --suite"),
        (["--tasks", "pope"], "--tasks belongs to --suite"),
        (["--online"], "--online belongs to --suite"),
        (["--format", "latex"], "--format belongs to --suite"),
        (["--differences"], "--differences belongs to --suite"),
    ],
)
def test_what_is_refused(run: Any, options: list[str], message: str) -> None:
    ran = run("eval", *options)
    assert ran.code == 2
    assert len(ran.err.strip().splitlines()) == 1
    assert message in ran.err


def test_without_lmms_eval_the_command_that_installs_it_is_named(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ran = run("eval", "--suite", "epic10")
    assert ran.code == 2
    assert "pip install" in ran.err
    assert len(ran.err.strip().splitlines()) == 1


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for lmms-eval: notes what was asked and hands back made-up runs."""
    calls: list[dict[str, Any]] = []
    made = {run.settings["method"]: run for run in suites.three()}

    def run_suite(model: Any, processor: Any, methods: Any, suite: str, data: Any, **options: Any) -> Any:
        calls.append({"methods": methods, "suite": suite, "data": data, **options})
        if any(isinstance(method, foveal.TRIM) for method in methods):
            raise foveal.FovealError("no text tower")
        return [made["none" if method is None else method.card.name] for method in methods]

    def read_chats(model: Any, suite: str, data: Any, answers: Any, **_: Any) -> list[Chat]:
        text = {"type": "text", "text": "a cat?"}
        return [
            Chat([{"role": "user", "content": [{"type": "image", "image": vlm.picture(0)}, text]}], "a cat?")
            for _ in answers
        ]

    monkeypatch.setattr("foveal.suite.lmms_environment.check_installed", lambda: None)
    monkeypatch.setattr("foveal.suite.harness.run_suite", run_suite)
    monkeypatch.setattr("foveal.suite.kept_pictures.read_chats", read_chats)
    return calls


@pytest.fixture
def suite(run: Any, checkpoint: Path, tmp_path: Path, asked: list[dict[str, Any]]) -> Any:
    def command(*options: object) -> Any:
        return run("eval", "--suite", "epic10", "--model", checkpoint, "--data", tmp_path, *options)

    return command


def test_the_table(suite: Any, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    ran = suite("--method", "none", "dart", "--keep", 64, "--limit", 20)
    assert ran.code == 0, ran.err
    lines = {line.split("  ")[0]: line.split() for line in ran.out.splitlines() if line.strip()}
    assert lines["all tokens"][2:4] == ["144", "144"]
    assert lines["dart, 64"][2:4] == ["64", "96"]
    assert "LLaVA-v1.5" in lines
    assert "another model" in ran.out
    assert "against all tokens" in ran.out
    call = asked[0]
    assert [getattr(method, "keep", None) for method in call["methods"]] == [None, 64]
    assert (call["suite"], call["data"], call["limit"]) == ("epic10", tmp_path, 20)
    assert (call["max_new_tokens"], call["online"], call["out"]) == (None, False, None)


def test_some_benchmarks(suite: Any, asked: list[dict[str, Any]]) -> None:
    suite("--method", "none", "--tasks", "pope,mme", "--format", "csv")
    assert asked[0]["suite"] == "pope,mme"


@pytest.mark.parametrize(
    ("form", "first"),
    [
        ("markdown", "|  | tokens | per layer | VQAv2 |"),
        ("csv", "kind,name,visual_tokens,visual_tokens_per_layer,vqav2,"),
        ("latex", "% \\usepackage{booktabs}"),
        ("json", "{"),
    ],
)
def test_formats(suite: Any, form: str, first: str) -> None:
    ran = suite("--method", "none", "dart", "--keep", 64, "--format", form)
    assert ran.out.startswith(first)
    if form == "json":
        assert ran.out == suite("--method", "none", "dart", "--keep", 64, "--json").out
        assert json.loads(ran.out)["runs"][1]["against_the_first"]["avg"]["value"] < 0


def test_differences_only_if_asked_for(suite: Any) -> None:
    def kinds(*options: str) -> set[str]:
        text = suite("--method", "none", "--format", "csv", *options).out
        return {row["kind"].partition(",")[0] for row in csv.DictReader(io.StringIO(text))}

    assert kinds() == {"run", "published"}
    assert kinds("--differences") == {"run", "published", "difference"}


def test_files(
    suite: Any, asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveal.suite.report.PICTURED", 6)
    out = tmp_path / "results"
    ran = suite("--method", "none", "dart", "--keep", 64, "--out", out)
    assert ran.code == 0, ran.err
    assert asked[0]["out"] == out
    assert sorted(path.name for path in out.iterdir()) == [
        "report.html",
        "suite.json",
        "table.csv",
        "table.md",
        "table.tex",
    ]
    record = json.loads((out / "suite.json").read_text())
    assert len(record["runs"][0]["answers"]) == 10 * suites.QUESTIONS
    assert "6 of them with pictures" in (out / "report.html").read_text()
    assert "booktabs" in (out / "table.tex").read_text()


def test_all_methods_leave_out_what_cannot_work(
    suite: Any, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveal.compressors.available", lambda: ("dart", "trim"))
    ran = suite("--all-methods", "--keep", 64, "--json")
    assert [row["settings"]["method"] for row in json.loads(ran.out)["runs"]] == ["none", "dart"]
    assert ran.err.strip() == "foveal: trim: no text tower"
    ran = suite("--method", "trim", "--keep", 64)
    assert (ran.code, ran.err.strip()) == (2, "foveal: no text tower")


@pytest.mark.usefixtures("asked")
def test_scenes_where_no_data_is_named(
    run: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[Path, int, int]] = []

    def write_scene_tasks(folder: Path, questions: int, seed: int) -> Path:
        written.append((folder, questions, seed))
        return folder

    monkeypatch.setattr("foveal.suite.scene_tasks.write_scene_tasks", write_scene_tasks)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = ("eval", "--suite", "epic10", "--model", checkpoint, "--method", "none", "--format", "csv")
    ran = run(*command, "--seed", 3)
    folder = tmp_path / "foveal" / "scenes-200-3"
    assert written == [(folder, 200, 3)]
    assert ran.err.strip() == (
        f"no --data: the ten benchmarks' formats, filled with procedural scenes ({folder})"
    )
    run(*command, "--limit", 500)
    assert written[1][1] == 500
    run(*command, "--online")
    assert len(written) == 2


def test_scenes_are_never_compared_with_published_rows(
    run: Any, checkpoint: Path, tmp_path: Path, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even of the same model."""
    monkeypatch.setattr("foveal.suite.published.is_published_model", lambda *_: True)
    monkeypatch.setattr("foveal.suite.scene_tasks.write_scene_tasks", lambda folder, *_: folder)
    command = ("eval", "--suite", "epic10", "--model", checkpoint, "--method", "none", "--format", "markdown")
    assert "published, other data" in run(*command).out
    text = run(*command, "--data", tmp_path).out
    assert "other data" not in text
    assert "all tokens - LLaVA-v1.5" in text
