from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from foveal import FovealError
from foveal.distillation import EpicConfig
from foveal.distillation.plots import plot_schedule

BLUE, ORANGE = "#0072B2", "#E69F00"


def drawn(folder: Path, schedule: str) -> np.ndarray:
    path = folder / f"{schedule}.png"
    plot_schedule(EpicConfig(schedule=schedule, use_cpu=True), 8, path)
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def shows(picture: np.ndarray, color: str) -> bool:
    wanted = np.round(255 * np.array(to_rgb(color)))
    return bool((np.abs(picture - wanted).max(axis=-1) <= 1).sum() > 100)


@pytest.mark.parametrize("schedule", ["tcd", "lcd", "icd"])
def test_student_and_teacher_are_drawn(tmp_path: Path, schedule: str) -> None:
    picture = drawn(tmp_path, schedule)
    assert picture.shape == (840, 1200, 3)
    assert shows(picture, BLUE)
    assert shows(picture, ORANGE)


@pytest.mark.parametrize("schedule", ["direct", "none", "tcd-no-distill"])
def test_no_teacher_is_drawn_where_there_is_none(tmp_path: Path, schedule: str) -> None:
    picture = drawn(tmp_path, schedule)
    assert shows(picture, BLUE)
    assert not shows(picture, ORANGE)


def test_other_files(tmp_path: Path) -> None:
    config = EpicConfig(use_cpu=True)
    plot_schedule(config, 8, tmp_path / "tcd.svg")
    assert "<svg" in (tmp_path / "tcd.svg").read_text()
    with pytest.raises(FovealError, match=r"end the name in .png, .pdf or .svg"):
        plot_schedule(config, 8, tmp_path / "tcd.xyz")
