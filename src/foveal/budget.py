"""A budget as it is written on a command line or in a file: how many visual tokens of an image are kept."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from foveal.errors import FovealError

__all__ = ["Budget", "parse_keep"]

Budget = int | float | Literal["auto"]


def parse_keep(text: str, option: str = "--keep ") -> Budget:
    """Read a number of tokens such as "16", a fraction of them such as "0.25" or "1/9", or "auto".

    Args:
        text: the budget.
        option: what stands before it where it was written, for the message.

    Raises:
        FovealError: it is none of them.
    """
    if text == "auto":
        return "auto"
    try:
        if "/" in text or "." in text:
            return float(Fraction(text))
        return int(text)
    except (ValueError, ZeroDivisionError) as error:
        raise FovealError(
            f"{option}{text}: pass a number of tokens such as 16, a fraction such as 1/9, or auto"
        ) from error
