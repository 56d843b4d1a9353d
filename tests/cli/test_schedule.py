from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveal.distillation import SCHEDULES


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_has_a_table(run: Any, name: str) -> None:
    ran = run("schedule", name)
    assert ran.code == 0
    assert f"{name}, 32 layers" in ran.out
    assert len(ran.out.strip().splitlines()) == 2 + 11


def test_numbers_for_a_program(run: Any) -> None:
    found = json.loads(run("schedule", "lcd", "--depth", 8, "--layer", 3, "--gap_end", 0.2, "--json").out)
    last = found["moments"][-1]
    assert (found["schedule"], found["depth"], len(found["moments"])) == ("lcd", 8, 11)
    assert (last["t"], last["layer"], last["student"], last["teacher"]) == (1, 3, [0.1, 0.8], [0.3, 1.0])
    assert found["moments"][0]["teacher"] is None


def test_a_picture(run: Any, tmp_path: Path) -> None:
    ran = run("schedule", "icd", "--out", tmp_path / "icd.png")
    assert (ran.code, ran.out.strip()) == (0, f"drawn in {tmp_path / 'icd.png'}")
    with Image.open(tmp_path / "icd.png") as picture:
        assert picture.width == 1200


def test_the_depth_of_a_model(run: Any, checkpoint: Path) -> None:
    assert "lcd, 4 layers" in run("schedule", "lcd", "--model", checkpoint).out
    assert "lcd, 40 layers" in run("schedule", "lcd", "--model", "llava-hf/llava-1.5-13b-hf").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tdc"], "unknown schedule 'tdc'"),
        (["tcd", "--gap_en", "1"], "did you mean --gap_end?"),
        (["tcd", "--gap_end", "2"], "gap="),
        (["lcd", "--depth", "1"], "must go from deep to shallow"),
        (["tcd", "--depth", "4", "--model", "here"], "leave one out"),
        (["tcd", "--out", "here.xyz"], "end the name in .png"),
    ],
)
def test_what_is_refused(run: Any, words: list[str], message: str) -> None:
    ran = run("schedule", *words)
    assert ran.code == 2
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1
