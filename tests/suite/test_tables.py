from __future__ import annotations

import csv
import io
import json
import re

import pytest
from rich.console import Console

import foveal
from foveal.suite.benchmarks import BENCHMARKS, SUITES
from foveal.suite.comparison import Comparison, average_of
from foveal.suite.paired import Difference
from foveal.suite.tables import (
    csv_table,
    format_change,
    format_score,
    latex_table,
    markdown_table,
    print_changes,
    print_scores,
)
from support import suites

SAME = Comparison("epic10", suites.three(), 576)
OTHER = Comparison("epic10", suites.three(), 576, apart="another model", subtract=False)


def test_numbers_are_written_as_the_field_does() -> None:
    assert format_score(BENCHMARKS["mme"], 1785.4) == "1785"
    assert format_score(BENCHMARKS["ocrbench"], 319.0) == "319"
    assert format_score(BENCHMARKS["pope"], 85.94) == "85.9"
    assert format_score(None, 61.44) == "61.4"
    assert format_score(BENCHMARKS["mme"], 12.0, signed=True) == "+12"


def test_a_change_has_its_interval_and_a_star_if_it_is_no_accident() -> None:
    found = Difference(-3.06, -5.0, -1.2, 100, 2, 12, 0.01)
    assert format_change(found, BENCHMARKS["gqa"]) == "-3.1 (-5.0..-1.2)*"
    assert format_change(Difference(-3.0, None, None, 4, 0, 1, 1.0), BENCHMARKS["mme"]) == "-3"


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_the_columns_of_the_published_table_unrounded() -> None:
    found = read(csv_table(SAME))
    columns = [benchmark.column for benchmark in SUITES["epic10"]]
    assert list(found[0])[4:-1] == [*columns, "avg"]
    own = [row for row in found if row["kind"] == "run"]
    assert [row["name"] for row in own] == ["all tokens", "dart, 64", "fastv, 64"]
    for row, run in zip(own, SAME.runs, strict=True):
        assert float(row["pope"]) == pytest.approx(run.scores["pope"], rel=1e-5)
        assert float(row["avg"]) == pytest.approx(average_of(run.scores), rel=1e-5)
    assert [row["visual_tokens"] for row in own] == ["576", "64", "64"]
    assert [row["visual_tokens_per_layer"] for row in own] == ["576", "96", "96"]
    published = {row["name"]: row for row in found if row["kind"].startswith("published")}
    assert published["LLaVA-v1.5"]["mme"] == "1785"
    assert published["EPIC-TCD, 64"]["source"] == "arXiv:2510.00515 Table 1"


def test_differences_are_subtracted_at_equal_budgets() -> None:
    found = {row["name"]: row for row in read(csv_table(SAME)) if row["kind"] == "difference"}
    dart = SAME.runs[1].scores
    assert float(found["dart, 64 - EPIC-TCD, 64"]["mme"]) == pytest.approx(dart["mme"] - 1809, rel=1e-4)
    assert set(found) == {
        "all tokens - LLaVA-v1.5",
        *(
            f"{name} - {row}, 64"
            for name in ("dart, 64", "fastv, 64")
            for row in ("Average-Pooling", "MQT-LLaVA", "EPIC-TCD", "EPIC-LCD", "EPIC-ICD")
        ),
    }


def test_another_model_is_never_compared_silently() -> None:
    assert {row["kind"] for row in read(csv_table(OTHER))} == {"run", "published, another model"}
    text = markdown_table(OTHER)
    assert "| *published, another model* |  |" in text
    assert r"\multicolumn{14}{l}{\emph{published, another model}} \\" in latex_table(OTHER)
    assert "they are of another model" in text
    assert "another model" not in markdown_table(SAME)


def test_markdown_tables_are_rectangular() -> None:
    for table in re.findall(r"(?:^\|.*\n)+", markdown_table(SAME), re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "| dart, 64 | 64 | 96 |" in markdown_table(SAME)


def test_latex_has_as_many_cells_as_columns_and_no_bare_marks() -> None:
    text = latex_table(SAME)
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    columns = re.search(r"\{tabular\}\{(l r*)\}".replace(" ", ""), text)
    assert columns
    assert {line.count("&") + 1 for line in body} == {len(columns[1])} == {14}
    assert text.count(r"\midrule") == 3
    assert not re.search(r"(?<!\\)[%_#]", "\n".join(body))
    assert "$-$ EPIC-TCD" in text


def test_some_benchmarks_have_no_average() -> None:
    few = Comparison("pope,mme", suites.three(["pope", "mme"]), 576)
    assert list(read(csv_table(few))[0])[4:-1] == ["pope", "mme"]
    assert "Avg" not in markdown_table(few)


def printed(comparison: Comparison, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_scores(comparison, console)
    print_changes(comparison, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 140])
def test_every_column_is_printed_whole_at_any_width(width: int) -> None:
    lines = printed(OTHER, width)
    tables = [line for line in lines if line.startswith(("all tokens", "dart", "LLaVA", "VQAv2", "MME"))]
    assert max(map(len, tables)) <= width
    assert not any("…" in line for line in lines)
    headings = [word for line in lines if "tokens" in line and "layer" in line for word in line.split()]
    for benchmark in SUITES["epic10"]:
        assert headings.count(benchmark.title) == 1
    changes = [line for line in lines if line.startswith("POPE")]
    assert len(changes) == (2 if width == 60 else 1)
    assert all(line.split()[-1] == "40" for line in changes)


def test_extras_are_named_apart() -> None:
    values = ", ".join(f"{run.extra['mme_perception']:.4g}" for run in SAME.runs)
    assert f"MME perception: {values}" in printed(SAME, 140)


def test_the_record_is_json_and_says_what_was_compared() -> None:
    record = json.loads(json.dumps(OTHER.record()))
    assert record["published_rows_are_of"] == "another model"
    assert [run["name"] for run in record["runs"]] == list(OTHER.names)
    assert set(record["runs"][1]["against_the_first"]) == {b.column for b in SUITES["epic10"]} | {"avg"}
    assert record["published"][0]["method"] == "LLaVA-v1.5"
    assert record["runs"][0]["settings"]["method"] == "none"


def test_the_record_breaks_scores_down_by_category() -> None:
    whole, dart, _ = OTHER.record()["runs"]
    assert set(whole["categories"]) == {"mme", "pope"}
    assert "categories_against_the_first" not in whole
    for name in ("count", "existence"):
        own = [a.score for a in OTHER.runs[1].answers if (a.benchmark, a.category) == ("pope", name)]
        assert dart["categories"]["pope"][name]["value"] == pytest.approx(sum(own) / len(own))
        lost = dart["categories"]["pope"][name]["value"] - whole["categories"]["pope"][name]["value"]
        assert dart["categories_against_the_first"]["pope"][name]["value"] == pytest.approx(lost)


def test_runs_of_one_method_are_told_apart() -> None:
    one, two, _ = suites.three()
    two.settings["layer"] = 5
    deep = Comparison("epic10", (one, suites.run("dart", 64, 0.8, 3), two), 576)
    assert deep.names == ("all tokens", "dart, 64, layer 2", "dart, 64, layer 5")


def test_nothing_to_compare() -> None:
    with pytest.raises(foveal.FovealError, match="no runs"):
        Comparison("epic10", (), 576)
