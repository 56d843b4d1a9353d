"""Benchmarks as tasks of lmms-eval, read from each layout on disk, without a network."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from lmms_eval.utils import load_yaml_config

from foveal import FovealError
from foveal.suite.benchmarks import BENCHMARKS, SUITES
from foveal.suite.references import reference
from foveal.suite.scene_tasks import write_scene_tasks
from foveal.suite.tasks import make_task, task_config

COLUMNS = [benchmark.column for benchmark in SUITES["epic10"]]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene_tasks(tmp_path_factory.mktemp("scenes") / "data", questions=48)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever opens a connection fails at once."""
    import socket

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something tried the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("column", COLUMNS)
def test_every_task_has_prompts_and_pictures(column: str, data: Path, cache: Path) -> None:
    task = make_task(BENCHMARKS[column], data, cache=cache)
    assert task.config.task == column
    doc = task.eval_docs[0]
    (turn,) = task.doc_to_messages(doc)
    picture, text = turn["content"]
    assert picture["url"].size == (96, 96)
    assert doc["question"].lower()[:10] in text["text"].lower()
    assert set(task.aggregation()) >= set(BENCHMARKS[column].metrics)
    assert "submission" not in task.aggregation()


def test_textvqas_hints_are_in_one_column_only(data: Path, cache: Path) -> None:
    for column, wanted in (("textvqa", True), ("textvqa_no_ocr", False)):
        task = make_task(BENCHMARKS[column], data, cache=cache)
        doc = task.eval_docs_no_media[0]
        assert (f"Reference OCR token: {doc['ocr_tokens'][0]}" in task.doc_to_text(doc)) == wanted


@pytest.mark.parametrize("column", COLUMNS)
def test_limits(column: str, data: Path, cache: Path) -> None:
    benchmark = BENCHMARKS[column]
    full = make_task(benchmark, data, cache=cache).eval_docs_no_media
    some = make_task(benchmark, data, cache=cache, limit=20).eval_docs_no_media
    units = Counter(item.unit for item in (reference(benchmark, doc, row) for row, doc in enumerate(some)))
    assert set(units.values()) == {{"mme": 2, "mmbench": 4, "mmbench_cn": 4}.get(column, 1)}
    assert len(some) == {"mme": 28}.get(column, 20)
    if benchmark.category:
        assert set(some[benchmark.category]) == set(full[benchmark.category])
    again = make_task(benchmark, data, cache=cache, limit=20).eval_docs_no_media
    assert list(some["question"]) == list(again["question"])


def test_gqas_pictures_are_joined_and_not_held(data: Path, cache: Path) -> None:
    task = make_task(BENCHMARKS["gqa"], data, cache=cache)
    assert "image" not in task.eval_docs.features
    folder = data / "GQA" / "testdev_balanced_images"
    pictures = datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))
    for doc in task.eval_docs.select(range(0, 48, 7)):
        (shown,) = task.doc_to_visual(doc)
        (true,) = [row["image"] for row in pictures if row["id"] == doc["imageId"]]
        assert shown.tobytes() == true.convert("RGB").tobytes()


def rows(task: Any) -> list[str]:
    return [json.dumps(doc, sort_keys=True) for doc in task.eval_docs_no_media]


def pictures(task: Any) -> list[bytes]:
    return [task.doc_to_visual(doc)[0].tobytes() for doc in task.eval_docs]


@pytest.mark.parametrize("column", ["vqav2", "gqa", "mmbench_cn"])
def test_what_save_to_disk_wrote(column: str, data: Path, cache: Path, tmp_path: Path) -> None:
    benchmark = BENCHMARKS[column]
    for part in filter(None, (benchmark.config or "data", benchmark.images)):
        files = [str(path) for path in (data / benchmark.folder / part).glob("*.parquet")]
        loaded = datasets.load_dataset("parquet", data_files={benchmark.split: files}, cache_dir=str(cache))
        loaded.save_to_disk(str(tmp_path / benchmark.folder / part))
    saved, original = make_task(benchmark, tmp_path), make_task(benchmark, data, cache=cache)
    assert rows(saved) == rows(original)
    assert pictures(saved) == pictures(original)


@pytest.mark.parametrize("column", ["vizwiz", "mme", "sqa_img"])
def test_pictures_and_jsonl(column: str, data: Path, cache: Path, tmp_path: Path) -> None:
    benchmark = BENCHMARKS[column]
    original = make_task(benchmark, data, cache=cache)
    folder = tmp_path / benchmark.folder / (benchmark.config or "data") / benchmark.split
    folder.mkdir(parents=True)
    with (folder / "metadata.jsonl").open("w") as file:
        for number, doc in enumerate(original.eval_docs):
            doc.pop("image").save(folder / f"{number:04d}.png")
            file.write(json.dumps({"file_name": f"{number:04d}.png", **doc}) + "\n")
    written = make_task(benchmark, tmp_path, cache=cache)
    assert rows(written) == rows(original)
    assert pictures(written) == pictures(original)


def test_folders_with_brackets_are_no_patterns(tmp_path: Path, cache: Path) -> None:
    folder = write_scene_tasks(tmp_path / "my [old] data*", 2)
    assert len(make_task(BENCHMARKS["pope"], folder, cache=cache).eval_docs) == 2


def test_new_files_under_the_old_name_are_read_anew(tmp_path: Path, cache: Path) -> None:
    found = []
    for seed in (0, 1):
        write_scene_tasks(tmp_path / "data", 4, seed=seed)
        found.append(pictures(make_task(BENCHMARKS["gqa"], tmp_path / "data", cache=cache)))
    assert not set(found[0]) & set(found[1])


def test_the_hub_is_asked_only_where_that_is_allowed_and_data_is_missing(data: Path, tmp_path: Path) -> None:
    assert task_config(BENCHMARKS["pope"], tmp_path, online=True)["dataset_path"] == "lmms-lab-encoder/POPE"
    assert task_config(BENCHMARKS["pope"], data, online=True)["dataset_path"] == "parquet"
    with pytest.raises(FovealError, match="hf download"):
        task_config(BENCHMARKS["pope"], tmp_path)


def registered(column: str, mode: str = "full") -> dict[str, Any]:
    import lmms_eval.tasks

    (folder,) = lmms_eval.tasks.__path__
    return load_yaml_config(f"{folder}/{BENCHMARKS[column].yaml}", mode=mode)


@pytest.mark.parametrize("column", BENCHMARKS)
def test_the_table_says_what_lmms_eval_says(column: str) -> None:
    benchmark, config = BENCHMARKS[column], registered(column, "simple")  # what judges import is not wanted
    assert benchmark.task == config["task"]
    assert benchmark.repository == config["dataset_path"]
    assert benchmark.config == config.get("dataset_name", "")
    assert benchmark.split == config["test_split"]
    wanted = {*benchmark.metrics, *(key for key, _ in benchmark.extras.values())}
    assert wanted <= {entry["metric"] for entry in config["metric_list"]}


@pytest.mark.parametrize("column", COLUMNS)
def test_only_what_is_said_differs_from_lmms_eval(column: str, data: Path, cache: Path) -> None:
    ours, theirs = task_config(BENCHMARKS[column], data, cache=cache), registered(column)
    ours_only = {
        "task",
        "dataset_path",
        "dataset_name",
        "dataset_kwargs",
        "metric_list",
        "process_docs",
        "tag",
    }
    own = {"gqa": {"doc_to_visual"}}.get(column, set()) | ours_only | {"lmms_eval_specific_kwargs"}
    for key in {*ours, *theirs} - own:
        assert _named(ours[key]) == _named(theirs[key]), key
    default = theirs["lmms_eval_specific_kwargs"]["default"]
    expected = default | ({"ocr": True} if column == "textvqa" else {})
    assert ours["lmms_eval_specific_kwargs"] == {"default": expected}


def test_prompts_go_only_where_a_task_takes_some(data: Path) -> None:
    prompt = {"pre_prompt": "Look! ", "post_prompt": ""}
    science = task_config(BENCHMARKS["sqa_img"], data, prompt=prompt)["lmms_eval_specific_kwargs"]
    assert science == {"default": {"format": "default", **prompt}}
    assert "lmms_eval_specific_kwargs" not in task_config(
        BENCHMARKS["seed"], None, online=True, prompt=prompt
    )


def _named(value: Any) -> Any:
    """lmms-eval loads its functions anew each time."""
    return value.__qualname__ if callable(value) else value
