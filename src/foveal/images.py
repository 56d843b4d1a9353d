"""Open the pictures people have: of any size and mode, rotated by EXIF, transparent, or broken."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps

from foveal.errors import FovealError

__all__ = ["open_image"]


def open_image(image: Image.Image | str | Path) -> Image.Image:
    """The picture upright and in RGB: EXIF rotation applied, transparency laid on white.

    Raises:
        FovealError: the file is missing or no picture.
    """
    if isinstance(image, Image.Image):
        return _upright(image)
    try:
        with Image.open(image) as picture:
            return _upright(picture)
    except FileNotFoundError as error:
        raise FovealError(f"no such image: {image}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FovealError(
            f"cannot read {image} as an image: is it a whole PNG, JPEG or WebP file?"
        ) from error


def _upright(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if not picture.has_transparency_data:
        return _eight_bit(picture).convert("RGB")
    paper = Image.new("RGBA", picture.size, "white")
    paper.alpha_composite(picture.convert("RGBA"))
    return paper.convert("RGB")


def _eight_bit(picture: Image.Image) -> Image.Image:
    """16-bit greyscale scaled to 8 bits: Pillow's own conversion would clip it to white."""
    return (
        picture.point(lambda value: value / 256).convert("L") if picture.mode.startswith("I;16") else picture
    )
