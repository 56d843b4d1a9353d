from __future__ import annotations

import pytest

from foveal import FovealError
from foveal.cli.common import join_values, layer_option, make_method, split_values
from foveal.compressors import DART, PyramidDrop, ToMe


@pytest.mark.parametrize(
    ("words", "joined"),
    [
        ("eval --keep 48 32 16 --limit 3", "eval --keep 48,32,16 --limit 3"),
        ("eval --keep 48 32 16", "eval --keep 48,32,16"),
        ("eval --limit 3 --keep 48", "eval --limit 3 --keep 48"),
        ("eval --keep 48,32 16", "eval --keep 48,32,16"),
        ("eval --method none dart --keep 9 1/9", "eval --method none,dart --keep 9,1/9"),
        ("eval --keep", "eval --keep"),
        ("eval --keep -3 9", "eval --keep -3,9"),
        ("eval --keep 9 -h", "eval --keep 9 -h"),
        ("eval --out 9 16", "eval --out 9 16"),
        ("--keep 9 16", "--keep 9,16"),
        ("", ""),
    ],
)
def test_values_after_an_option_are_joined(words: str, joined: str) -> None:
    assert join_values(words.split(), ("--keep", "--method")) == joined.split()


def test_what_is_joined_or_typed_is_split_again() -> None:
    assert split_values("48,,32, 16 9,48") == ["48", "32", "16", "9"]
    assert split_values(" , ") == []


def test_a_layer_is_for_methods_that_have_one_to_choose() -> None:
    assert layer_option(DART, 3) == {"layer": 3}
    assert layer_option(ToMe, None) == layer_option(DART, None) == {}
    with pytest.raises(FovealError, match="--layer 3: tome drops tokens before the decoder"):
        layer_option(ToMe, 3)
    with pytest.raises(FovealError, match="--layer 3: pyramiddrop drops tokens at several layers"):
        layer_option(PyramidDrop, 3)


def test_methods_by_name() -> None:
    assert make_method("none", 16, 3) is None
    assert make_method("dart", 16) == DART(keep=16)
    assert make_method("dart", 16, 3) == DART(keep=16, layer=3)
    assert make_method("tome", 16) == ToMe(keep=16)
