"""Reading what a load is made of: number formats, visual tokens of an image, and methods' own options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from foveal.errors import FovealError

if TYPE_CHECKING:
    import torch

    from foveal.compressors import Compressor

__all__ = ["DTYPES", "method_options", "parse_dtype", "parse_visual"]

DTYPES = ("float32", "bfloat16", "float16")


def parse_dtype(name: str) -> torch.dtype:
    """The number format of that name.

    Raises:
        FovealError: it is none of `DTYPES`.
    """
    import torch

    if name not in DTYPES:
        raise FovealError(f"--dtype {name}: pass {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    found: torch.dtype = getattr(torch, name)
    return found


def parse_visual(text: str) -> int | tuple[int, int]:
    """Read a number of visual tokens, or rows and columns of them such as "24x32".

    Raises:
        FovealError: it is neither.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise FovealError(
            f"--visual {text}: pass a number of visual tokens, or rows and columns such as 24x32"
        )
    return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def method_options(method: type[Compressor], given: Sequence[str]) -> dict[str, Any]:
    """Read `--option NAME=VALUE`, the values as YAML has them.

    Args:
        method: that has the options.
        given: what was given, an option each.

    Raises:
        FovealError: the method has no such option.
    """
    import yaml

    known = [item.name for item in fields(method) if item.init and item.name not in ("keep", "layer")]
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise FovealError(f"--option {text}: pass NAME=VALUE, with a NAME among {', '.join(known)}")
        found[name] = yaml.safe_load(value)
    return found
