"""DivPrune (arXiv 2503.02175): keep the tokens that lie farthest from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from foveal.compressors.base import Compressor, MethodCard, Positions
from foveal.compressors.context import Selection, TokenContext
from foveal.compressors.selection import countdown, farthest_first, gram, gram_flops, on_device
from foveal.compressors.sizes import StageSizes

__all__ = ["DivPrune"]


@dataclass(frozen=True, kw_only=True)
class DivPrune(Compressor):
    """Max-min diversity: pick tokens one by one, each the farthest from all picked before, by cosine distance.

    The first pick is the token whose nearest neighbour is farthest. At layer 0, the paper's place, these are the
    projector's outputs; later layers compare the residual stream. Scores are the picking order, counted down: `keep`
    for the first pick, 1 for the last, 0 for what was dropped.

    Args:
        parity: round a fractional keep as the released code does, halves to the even count (0.1 of 25 tokens: 2,
            not 3).
    """

    layer: int = 0
    positions: Positions = "packed"
    parity: bool = False

    card: ClassVar[MethodCard] = MethodCard(
        name="divprune",
        title="DivPrune",
        paper="arXiv 2503.02175",
        stage="pre-LM",
        summary="farthest from each other in cosine distance",
        rule="Start with the token whose nearest neighbour is farthest.\n"
        "Then add, one by one, the token farthest from all that were picked.\n"
        "Neither attention nor the question is looked at.",
        needs="nothing",
        tokens="keep in every layer of the decoder; from another layer K on, averaged over D layers "
        "(K N + (D - K) keep) / D",
        weak="blind to the question: odd but irrelevant patches are kept; small text (OCR); as many sequential steps "
        "as tokens kept",
        servable="yes: exactly keep tokens",
    )

    def select(self, context: TokenContext) -> Selection:
        """Compare every image's tokens with each other, and pick."""
        layout = context.layout
        tokens = layout.gather(context.hidden)
        tokens = functional.normalize(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), dim=-1)
        counts = self.targets(context)
        wanted = on_device(counts, tokens.device)
        order = farthest_first(gram(tokens), layout.valid, wanted, max(counts))
        scores = countdown(order, wanted, tokens.shape[1])
        return Selection(kept=scores > 0, counts=counts, scores=scores)

    def left(self, reaching: tuple[int, ...], whole: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens that stay of each image, counted as `parity` says."""
        if self.parity and isinstance(self.keep, float):
            return tuple(max(1, round(self.keep * length)) for length in reaching)
        return self.counts(reaching)

    def flops(self, sizes: StageSizes) -> int:
        """Similarity of all tokens to each other."""
        return gram_flops(sizes.images, sizes.tokens, sizes.width)
