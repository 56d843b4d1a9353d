"""FastV (arXiv 2403.06764): keep the visual tokens that the last prompt token attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveal.compressors.base import Compressor, MethodCard
from foveal.compressors.context import AttentionInputs, TokenContext

__all__ = ["FastV"]


@dataclass(frozen=True, kw_only=True)
class FastV(Compressor):
    """Rank visual tokens by the attention of layer K-1, averaged over heads, in the row of the last prompt token.

    Only that one row is computed, whatever the attention backend. The released code ranks a whole batch by its first
    sample; here every sample has its own ranking.
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="fastv",
        title="FastV",
        paper="arXiv 2403.06764",
        stage="in-LM",
        rule="largest attention from the last prompt token in layer K-1",
        needs="layer >= 1",
        weak="keeps neighbours that say the same; favours late positions",
    )

    def observe(self, attention: AttentionInputs, prompt: Tensor) -> Tensor:
        """(batch, rows) mean attention of the last prompt token to this forward's rows."""
        row = torch.arange(prompt.shape[1], device=prompt.device)
        last = torch.where(prompt, row, 0).amax(dim=1)
        return attention.row(last).mean(dim=1)[:, -prompt.shape[1] :]

    def score(self, context: TokenContext) -> Tensor:
        """The attention each visual token receives."""
        assert context.observed is not None
        return context.layout.gather(context.observed)
