"""Average pooling: every visual token becomes the mean of a cell of neighbouring patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from foveal.compressors.base import MethodCard, Positions, TowerCompressor
from foveal.compressors.context import Selection, TowerContext
from foveal.compressors.grids import cell_centres, cell_shares, coarse_counts, coarse_grid
from foveal.compressors.sizes import StageSizes

__all__ = ["AveragePooling"]


@dataclass(frozen=True, kw_only=True)
class AveragePooling(TowerCompressor):
    """Cut the grid of patches into `keep` cells and average the features of each, in front of the projector.

    The cells are those of torch's adaptive average pooling. Their rows and columns are the largest grid of at most
    `keep` cells whose width / height is the image's within a factor 2, with cells as square as possible: on 24x24
    patches 64 are 8x8, 128 are 8x16, 32 are 4x8. Not every count is such a grid: keep=47 becomes 45 (5x9), and `counts`
    says so. A cell's token takes the place of the patch in its middle.
    """

    positions: Positions = "packed"

    card: ClassVar[MethodCard] = MethodCard(
        name="pooling",
        title="Average pooling",
        paper="baseline",
        stage="pre-LM",
        summary="means of neighbouring patches",
        rule="Cut the grid of patches into at most keep cells, as square as possible.\n"
        "A token is the mean of its cell's features, in front of the projector.\n"
        "The same cells in every image: neither the image nor the question is looked at.",
        needs="a tower whose every patch becomes one visual token",
        tokens="the largest grid of at most keep cells (47 -> 5x9 = 45), in every layer of the decoder",
        weak="small text (OCR) and small objects: averaged away; the projector never saw means in training",
        servable="yes: the grid follows from keep, whatever the image shows",
    )

    def choose(self, context: TowerContext) -> Selection:
        """One cell size for all images."""
        features, grid = context.features, context.grid
        images = len(features)
        shape = coarse_grid(self.counts((context.tokens,))[0], grid)
        counts = (shape[0] * shape[1],) * images
        if shape == grid:
            kept = torch.ones(images, context.tokens, dtype=torch.bool, device=features.device)
            return Selection(kept=kept, counts=counts)
        return Selection(
            kept=cell_centres(shape, grid, features.device).expand(images, -1),
            counts=counts,
            mix=cell_shares(shape, grid, features).expand(images, -1, -1),
        )

    def left(self, reaching: tuple[int, ...], whole: tuple[int, ...]) -> tuple[int, ...]:
        """Cells of the grid."""
        return coarse_counts(self.counts(reaching), reaching)

    def flops(self, sizes: StageSizes) -> int:
        """Every cell is a weighted sum of all patches."""
        return sizes.merging(sizes.tokens) if sizes.kept < sizes.tokens else 0
