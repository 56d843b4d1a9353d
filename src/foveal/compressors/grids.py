"""Coarser grids of an image's patches."""

from __future__ import annotations

from functools import lru_cache
from math import isqrt, prod

import torch
from torch import Tensor

__all__ = ["cell_centres", "cell_shares", "coarse_counts", "coarse_grid"]


@lru_cache(maxsize=256)
def coarse_grid(keep_count: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the largest coarser grid of at most `keep_count` cells.

    Its width / height differs from the image's by a factor of at most 2, unless only thinner shapes are this small. Of
    equally large grids the one with the squarest cells is taken, of equally square ones the wider.

    Args:
        keep_count: cells allowed, at least 1.
        grid: rows and columns of the patches.
    """
    rows, columns = grid
    shapes = [(h, w) for h in range(1, rows + 1) for w in range(1, columns + 1) if h * w <= keep_count]
    within = [shape for shape in shapes if _distortion(shape, grid) <= 2]
    return max(within or shapes, key=lambda shape: (shape[0] * shape[1], -_distortion(shape, grid), shape[1]))


def coarse_counts(keep_counts: tuple[int, ...], tokens: tuple[int, ...]) -> tuple[int, ...]:
    """Cells of the coarser grid of each image, whose patches are a square."""
    sides = (isqrt(count) for count in tokens)
    return tuple(prod(coarse_grid(keep, (side, side))) for keep, side in zip(keep_counts, sides, strict=True))


def cell_shares(shape: tuple[int, int], grid: tuple[int, int], like: Tensor) -> Tensor:
    """The share of each patch in each cell, as adaptive average pooling takes them: (cells, patches), rows sum to 1.

    Where the cells do not divide the grid, neighbouring cells share a row or column of patches.

    Args:
        shape: rows and columns of the cells.
        grid: rows and columns of the patches.
        like: the result has its device and its data type, float32 at least.
    """
    down, across = (_line_shares(cells, patches, like) for cells, patches in zip(shape, grid, strict=True))
    return torch.kron(down, across)


def cell_centres(shape: tuple[int, int], grid: tuple[int, int], device: torch.device) -> Tensor:
    """(patches,) bool: True at the patch in the middle of each cell, one a cell, in the same order as the cells."""
    down, across = (
        torch.zeros(patches, dtype=torch.bool, device=device).index_fill_(
            0, (2 * torch.arange(cells, device=device) + 1) * patches // (2 * cells), True
        )
        for cells, patches in zip(shape, grid, strict=True)
    )
    return (down[:, None] & across).flatten()


def _distortion(shape: tuple[int, int], grid: tuple[int, int]) -> float:
    """How much longer one side of a cell is than the other, measured in patches; at least 1."""
    one, other = shape[0] * grid[1], shape[1] * grid[0]
    return max(one, other) / min(one, other)


def _line_shares(cells: int, patches: int, like: Tensor) -> Tensor:
    """(cells, patches): cell i spans the patches from floor(i P / C) to ceil((i + 1) P / C)."""
    cell = torch.arange(cells, device=like.device)[:, None]
    patch = torch.arange(patches, device=like.device)
    start, end = cell * patches // cells, -(-(cell + 1) * patches // cells)
    inside = (patch >= start) & (patch < end)
    return inside.to(torch.promote_types(like.dtype, torch.float32)) / (end - start)
