from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import pytest
from PIL import Image

from foveal import FovealError
from foveal.compressors import DART, DivPrune
from foveal.efficiency import Load, model_shape
from foveal.efficiency.hardware import HARDWARE
from foveal.efficiency.plots import has_published, plot_returns
from foveal.efficiency.returns import Case

CASE = Case(model_shape("llava-hf/llava-1.5-7b-hf"), Load(), HARDWARE["a100"])
METHOD = DART(keep=64)


def words(path: Path) -> str:
    """The text of an SVG file."""
    return " ".join(re.findall(r"<text[^>]*>([^<]*)<", path.read_text()))


def drawn(path: Path, **options: bool) -> str:
    with mpl.rc_context({"svg.fonttype": "none"}):
        plot_returns(CASE, METHOD, path, title="LLaVA on a100", **options)
    return words(path)


def test_what_a_picture_says(tmp_path: Path) -> None:
    text = drawn(tmp_path / "returns.svg")
    for said in (
        "LLaVA on a100",
        "high return: 59 to 147",
        "low return: below 59",
        "high return: 142 to 215",
        "64 tokens: 3.6x less",
        "64 tokens: 3.1x less",
        "with all",
    ):
        assert said in text
    assert "EPIC" not in text


def test_published_points_beside(tmp_path: Path) -> None:
    assert drawn(tmp_path / "returns.svg", published=True).count("EPIC's figure") == 2


def test_a_picture_of_pixels(tmp_path: Path) -> None:
    plot_returns(CASE, METHOD, tmp_path / "returns.png", title="")
    with Image.open(tmp_path / "returns.png") as picture:
        assert picture.size == (1500, 720)


def test_a_file_that_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(FovealError, match=r"end the name in \.png"):
        plot_returns(CASE, METHOD, tmp_path / "returns.xyz", title="")


def test_what_was_published() -> None:
    """EPIC measured DART, FastV and Random at layer 2 of one model."""
    assert has_published("llava-hf/llava-1.5-7b-hf", METHOD, Load())
    assert has_published("./models/llava-1.5-7b-hf", METHOD, Load())
    assert not has_published("llava-hf/llava-1.5-13b-hf", METHOD, Load())
    assert not has_published("llava-hf/llava-1.5-7b-hf", DART(keep=64, layer=3), Load())
    assert not has_published("llava-hf/llava-1.5-7b-hf", DivPrune(keep=64), Load())
    assert not has_published("llava-hf/llava-1.5-7b-hf", METHOD, Load(images=2))
