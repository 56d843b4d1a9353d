"""FastV (arXiv 2403.06764): keep the visual tokens that the last prompt token attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveal.compressors.base import Compressor, MethodCard
from foveal.compressors.context import AttentionInputs, Rows, TokenContext
from foveal.compressors.sizes import StageSizes

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
        summary="largest attention from the last prompt token in layer K-1",
        rule="Take the attention of layer K-1, averaged over heads, in the row of the last prompt token.\n"
        "Keep the visual tokens with the largest entries.\n"
        "No other row is computed, whatever the attention backend.",
        needs="layer >= 1",
        tokens="keep after layer K; averaged over D layers (K N + (D - K) keep) / D",
        weak="keeps neighbours that say the same; favours late positions; the last token of a chat template knows "
        "little of the question in early layers",
        servable="yes: exactly keep tokens",
    )

    def observe(self, attention: AttentionInputs, rows: Rows) -> Tensor:
        """(batch, rows) mean attention of the last prompt token to this forward's rows."""
        return attention.row(rows.last).mean(dim=1)[:, -rows.prompt.shape[1] :]

    def score(self, context: TokenContext) -> Tensor:
        """The attention each visual token receives."""
        assert context.observed is not None
        return context.layout.gather(context.observed)

    def flops(self, sizes: StageSizes) -> int:
        """One row of attention."""
        return sizes.attention(1)
