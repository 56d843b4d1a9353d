from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import foveal
from foveal.evaluation.chat import Chat
from foveal.suite import report
from foveal.suite.answers import Answer
from foveal.suite.comparison import Comparison
from foveal.suite.kept_pictures import kept_pictures, visual_tokens
from foveal.suite.plots import average_curves, category_bars, change_bars
from foveal.suite.report import write_report
from support import suites, vlm

RUNS = suites.three()
COMPARISON = Comparison("epic10", RUNS, 576, apart="another model", subtract=False)
_COLOURS = ("red", "green", "blue")


def drawn(asked: list[Answer]) -> Any:
    def draw(answers: Sequence[Answer]) -> list[list[Image.Image]]:
        asked.extend(answers)
        return [[Image.new("RGB", (8, 8), colour) for colour in _COLOURS] for _ in answers]

    return draw


def page(tmp_path: Path, comparison: Comparison = COMPARISON, draw: Any = None) -> str:
    write_report(comparison, tmp_path / "report.html", "A title", draw)
    return (tmp_path / "report.html").read_text("utf-8")


def flipped(text: str) -> Any:
    found = re.search(r'id="flips-data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_stands_alone_and_holds_the_tables(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert not re.search(r"(src|href)=\"?http", text)
    for part in ("A title", "Published, another model", "EPIC-TCD, 64", "1785", "Against all tokens", "MME"):
        assert part in text
    assert "test-dev" in text  # how VQAv2 is asked
    assert text.count("<details>") == text.count("</details>") == 2  # POPE and MME have categories


def test_every_question_that_flipped_is_there_with_all_predictions(tmp_path: Path) -> None:
    told = flipped(page(tmp_path))
    keys = {
        (a.benchmark, a.id): [run_answer.score for run_answer in three]
        for a, *three in zip(RUNS[0].answers, *(run.answers for run in RUNS), strict=True)
    }
    expected = [scores for scores in keys.values() if len(set(scores)) > 1]
    assert len(told["questions"]) == len(expected)
    assert sorted(question["scores"] for question in told["questions"]) == sorted(expected)
    assert told["runs"] == list(COMPARISON.names)
    assert told["whole"] == 0


def test_text_cannot_end_the_script(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "is <question>" in flipped(text)["questions"][0]["question"]
    assert "<question>" not in text


def test_pictures_are_bounded_and_spread_over_benchmarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "PICTURED", 40)
    monkeypatch.setattr(report, "LISTED", 50)
    asked: list[Answer] = []
    text = page(tmp_path, draw=drawn(asked))
    questions = flipped(text)["questions"]
    assert len(asked) == 40
    assert {answer.benchmark for answer in asked} == set(RUNS[0].scores)
    assert [len(question["pictures"]) for question in questions] == [3] * 40 + [0] * 10
    assert "50 are listed here, 40 of them with pictures" in text
    picture = base64.b64decode(questions[0]["pictures"][1].partition(",")[2])
    red, green, blue = Image.open(io.BytesIO(picture)).convert("RGB").getpixel((4, 4))  # type: ignore[misc]
    assert green > red + blue


def test_why_there_are_no_pictures(tmp_path: Path) -> None:
    def draw(_: Sequence[Answer]) -> Any:
        raise foveal.FovealError("tiles cannot be drawn")

    assert "without pictures (tiles cannot be drawn)" in page(tmp_path, draw=draw)
    assert "data is not at hand" in page(tmp_path)


def test_equal_runs_have_no_flips(tmp_path: Path) -> None:
    text = page(tmp_path, Comparison("epic10", (RUNS[0], RUNS[0]), 576))
    assert "None: every run answers every question alike." in text


def test_a_single_run_is_compared_with_nothing(tmp_path: Path) -> None:
    text = page(tmp_path, Comparison("pope", (suites.run("none", None, 0.9, 0, ["pope"]),), 576))
    assert "Against" not in text
    assert "flips" not in text.partition("</style>")[2].partition("<style>")[0]


def test_bars_are_in_the_units_of_the_average() -> None:
    axes = change_bars(COMPARISON).axes[0]
    titles = [label.get_text() for label in axes.get_xticklabels()]
    place = titles.index("MME\n/ 28")
    heights = [bar.get_height() for bar in axes.containers[0]]
    assert heights[place] == pytest.approx(COMPARISON.differences[0]["mme"].value / 28)
    assert titles[-1] == "Avg"
    assert heights[-1] == pytest.approx(COMPARISON.differences[0]["avg"].value)


def test_published_curves_share_a_panel_only_with_their_model() -> None:
    apart, same = average_curves(COMPARISON), average_curves(Comparison("epic10", RUNS, 576))
    assert [len(figure.axes) for figure in (apart, same)] == [2, 1]
    assert "another model" in apart.axes[1].get_title()
    labels = {text.get_text() for text in same.axes[0].get_legend().get_texts()}
    assert {"dart", "fastv", "all tokens", "EPIC-TCD"} <= labels
    lines = {line.get_label(): line for line in same.axes[0].get_lines()}
    assert list(lines["EPIC-TCD"].get_xdata()) == [36, 64, 128, 192, 256]


def test_category_bars() -> None:
    figure = category_bars(COMPARISON, "pope")
    assert figure is not None
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["count (20)", "existence (20)"]
    widths = [bar.get_width() for bar in axes.containers[1]]
    own = [
        answer.score
        for answer in RUNS[0].answers
        if answer.benchmark == "pope" and answer.category == "count"
    ]
    assert widths[0] == pytest.approx(100 * sum(own) / len(own))
    assert category_bars(COMPARISON, "gqa") is None


def chat(number: int) -> Chat:
    parts = [{"type": "image", "image": vlm.picture(number)}, {"type": "text", "text": "a cat?"}]
    return Chat([{"role": "user", "content": parts}], "a cat?")


def test_what_each_method_kept() -> None:
    model, processor, chats = vlm.model(), vlm.processor(), [chat(0), chat(1)]
    assert visual_tokens(model, processor, chats) == vlm.TOKENS
    methods = [None, foveal.DART(keep=9), foveal.AveragePooling(keep=36)]
    found = kept_pictures(model, processor, methods, chats, vlm.TOKENS)
    assert [len(row) for row in found] == [3, 3]
    whole, kept, _ = found[1]
    assert whole.size == kept.size == (320, 320)
    alike = sum(
        whole.getpixel((x, y)) == kept.getpixel((x, y))
        for x in range(13, 320, 27)
        for y in range(13, 320, 27)
    )
    assert alike == 9


def test_several_pictures_cannot_be_drawn() -> None:
    parts = [{"type": "image", "image": vlm.picture(0)}] * 2 + [{"type": "text", "text": "a cat?"}]
    both = Chat([{"role": "user", "content": parts}], "a cat?")
    with pytest.raises(foveal.FovealError, match="2 pictures"):
        kept_pictures(vlm.model(), vlm.processor(), [None], [both], vlm.TOKENS)
