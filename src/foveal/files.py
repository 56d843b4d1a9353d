"""Read the text files people have."""

from __future__ import annotations

from pathlib import Path

from foveal.errors import FovealError

__all__ = ["read_text"]


def read_text(path: Path) -> str:
    """The content of a UTF-8 file, without the mark that some editors put in front.

    Raises:
        FovealError: the file is missing, or no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise FovealError(f"no such file: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FovealError(f"cannot read {path} as UTF-8 text: {error}") from error
