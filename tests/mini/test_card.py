"""The card says what was measured."""

from __future__ import annotations

import json
import re

import pytest

import foveal.mini
from foveal.mini.card import card

RESULTS = json.loads((foveal.mini.weights_path() / "results.json").read_text(encoding="utf-8"))


def test_the_card_beside_the_weights_is_written_from_the_results() -> None:
    assert (foveal.mini.weights_path() / "README.md").read_text(encoding="utf-8") == card(RESULTS)


def test_every_rate_stands_in_the_card_with_its_interval() -> None:
    text = card(RESULTS)
    for part in ("scenes", "easy_vqa"):
        for name, rate in RESULTS[part].items():
            pattern = rf"^\| {re.escape(name)} \| {rate['count']} \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|"
            row = re.search(pattern, text, re.MULTILINE)
            assert row is not None, name
            assert float(row[2]) <= float(row[1]) <= float(row[3])
            assert float(row[1]) == pytest.approx(100 * rate["value"], abs=0.051)


@pytest.mark.parametrize(
    ("part", "name", "least"),
    [
        ("scenes", "overall", 0.85),
        ("scenes", "existence", 0.95),
        ("scenes", "position", 0.95),
        ("easy_vqa", "overall", 0.97),
    ],
)
def test_the_targets_were_reached(part: str, name: str, least: float) -> None:
    assert RESULTS[part][name]["value"] >= least
    assert RESULTS[f"{part}_blanked"][name]["value"] < 0.65
