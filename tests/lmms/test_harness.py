"""A suite under several methods: the same questions, sound accounts, silence, and nothing left behind."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import lmms_eval.evaluator
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import constants
from loguru import logger

import foveal
from foveal.compression import attached
from foveal.suite.benchmarks import BENCHMARKS
from foveal.suite.harness import SuiteRun, run_suite
from foveal.suite.lmms_environment import offline

SUITE = "vqav2,gqa,pope,mme,mmbench"
OPTIONS: dict[str, Any] = {"batch_size": 8, "max_new_tokens": 8, "progress": False}


@pytest.fixture(scope="module")
def runs(loaded: tuple[Any, Any], scenes: Path) -> list[SuiteRun]:
    return run_suite(*loaded, [None, foveal.DART(keep=9, layer=2)], SUITE, scenes, limit=10, **OPTIONS)


def said(run: SuiteRun) -> dict[tuple[str, int], str]:
    return {(answer.benchmark, answer.row): answer.prediction for answer in run.answers}


def test_the_same_questions_under_several_methods(runs: list[SuiteRun], loaded: tuple[Any, Any]) -> None:
    plain, compressed = runs
    assert [answer.id for answer in plain.answers] == [answer.id for answer in compressed.answers]
    assert len({(answer.benchmark, answer.id) for answer in plain.answers}) == len(plain.answers)
    assert said(plain) != said(compressed)
    assert attached(loaded[0]) == ()


def test_scores_are_those_of_the_answers(runs: list[SuiteRun]) -> None:
    for run in runs:
        assert list(run.scores) == SUITE.split(",")
        for column in ("vqav2", "gqa", "mmbench"):
            scores = [answer.score for answer in run.answers if answer.benchmark == column]
            assert run.scores[column] == pytest.approx(100 * sum(scores) / len(scores))
        assert run.scores["mme"] == run.extra["mme_perception"] + run.extra["mme_cognition"]
        right = [answer.score for answer in run.answers if answer.benchmark == "pope"]
        assert run.extra["pope_accuracy"] == pytest.approx(100 * sum(right) / len(right))
        assert 0 <= run.extra["pope_subset_f1"] <= 100
    assert runs[0].scores["gqa"] > runs[1].scores["gqa"]


def test_tokens_are_accounted_for_both_ways(runs: list[SuiteRun]) -> None:
    plain, compressed = runs
    assert (plain.kept, plain.seen) == (None, None)
    assert compressed.kept == 9
    assert compressed.seen == pytest.approx((2 * 144 + 6 * 9) / 8)


def test_a_run_says_what_it_was(runs: list[SuiteRun]) -> None:
    assert runs[0].settings["method"] == "none"
    settings = {"method": "dart", "keep": 9, "layer": 2, "limit": 10, "batch_size": 8, "seed": 0}
    assert settings.items() <= runs[1].settings.items()
    assert runs[1].provenance["versions"]["lmms-eval"]
    assert runs[1].seconds > 0


def test_json_there_and_back(runs: list[SuiteRun]) -> None:
    assert SuiteRun.from_json(json.loads(json.dumps(runs[1].to_json()))) == runs[1]
    with pytest.raises(foveal.FovealError, match="no run of a suite"):
        SuiteRun.from_json({"settings": {}})


@pytest.mark.parametrize("method", [None, foveal.FastV(keep=16)])
def test_batches_of_eight_answer_as_batches_of_one(
    loaded: tuple[Any, Any], scenes: Path, method: Any
) -> None:
    one, eight = (
        run_suite(*loaded, [method], SUITE, scenes, limit=10, **{**OPTIONS, "batch_size": size})[0]
        for size in (1, 8)
    )
    assert said(one) == said(eight)
    assert one.scores == eight.scores
    assert (one.kept, one.seen) == (eight.kept, eight.seen)


def test_answers_that_are_there_are_not_asked_again(
    loaded: tuple[Any, Any], scenes: Path, tmp_path: Path, asked: list[int]
) -> None:
    methods = [None, foveal.DART(keep=9)]
    run_suite(*loaded, methods[:1], "pope", scenes, limit=5, out=tmp_path, **OPTIONS)
    assert sum(asked) == 5
    first = run_suite(*loaded, methods[:1], "pope", scenes, out=tmp_path, **OPTIONS)
    assert sum(asked) == 12
    again = run_suite(*loaded, methods, "pope gqa", scenes, out=tmp_path, **OPTIONS)
    assert sum(asked) == 12 + 3 * 12
    assert said(first[0]).items() <= said(again[0]).items()


def spoil(scenes: Path, folder: Path, rows: list[int]) -> Path:
    """POPE with pictures that are none."""
    source = next((scenes / "POPE").rglob("*.parquet"))
    table = datasets.Dataset.from_parquet(str(source)).cast_column("image", datasets.Image(decode=False))

    def break_one(row: dict[str, Any], index: int) -> dict[str, Any]:
        return {"image": {"bytes": b"no picture", "path": None}} if index in rows else row

    target = folder / source.relative_to(scenes)
    target.parent.mkdir(parents=True)
    table = table.map(break_one, with_indices=True).cast_column("image", datasets.Image())
    table.to_parquet(target)
    return folder


def test_an_unreadable_picture_counts_as_wrong_and_is_named(
    loaded: tuple[Any, Any], scenes: Path, tmp_path: Path
) -> None:
    whole = run_suite(*loaded, [None], "pope", scenes, **OPTIONS)[0]
    data = spoil(scenes, tmp_path / "spoilt", [2, 5])
    logged: list[str] = []
    sink = logger.add(logged.append)
    run = run_suite(*loaded, [None], "pope", data, **OPTIONS)[0]
    logger.remove(sink)
    assert logged == []  # the result says it
    assert [answer.row for answer in run.unanswered] == [2, 5]
    assert all("cannot identify image" in answer.error for answer in run.unanswered)
    assert [(answer.prediction, answer.score) for answer in run.unanswered] == [("", 0.0)] * 2
    others = {place: text for place, text in said(whole).items() if place[1] not in (2, 5)}
    assert others.items() <= said(run).items()
    assert run.extra["pope_accuracy"] == pytest.approx(100 * sum(answer.score for answer in run.answers) / 12)


def spoilt(scenes: Path, folder: Path, column: str, spoil: Callable[[pa.Table], pa.Table]) -> Path:
    """The data of a benchmark after something was done to its table."""
    source = next((scenes / BENCHMARKS[column].folder).rglob("*.parquet"))
    target = folder / source.relative_to(scenes)
    target.parent.mkdir(parents=True)
    pq.write_table(spoil(pq.read_table(source)), target)
    return folder


@pytest.mark.parametrize(
    ("column", "spoil", "message"),
    [
        ("pope", lambda table: table.drop_columns(["answer"]), r"POPE: .*KeyError: 'answer'.*hf download"),
        ("mme", lambda table: table.slice(1), r"MME: .*two questions about each picture.*hf download"),
    ],
)
def test_data_that_cannot_be_scored_is_named_before_anything_is_asked(
    loaded: tuple[Any, Any],
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    column: str,
    spoil: Callable[[pa.Table], pa.Table],
    message: str,
) -> None:
    monkeypatch.setattr("lmms_eval.evaluator.simple_evaluate", None)
    data = spoilt(scenes, tmp_path, column, spoil)
    with pytest.raises(foveal.FovealError, match=message):
        run_suite(*loaded, [None], column, data, batch_size=8, progress=False)


def test_why_the_hub_gave_nothing_is_said(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        assert options["token"] is None, "public data needs no login"
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(foveal.FovealError, match=r"POPE: .*\(ConnectionError: no route to the hub\)"):
        run_suite(*loaded, [None], "pope", tmp_path, online=True, progress=False)


def test_data_that_lmms_eval_cannot_read_is_named(
    loaded: tuple[Any, Any], scenes: Path, tmp_path: Path
) -> None:
    data = spoil(scenes, tmp_path / "spoilt", [0])  # lmms-eval looks at the first when it makes a task
    with pytest.raises(foveal.FovealError, match=r"POPE: its data cannot be read .*hf download"):
        run_suite(*loaded, [None], "pope", data, **OPTIONS)


def test_it_is_quiet_and_leaves_nothing_behind(
    loaded: tuple[Any, Any],
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    logged: list[str] = []
    sink = logger.add(logged.append, level="DEBUG", format="{name}: {message}")
    drawn = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    bars, environment = lmms_eval.evaluator.tqdm, dict(os.environ)
    told: list[tuple[str, int, int]] = []

    def report(title: str, done: int, total: int) -> None:
        told.append((title, done, total))
        assert constants.HF_HUB_OFFLINE
        assert os.environ["HF_DATASETS_OFFLINE"] == "1"

    options = {**OPTIONS, "progress": report}
    run_suite(*loaded, [None, foveal.DART(keep=9)], "mmbench_cn,mme", scenes, limit=4, **options)
    logger.remove(sink)
    assert capfd.readouterr() == ("", "")
    assert logged == []
    assert list(tmp_path.iterdir()) == []
    assert lmms_eval.evaluator.tqdm is bars
    assert dict(os.environ) == environment
    assert not datasets.are_progress_bars_disabled()
    assert random.getstate() == drawn[0]
    assert np.random.get_state()[1].tolist() == drawn[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), drawn[2])
    titles = dict.fromkeys(title for title, _, _ in told)
    assert list(titles) == ["none", "dart 9"]
    for title in titles:
        counts = [(done, total) for name, done, total in told if name == title]
        assert counts[-1][0] == counts[-1][1]


def test_nothing_asks_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with offline(), pytest.raises((ConnectionError, FileNotFoundError)):
        datasets.load_dataset("lmms-lab-encoder/POPE")
    assert constants.HF_HUB_OFFLINE is False
