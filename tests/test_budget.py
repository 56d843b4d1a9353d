"""Budgets as they are written."""

from __future__ import annotations

import pytest

from foveal import FovealError
from foveal.budget import parse_keep


def test_numbers_fractions_and_auto() -> None:
    assert [parse_keep(text) for text in ("16", "0.25", "1/4", "auto")] == [16, 0.25, 0.25, "auto"]
    assert isinstance(parse_keep("1.0"), float)


@pytest.mark.parametrize("text", ["x", "1/0", "", "Auto"])
def test_anything_else_is_named(text: str) -> None:
    with pytest.raises(FovealError, match=f"^--keep {text}: pass a number of tokens"):
        parse_keep(text)
    with pytest.raises(FovealError, match=f"^keep={text}: pass a number of tokens"):
        parse_keep(text, "keep=")
