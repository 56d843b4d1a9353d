"""Random: the baseline that every method has to beat, and often does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveal.compressors.base import Compressor, MethodCard
from foveal.compressors.context import TokenContext
from foveal.compressors.selection import on_device
from foveal.compressors.sizes import StageSizes

__all__ = ["Random"]


@dataclass(frozen=True, kw_only=True)
class Random(Compressor):
    """Keep visual tokens drawn uniformly without replacement.

    One ranking is drawn from `seed` and cut at `keep`: a smaller keep is a subset of a larger one, and a sample's
    result does not depend on its batch.

    Args:
        seed: the same seed draws the same positions.
    """

    seed: int = 0

    card: ClassVar[MethodCard] = MethodCard(
        name="random",
        title="Random",
        paper="baseline",
        stage="in-LM",
        summary="uniform without replacement",
        rule="Rank positions once by the seed, and keep the first.\n"
        "Every image gets the same ranking; a smaller keep is a subset of a larger one.\n"
        "The baseline that a method has to beat.",
        needs="nothing",
        tokens="keep after layer K; averaged over D layers (K N + (D - K) keep) / D",
        weak="small objects and text: nothing protects them",
        servable="yes: exactly keep tokens",
    )

    def score(self, context: TokenContext) -> Tensor:
        """One uniform number per position, the same for every image."""
        images, tokens = context.layout.valid.shape
        generator = torch.Generator().manual_seed(self.seed)
        scores = torch.rand(tokens, generator=generator)
        return on_device(scores, context.hidden.device).expand(images, tokens)

    def flops(self, sizes: StageSizes) -> int:
        """Nothing is multiplied."""
        return 0
