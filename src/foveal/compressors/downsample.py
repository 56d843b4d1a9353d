"""Downsampling: the vision tower sees a smaller image, and so makes fewer tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from foveal.compressors.base import MethodCard, Positions, TowerCompressor
from foveal.compressors.context import Selection, TowerContext
from foveal.compressors.grids import cell_centres, cell_shares, coarse_counts, coarse_grid
from foveal.compressors.sizes import StageSizes

__all__ = ["Downsample"]


@dataclass(frozen=True, kw_only=True)
class Downsample(TowerCompressor):
    """Resize the image to `keep` patches before the tower: the baseline that many methods lose to.

    The image is resized with antialiased bilinear interpolation, and the tower interpolates its position embeddings.
    Rows and columns are the largest grid of at most `keep` patches whose width / height is the original's within a
    factor 2, as close to it as possible: of 24x24 patches 64 are 8x8, 128 are 8x16, 32 are 4x8. Not every count is such
    a grid: keep=47 becomes 45 (5x9), and `counts` says so. A patch takes the place of the original one in its middle.
    """

    positions: Positions = "packed"

    card: ClassVar[MethodCard] = MethodCard(
        name="downsample",
        title="Downsampling",
        paper="baseline",
        stage="pre-LM",
        summary="the patches of a smaller image",
        rule="Resize the image to at most keep patches (bilinear, antialiased), as near its shape as possible.\n"
        "The vision tower sees that image only, and interpolates its position embeddings.\n"
        "All its tokens are kept. The baseline that many methods lose to, and the tower is cheaper too.",
        needs="a tower that can interpolate its positions, and whose every patch becomes one visual token",
        tokens="the largest grid of at most keep patches (47 -> 5x9 = 45), in every layer of the decoder; as many "
        "in the tower",
        weak="small text (OCR) and small objects: gone before the tower sees them; sizes far from the tower's training",
        servable="yes: the grid follows from keep, whatever the image shows",
    )

    def resized(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of the smaller image."""
        return coarse_grid(self.counts((grid[0] * grid[1],))[0], grid)

    def choose(self, context: TowerContext) -> Selection:
        """Keep all tokens of the smaller image, which `context.features` hold already."""
        features, grid = context.features, context.grid
        shape = self.resized(grid)
        images, tokens = features.shape[:2]
        assert tokens == shape[0] * shape[1], f"the tower made {tokens} tokens of an image of {shape} patches"
        counts = (tokens,) * images
        if shape == grid:
            kept = torch.ones(images, tokens, dtype=torch.bool, device=features.device)
            return Selection(kept=kept, counts=counts)
        return Selection(
            kept=cell_centres(shape, grid, features.device).expand(images, -1),
            counts=counts,
            sources=cell_shares(shape, grid, features).expand(images, -1, -1),
        )

    def left(self, reaching: tuple[int, ...], whole: tuple[int, ...]) -> tuple[int, ...]:
        """Patches of the smaller image."""
        return coarse_counts(self.counts(reaching), reaching)

    def flops(self, sizes: StageSizes) -> int:
        """Nothing is multiplied: the tower does the work."""
        return 0
