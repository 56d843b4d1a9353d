import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from foveal import FovealError
from foveal.evaluation.benchmark_rules import COGNITION, PERCEPTION
from foveal.suite import scene_tasks
from foveal.suite.benchmarks import BENCHMARKS, SUITES, Benchmark
from foveal.suite.references import reference
from foveal.suite.scene_tasks import write_scene_tasks

SIZE = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene_tasks(tmp_path_factory.mktemp("scenes") / "deep" / "data", SIZE)


def table(data: Path, column: str, part: str = "") -> Any:
    from datasets import Dataset

    benchmark = BENCHMARKS[column]
    folder = data / benchmark.folder / (part or benchmark.config or "data")
    (path,) = folder.glob(f"{benchmark.split}-*.parquet")
    return Dataset.from_parquet(str(path), cache_dir=str(data.parent / "cache"), keep_in_memory=True)


def digest(data: Path) -> dict[str, str]:
    files = sorted(path for path in data.rglob("*") if path.is_file())
    return {str(path.relative_to(data)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("benchmark", SUITES["epic10"], ids=lambda benchmark: benchmark.column)
def test_every_file_that_a_benchmark_needs_is_there(data: Path, benchmark: Benchmark) -> None:
    assert all(list((data / benchmark.folder).glob(pattern)) for pattern in benchmark.patterns())


@pytest.mark.parametrize(
    "column", [b.column for b in SUITES["epic10"] if b.column not in ("mme", "mmbench", "mmbench_cn")]
)
def test_as_many_rows_as_asked_for(data: Path, column: str) -> None:
    rows = table(data, column)
    assert len(rows) == SIZE
    references = [reference(BENCHMARKS[column], doc, row) for row, doc in enumerate(rows)]
    assert len({item.id for item in references}) == SIZE
    assert all(max(item.score(answer) for answer in item.answers) > 0.8 for item in references)


def test_equal_arguments_give_equal_files_and_others_do_not(data: Path, tmp_path: Path) -> None:
    assert digest(write_scene_tasks(tmp_path / "same", SIZE)) == digest(data)
    other = digest(write_scene_tasks(tmp_path / "other", SIZE, seed=1))
    assert other.keys() == digest(data).keys()
    assert not set(other.values()) & set(digest(data).values())


def test_files_that_are_there_are_kept_and_others_replaced(tmp_path: Path) -> None:
    folder = write_scene_tasks(tmp_path / "data", 1)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    write_scene_tasks(folder, 1)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == before
    write_scene_tasks(folder, 1, seed=2)
    assert json.loads((folder / "scene_tasks.json").read_text())["seed"] == 2
    assert all(path.stat().st_mtime_ns > before[path] for path in folder.rglob("*.parquet"))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_processes_that_write_the_same_do_not_disturb_each_other(tmp_path: Path, data: Path) -> None:
    failures: list[BaseException] = []

    def write() -> None:
        try:
            write_scene_tasks(tmp_path / "data", SIZE)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert digest(tmp_path / "data") == digest(data)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_writer_that_is_killed_leaves_nothing_half_written(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; import sys; from foveal.suite.scene_tasks import write_scene_tasks;"
        "write_scene_tasks(Path(sys.argv[1]), 100000)"
    )
    folder = tmp_path / "data"
    with subprocess.Popen([sys.executable, "-c", code, str(folder)]) as writer:
        while not list(tmp_path.iterdir()) and writer.poll() is None:
            time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
    assert not folder.exists()
    assert write_scene_tasks(folder, 1) == folder


def test_a_writer_that_fails_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(scene_tasks, "_write", full)
    with pytest.raises(OSError, match="no space"):
        write_scene_tasks(tmp_path / "data", 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("questions", "seed", "message"), [(0, 0, "questions=0"), (1, 1024, "seed=1024"), (1, -1, "seed=-1")]
)
def test_arguments_out_of_range(tmp_path: Path, questions: int, seed: int, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        write_scene_tasks(tmp_path / "data", questions, seed)


def test_foreign_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FovealError, match="no scene tasks"):
        write_scene_tasks(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_without_datasets_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FovealError, match="pip install datasets"):
        write_scene_tasks(tmp_path / "data")


# The formats of the originals.


def test_vqav2_has_ten_annotators(data: Path) -> None:
    for row in table(data, "vqav2"):
        assert [answer["answer_id"] for answer in row["answers"]] == list(range(1, 11))
        assert Counter(answer["answer"] for answer in row["answers"])[row["multiple_choice_answer"]] >= 7


def test_gqas_questions_find_their_pictures(data: Path) -> None:
    questions = table(data, "gqa")
    pictures = table(data, "gqa", BENCHMARKS["gqa"].images)
    assert set(questions["imageId"]) == set(pictures["id"])
    assert len(pictures) < len(questions)
    assert "image" not in questions.features


def test_vizwiz_says_what_cannot_be_answered(data: Path) -> None:
    rows = table(data, "vizwiz")
    for row in rows:
        common = Counter(row["answers"]).most_common(1)[0][0]
        assert (common == "unanswerable") == (row["category"] == "unanswerable")
        assert "unanswerable" not in row["question"]  # the prompt says so, not the question
    assert len(set(rows["category"])) == 2


def test_science_qa_has_an_index_for_an_answer(data: Path) -> None:
    rows = table(data, "sqa_img")
    assert rows.features["answer"].dtype == "int8"
    assert all(len(row["choices"]) == 4 and 0 <= row["answer"] < 4 for row in rows)
    assert len(set(rows["answer"])) > 1
    assert not any(" A. " in question for question in rows["question"])


def test_textvqas_hints_hold_the_answer(data: Path) -> None:
    assert all(
        Counter(row["answers"]).most_common(1)[0][0] == row["ocr_tokens"][0].lower()
        for row in table(data, "textvqa")
    )


def test_pope_has_three_subsets_of_yes_and_no(data: Path) -> None:
    rows = table(data, "pope")
    assert list(rows["category"]) == ["adversarial"] * 4 + ["popular"] * 4 + ["random"] * 4
    assert list(rows["answer"]) == ["yes", "no"] * 6


def test_mme_asks_two_questions_a_picture_in_every_category(data: Path) -> None:
    rows = list(table(data, "mme"))
    assert {row["category"] for row in rows} == {*PERCEPTION, *COGNITION}
    for one, two in zip(rows[::2], rows[1::2], strict=True):
        assert one["question_id"] == two["question_id"]
        assert (one["answer"], two["answer"]) == ("Yes", "No")
        assert one["question"] != two["question"]
        assert one["question"].endswith(" Please answer yes or no.")
        assert one["image"].tobytes() == two["image"].tobytes()


@pytest.mark.parametrize("column", ["mmbench", "mmbench_cn"])
def test_mmbench_rotates_the_options(data: Path, column: str) -> None:
    rows = {row["index"]: row for row in table(data, column)}
    assert sorted(rows) == [turn * 10**6 + index for turn in range(4) for index in range(SIZE // 4)]
    for index in range(SIZE // 4):
        turns = [rows[turn * 10**6 + index] for turn in range(4)]
        assert len({turn[turn["answer"]] for turn in turns}) == 1
        assert len({turn["answer"] for turn in turns}) == 4
        assert len({turn["question"] for turn in turns}) == 1
        assert turns[0]["question"].isascii() == (column == "mmbench")


def test_ocrbench_has_ten_kinds(data: Path) -> None:
    rows = table(data, "ocrbench")
    assert len(set(rows["question_type"])) == 10
    assert "HME100k" in rows["dataset"]
    assert all(isinstance(answer, list) for answer in rows["answer"])
