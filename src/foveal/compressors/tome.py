"""ToMe (arXiv 2210.09461): merge similar tokens inside the vision tower, a few in every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveal.compressors.base import MethodCard, Positions, TowerCompressor
from foveal.compressors.context import Selection, TowerContext
from foveal.compressors.selection import bipartite_match, match_flops
from foveal.compressors.sizes import StageSizes
from foveal.errors import FovealError

__all__ = ["ToMe"]


@dataclass(frozen=True, kw_only=True)
class ToMe(TowerCompressor):
    """Between attention and MLP of every tower block, merge the pairs of tokens with the most similar keys.

    Tokens are split alternately into two sets; each token of the first proposes its most similar partner in the second
    (cosine of the keys, averaged over heads), and the best proposals merge into averages weighted by the number of
    patches that each side stands for. The class token never merges. The paper removes a constant number a block; here
    as even a number as reaches `keep`, at most half of what is left. Tokens stay in raster order, while the paper's
    code puts those of the second set last, so that from the second block on it splits them otherwise.

    Args:
        proportional: attention counts a merged token as often as it stands for patches (log of its size is added to
            the scores of its key), which the paper needs where a model was not trained with merging.
    """

    positions: Positions = "packed"
    proportional: bool = True

    merges_in_tower: ClassVar[bool] = True
    card: ClassVar[MethodCard] = MethodCard(
        name="tome",
        title="ToMe",
        paper="arXiv 2210.09461",
        stage="pre-LM",
        summary="averages of the patches with the most similar keys, merged in every tower block",
        rule="In every block of the tower split tokens alternately into two sets.\n"
        "Each token of the first proposes the most similar of the second, by keys; the best pairs merge.\n"
        "Averages are weighted by the patches that each side stands for.",
        needs="a CLIP or SigLIP tower",
        tokens="keep in every decoder layer; the tower's later blocks see fewer too",
        weak="blurs small objects and text (OCR); ignores the question; cannot keep fewer than half of what enters a "
        "block, so a shallow tower limits keep",
        servable="yes: exactly keep tokens",
    )

    def removals(self, tokens: int, blocks: int) -> tuple[int, ...]:
        """How many of `tokens` patches disappear in each of the blocks.

        Raises:
            FovealError: half of the tokens in every block do not suffice to reach `keep`.
        """
        left, removed = tokens, []
        (target,) = self.counts((tokens,))
        for block in range(blocks):
            later = blocks - block - 1
            even = -(-(left - target) // (later + 1))
            needed = (
                left - target * 2**later
            )  # or the blocks behind could not halve what is left often enough
            removed.append(min(max(even, needed), left // 2))
            left -= removed[-1]
        if left > target:
            raise FovealError(
                f"keep={self.keep} cannot be reached: each of {blocks} tower blocks merges at most half of its tokens, "
                f"which leaves {left}: pass a larger keep, or add a method inside the decoder"
            )
        return tuple(removed)

    def match(self, metric: Tensor, removed: int, class_token: bool) -> tuple[Tensor, Tensor]:
        """Where each token goes: (images, left) an index, and whether it goes, by keys (images, left, width)."""
        everywhere = torch.ones(metric.shape[:2], dtype=torch.bool, device=metric.device)
        protected = torch.zeros_like(everywhere)
        protected[:, : int(class_token)] = True
        merges = torch.full((len(metric),), removed, device=metric.device)
        return bipartite_match(metric, everywhere, merges, protected)

    def choose(self, context: TowerContext) -> Selection:
        """The slots of the tokens that were left, and what they stand for."""
        count = context.features.shape[1]
        if context.slots is None or context.members is None:
            kept = torch.ones(len(context.features), count, dtype=torch.bool, device=context.features.device)
            return Selection(kept=kept, counts=(count,) * len(kept))
        empty = torch.zeros(
            len(context.features), context.tokens, dtype=torch.bool, device=context.slots.device
        )
        kept = empty.scatter(1, context.slots, True)
        shares = context.members / context.members.sum(dim=2, keepdim=True)
        return Selection(kept=kept, counts=(count,) * len(kept), sources=shares)

    def flops(self, sizes: StageSizes) -> int:
        """Matching in every block; merging adds up without products."""
        total, left = 0, sizes.keys
        for removed in self.removals(sizes.tokens, sizes.blocks):
            total += match_flops(sizes.images, left, sizes.head_width) if removed else 0
            left -= removed
        return total
