import csv
from pathlib import Path

import pytest

from foveal import FovealError
from foveal.suite.benchmarks import BENCHMARKS, SUITES, Benchmark, average, benchmarks
from foveal.suite.published import __file__ as published_file

TEN = ["vqav2", "gqa", "vizwiz", "sqa_img", "textvqa", "pope", "mme", "mmbench", "mmbench_cn", "ocrbench"]


def test_epics_ten_are_in_the_order_of_its_table() -> None:
    assert [benchmark.column for benchmark in SUITES["epic10"]] == TEN


def test_no_suite_holds_a_benchmark_with_a_paid_judge() -> None:
    assert not any(benchmark.judge for suite in SUITES.values() for benchmark in suite)
    assert {column for column, benchmark in BENCHMARKS.items() if benchmark.judge} == {"mmvet", "llava_w"}


def test_names_may_be_suites_and_columns_each_counted_once() -> None:
    found = benchmarks("pope, epic10 textvqa_no_ocr,pope")
    assert [benchmark.column for benchmark in found] == [
        "pope",
        *(c for c in TEN if c != "pope"),
        "textvqa_no_ocr",
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("pop", "'pop'.*choose among epic10, trim, vqav2"),
        ("", "no benchmarks asked for"),
        (" , ", "no benchmarks asked for"),
        ("pope,mmvet", "MM-Vet is scored by a paid.*--tasks mmvet"),
        ("llava_w", "LLaVA-Bench in the wild.*--tasks llava_in_the_wild"),
    ],
)
def test_names_that_cannot_be_run(names: str, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        benchmarks(names)


def test_the_average_by_hand() -> None:
    scores = dict.fromkeys(TEN, 50.0) | {"mme": 1400.0, "ocrbench": 500.0}
    assert average(scores) == 50.0
    assert average(scores | {"mme": 1680.0, "pope_accuracy": 1.0}) == 51.0
    assert average(scores | {"ocrbench": 600.0}) == 51.0


def test_the_average_is_that_of_every_published_row() -> None:
    with (Path(published_file).parent / "published.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if all(row.get(c) for c in TEN) and row.get("avg")]
    assert len(rows) > 20
    for row in rows:
        assert average({column: float(row[column]) for column in TEN}) == pytest.approx(
            float(row["avg"]), abs=0.051
        )


def test_no_average_of_fewer_than_ten() -> None:
    with pytest.raises(FovealError, match="run MME, OCRBench too"):
        average(dict.fromkeys(set(TEN) - {"mme", "ocrbench"}, 50.0))


def test_scores_are_in_the_published_units() -> None:
    mme = {"mme_perception_score,none": 1500.0, "mme_cognition_score,none": 300.0}
    assert BENCHMARKS["mme"].score(mme) == 1800.0
    assert BENCHMARKS["mme"].extra(mme) == {"mme_perception": 1500.0, "mme_cognition": 300.0}
    assert BENCHMARKS["mme"].score({"mme_perception_score,none": 1500.0}) == 1500.0
    assert BENCHMARKS["mme"].extra({"mme_perception_score,none": 1500.0}) == {"mme_perception": 1500.0}
    assert BENCHMARKS["gqa"].score({"exact_match,none": 0.5}) == 50.0
    assert BENCHMARKS["ocrbench"].score({"ocrbench_accuracy,none": 0.3}) == 300.0


def test_the_command_that_fetches_names_repository_files_and_folder() -> None:
    assert BENCHMARKS["vqav2"].fetch("my data") == (
        "hf download lmms-lab-encoder/VQAv2 --repo-type dataset --include 'data/validation-*.parquet' "
        "--local-dir 'my data/VQAv2'"
    )
    gqa = BENCHMARKS["gqa"].fetch(Path("data"))
    assert "testdev_balanced_instructions/testdev-*.parquet" in gqa
    assert "testdev_balanced_images/testdev-*.parquet" in gqa


def test_textvqa_has_hints_in_one_column_and_none_in_the_other() -> None:
    with_hints, without = BENCHMARKS["textvqa"], BENCHMARKS["textvqa_no_ocr"]
    assert (with_hints.prompt["ocr"], without.prompt["ocr"]) == (True, False)
    assert with_hints.patterns() == without.patterns()


@pytest.mark.parametrize("benchmark", [b for b in BENCHMARKS.values() if not b.judge], ids=lambda b: b.column)
def test_the_documentation_names_every_file(benchmark: Benchmark) -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert f"| `{benchmark.column}` | {benchmark.title} |" in page
    assert all(f"`{benchmark.folder}/{pattern}`" in page for pattern in benchmark.patterns())
    assert f"`{benchmark.repository}`" in page
