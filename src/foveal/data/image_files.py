"""What can be known about an image without decoding it: its size, and whether its file is whole."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

from PIL import Image

from foveal.errors import FovealError
from foveal.images import open_image

__all__ = ["check_image", "image_size"]

_TAIL = 1 << 12
_SWAPPED = (5, 6, 7, 8)  # EXIF orientations that turn a picture by 90 degrees
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def image_size(image: Image.Image | Path | bytes) -> tuple[int, int]:
    """(height, width) of the picture when it is upright, read from the head of its file.

    Raises:
        FovealError: the file is missing or no picture.
    """
    if isinstance(image, Image.Image):
        return _upright_size(image)
    try:
        with _file(image) as file, Image.open(file) as picture:
            return _upright_size(picture)
    except _BROKEN as error:
        raise _unreadable(image, error) from error


def check_image(image: Image.Image | Path | bytes) -> tuple[int, int]:
    """The same size, once the file looks whole.

    A PNG has checksums, and a JPEG should have its end mark; without it, and in other formats, the picture is decoded
    to be sure. Damage inside a JPEG that leaves its ends alone is not found.

    Raises:
        FovealError: the file is missing, no picture, or cut off.
    """
    if isinstance(image, Image.Image):
        return _upright_size(image)
    try:
        with _file(image) as file:
            with Image.open(file) as picture:
                size = _upright_size(picture)
                whole = _looks_whole(picture, file)
            if not whole:
                open_image(cast(Any, file))
    except (*_BROKEN, FovealError) as error:
        raise _unreadable(image, error) from error
    return size


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    width, height = picture.size
    # Pillow would decode a whole PNG to look for EXIF at its end.
    known = picture.format != "PNG" or "exif" in picture.info
    turned = known and picture.getexif().get(0x0112) in _SWAPPED
    return (width, height) if turned else (height, width)


def _looks_whole(picture: Image.Image, file: BinaryIO) -> bool:
    """Whether the format itself says so; False where only decoding can tell. Raises as Pillow does if it is broken."""
    if picture.format == "JPEG":
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - _TAIL))
        return b"\xff\xd9" in file.read()
    if picture.format == "PNG":
        picture.verify()
        return True
    return False


def _file(image: Path | bytes) -> BinaryIO:
    return BytesIO(image) if isinstance(image, bytes) else image.open("rb")


def _unreadable(image: Path | bytes, error: Exception) -> FovealError:
    if isinstance(error, FileNotFoundError):
        return FovealError(f"no such image: {image!s}")
    name = image if isinstance(image, Path) else f"an image of {len(image)} bytes"
    return FovealError(f"cannot read {name} as an image: is it a whole PNG, JPEG or WebP file?")
