from pathlib import Path

import pytest

from foveal import FovealError, load
from foveal.suite.benchmarks import BENCHMARKS
from foveal.suite.tasks import bundled_prompt, choose_rows, task_config
from support.tiny import llava


def test_missing_data_names_the_folder_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(FovealError) as caught:
        task_config(BENCHMARKS["pope"], tmp_path)
    assert str(tmp_path / "POPE") in str(caught.value)
    assert BENCHMARKS["pope"].fetch(tmp_path) in str(caught.value)


def test_gqa_without_its_pictures_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "GQA" / "testdev_balanced_instructions"
    folder.mkdir(parents=True)
    (folder / "testdev-00000-of-00001.parquet").touch()
    with pytest.raises(FovealError, match="testdev_balanced_images"):
        task_config(BENCHMARKS["gqa"], tmp_path)


def test_a_download_that_was_broken_off_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "VQAv2" / "data"
    folder.mkdir(parents=True)
    for part in (0, 2):
        (folder / f"validation-{part:05d}-of-00003-0a1b.parquet").touch()
    with pytest.raises(FovealError, match="2 of the 3 parts of validation") as caught:
        task_config(BENCHMARKS["vqav2"], tmp_path)
    assert BENCHMARKS["vqav2"].fetch(tmp_path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing"])
def test_half_a_file_is_noticed_before_anything_reads_it(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "POPE" / "data" / "test-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(
        FovealError, match=r"test-00000-of-00001\.parquet is no whole parquet file: "
    ) as caught:
        task_config(BENCHMARKS["pope"], tmp_path)
    assert BENCHMARKS["pope"].fetch(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        ("pope", {}, "no data folder"),
        ("mmvet", {"online": True}, "paid language model"),
        ("pope", {"online": True, "limit": 0}, "limit=0"),
    ],
)
def test_what_cannot_work_is_said_at_once(column: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(FovealError, match=message):
        task_config(BENCHMARKS[column], None, **options)


def test_a_sample_is_even_over_categories_and_takes_units_whole() -> None:
    units = [row // 2 for row in range(60)]
    categories = ["a"] * 40 + ["b"] * 16 + ["c"] * 4
    chosen = choose_rows(units, categories, 14)
    assert chosen == sorted(chosen) == choose_rows(units, categories, 14)
    assert {units[row] for row in chosen} == {units[row] for row in chosen[::2]}
    assert len(chosen) == 14
    assert sorted(sum(categories[row] == name for row in chosen) for name in "abc") == [4, 4, 6]
    assert chosen != list(range(14))


@pytest.mark.parametrize(("limit", "expected"), [(1, 3), (3, 3), (4, 4), (5, 5), (100, 30)])
def test_a_sample_has_a_unit_of_each_category_and_else_no_more_than_the_limit(
    limit: int, expected: int
) -> None:
    assert len(choose_rows(range(30), ["a"] * 10 + ["b"] * 10 + ["c"] * 10, limit)) == expected


def test_larger_samples_hold_the_smaller() -> None:
    categories = ["a", "b"] * 50
    assert set(choose_rows(range(100), categories, 20)) < set(choose_rows(range(100), categories, 40))


def test_only_the_bundled_model_has_prompts_of_its_own() -> None:
    model, _ = load()
    assert bundled_prompt(BENCHMARKS["textvqa"], model) == {"pre_prompt": "", "post_prompt": "", "ocr": False}
    assert bundled_prompt(BENCHMARKS["vizwiz"], model)["pre_prompt"] == "if unsure say unanswerable. "
    assert bundled_prompt(BENCHMARKS["pope"], llava()) is None
