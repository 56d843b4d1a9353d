"""Pictures of what a method kept: kept patches bright, dropped ones dimmed; scores as a heat map; merges in colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from foveal.compression import Run
from foveal.errors import FovealError

__all__ = [
    "grid_of",
    "heat_map",
    "merge_map",
    "overlay",
    "seen_images",
    "side_by_side",
    "stage_pictures",
]

WIDTH = 480
_EDGE = (255, 149, 0)
_GAP = 12


def grid_of(tokens: int) -> tuple[int, int]:
    """Rows and columns of a square image with `tokens` visual tokens.

    Raises:
        FovealError: `tokens` is no square number; the grid must then be given.
    """
    side = math.isqrt(tokens)
    if tokens < 1 or side * side != tokens:
        raise FovealError(f"{tokens} visual tokens form no square: pass grid=(rows, columns)")
    return side, side


def overlay(
    image: Image.Image, kept: Sequence[int] | Tensor, grid: tuple[int, int], width: int = WIDTH
) -> Image.Image:
    """The image with dropped patches dimmed and kept ones framed.

    Args:
        image: what the model saw.
        kept: indices of the kept tokens among the image's own, in raster order.
        grid: rows and columns of tokens.
        width: of the result, in pixels.

    Raises:
        FovealError: a kept index lies outside the grid.
    """
    indices = [int(index) for index in kept]
    if any(not 0 <= index < grid[0] * grid[1] for index in indices):
        raise FovealError(
            f"kept tokens must lie in 0..{grid[0] * grid[1] - 1}, the {grid[0]} x {grid[1]} grid"
        )
    bright = _enlarge(image, width)
    picture = Image.blend(bright.convert("L").convert("RGB"), Image.new("RGB", bright.size, "white"), 0.72)
    draw = ImageDraw.Draw(picture)
    for index in indices:
        box = _box(index, grid, picture.size)
        picture.paste(bright.crop(box), box)
    for index in indices:
        left, top, right, bottom = _box(index, grid, picture.size)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=_EDGE, width=max(1, width // 240))
    return picture


def heat_map(
    image: Image.Image, scores: Sequence[float] | Tensor, grid: tuple[int, int], width: int = WIDTH
) -> Image.Image:
    """The image in grey under a colour map of its tokens' ranks: dark for the lowest score, yellow for the highest.

    Raises:
        FovealError: there is not one score per token of the grid.
    """
    values = np.asarray([float(score) for score in scores])
    if values.size != grid[0] * grid[1]:
        raise FovealError(f"{values.size} scores do not fill a grid of {grid[0]} x {grid[1]} tokens")
    ranks = values.argsort(kind="stable").argsort(kind="stable").reshape(grid) / max(values.size - 1, 1)
    colors = (colormaps["viridis"](ranks)[..., :3] * 255).astype(np.uint8)
    base = _enlarge(image, width).convert("L").convert("RGB")
    return Image.blend(base, Image.fromarray(colors).resize(base.size, Image.Resampling.NEAREST), 0.6)


def merge_map(image: Image.Image, sources: Tensor, grid: tuple[int, int], width: int = WIDTH) -> Image.Image:
    """The image with one colour for all patches that went into the same kept token; the others are grey.

    Args:
        image: what the model saw.
        sources: (kept, tokens) weight of each token in each kept one, see `Stage.sources`. A patch with a share in
            several kept tokens has the colour of the largest.
        grid: rows and columns of tokens.
        width: of the result, in pixels.

    Raises:
        FovealError: there is not one column per token of the grid.
    """
    if sources.shape[1] != grid[0] * grid[1]:
        raise FovealError(f"{sources.shape[1]} tokens do not fill a grid of {grid[0]} x {grid[1]} tokens")
    weights = sources.abs()
    owner = weights.argmax(dim=0).numpy()
    # Neighbouring numbers get colours far apart: steps of the golden ratio around the wheel.
    colors = (colormaps["hsv"]((owner * 0.618034) % 1.0)[:, :3] * 255).astype(np.uint8)
    colors[~(weights > 0).any(dim=0).numpy()] = 255
    base = _enlarge(image, width).convert("L").convert("RGB")
    paint = Image.fromarray(colors.reshape(*grid, 3)).resize(base.size, Image.Resampling.NEAREST)
    return Image.blend(base, paint, 0.5)


def _enlarge(image: Image.Image, width: int) -> Image.Image:
    """Small images stay crisp, large ones are resampled smoothly."""
    height = round(image.height * width / image.width)
    smooth = Image.Resampling.NEAREST if image.width * 2 <= width else Image.Resampling.LANCZOS
    return image.convert("RGB").resize((width, height), smooth)


def _box(index: int, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    row, column = divmod(index, grid[1])
    xs = [round(size[0] * edge / grid[1]) for edge in (column, column + 1)]
    ys = [round(size[1] * edge / grid[0]) for edge in (row, row + 1)]
    return xs[0], ys[0], xs[1], ys[1]


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """The pictures in a row on white, a small gap between them."""
    width = sum(picture.width for picture in pictures) + _GAP * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + _GAP
    return sheet


def seen_images(pixel_values: Tensor, processor: Any) -> list[Image.Image]:
    """What the model saw, resized and cropped as it was: normalised pixels turned back into pictures.

    Args:
        pixel_values: (images, 3, height, width).
        processor: the processor that made them.

    Raises:
        FovealError: another shape, as of models that cut an image into tiles.
    """
    if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
        raise FovealError(
            f"pixel values of shape {tuple(pixel_values.shape)} are not (images, 3, height, width)"
        )
    settings = processor.image_processor
    pixels: NDArray[np.float32] = pixel_values.detach().float().cpu().numpy().transpose(0, 2, 3, 1)
    pixels = pixels * np.asarray(settings.image_std) + np.asarray(settings.image_mean)
    return [Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8)) for picture in pixels]


def stage_pictures(run: Run, images: Sequence[Image.Image], tokens: int) -> list[Image.Image]:
    """One picture per image of the last forward: the image, what each stage kept, merges and scores if there are any.

    Args:
        run: the compressor at work, after a forward or `generate`.
        images: what the model saw, see `seen_images`.
        tokens: visual tokens of each image before compression.

    Raises:
        FovealError: nothing was compressed yet, or the images are not those of the last forward.
    """
    stages, grid = run.stages, grid_of(tokens)
    first, last = stages[0], stages[-1]
    if len(images) != len(first.kept_in_image):
        raise FovealError(
            f"{len(images)} pictures given, but the last forward had {len(first.kept_in_image)} images"
        )
    sheets = []
    for number, image in enumerate(images):
        panels = [_enlarge(image, WIDTH)]
        panels += [overlay(image, stage.kept_in_image[number], grid) for stage in stages]
        if last.sources is not None and _merges(last.sources[number]):
            panels.append(merge_map(image, last.sources[number], grid))
        if first.scores is not None:
            panels.append(heat_map(image, first.scores[number], grid))
        sheets.append(side_by_side(panels))
    return sheets


def _merges(sources: Tensor) -> bool:
    """Whether some kept token stands for several."""
    return bool(((sources != 0).sum(dim=1) > 1).any())
