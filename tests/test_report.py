from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from foveal.evaluation import estimate
from foveal.report import Report, accuracy_curve


class Reader(HTMLParser):
    """Collects tags, text and the addresses of anything that would be loaded."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.loaded: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def page(tmp_path: Path) -> str:
    report = Report("Few & good", "Is 16 < 144?")
    report.heading("<b>Numbers</b>")
    report.paragraph("a < b")
    report.table(["method", "accuracy"], [["DART", "80.1"], ["R&D <x>", "60.3"]], marked=[1], caption="n = 3")
    report.picture(Image.new("RGB", (8, 4), "red"), 'a "red" box', "red")
    report.listing('{"seed": 0}')
    report.write(tmp_path / "report.html")
    return (tmp_path / "report.html").read_text("utf-8")


def test_the_page_is_well_formed_and_needs_nothing_else(page: str) -> None:
    reader = Reader(page)
    assert reader.open == []
    assert len(reader.loaded) == 1
    assert reader.loaded[0].startswith("data:image/png;base64,")
    assert "http" not in page
    assert 'name="viewport"' in page


def test_text_is_escaped(page: str) -> None:
    text = " ".join(Reader(page).words)
    for part in ("Few & good", "Is 16 < 144?", "<b>Numbers</b>", "a < b", "R&D <x>", '{"seed": 0}', "n = 3"):
        assert part in text
    assert 'alt="a &quot;red&quot; box"' in page


def test_only_the_marked_row_stands_out(page: str) -> None:
    marked = re.findall(r"<tr class=marked>.*?</tr>", page)
    assert len(marked) == 1
    assert "60.3" in marked[0]


def test_the_picture_is_inside(page: str) -> None:
    data = re.search(r"base64,([^\"]+)", page)
    assert data
    assert Image.open(io.BytesIO(base64.b64decode(data[1]))).size == (8, 4)


def test_the_curve_draws_every_point_with_its_interval() -> None:
    better = {144: estimate([1.0] * 9 + [0.0]), 16: estimate([1.0] * 7 + [0.0] * 3)}
    figure = accuracy_curve({"before": {16: estimate([1.0, 0.0])}, "EPIC": better})
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["before", "EPIC"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["16", "144"]
    values = axes.containers[1].lines[0].get_ydata()
    assert list(values) == pytest.approx([70, 90])
    segments = axes.containers[1].lines[2][0].get_segments()
    low, high = segments[0][:, 1]
    assert (low, high) == pytest.approx((100 * better[16].low, 100 * better[16].high))
