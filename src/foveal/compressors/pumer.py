"""PuMer (arXiv 2305.17530): prune visual tokens that the text ignores, then merge the ones that are alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveal.compressors.base import MethodCard, Positions
from foveal.compressors.context import AttentionInputs, Rows, Selection, TokenContext
from foveal.compressors.selection import bipartite_match, match_flops, on_device, top_per_row
from foveal.compressors.sizes import StageSizes
from foveal.compressors.staging import (
    FallingCompressor,
    Stage,
    merge_matrix,
    seen_by_text,
    text_attention,
    text_attention_flops,
)
from foveal.errors import FovealError

__all__ = ["PuMer"]


@dataclass(frozen=True, kw_only=True)
class _PuMerStage(Stage):
    """Prune by the attention of text, and merge by keys."""

    method: PuMer

    def observe(self, attention: AttentionInputs, rows: Rows) -> Tensor:
        """(batch, rows, 2 + head width): attention from the prompt's text, from its last row, and the mean key."""
        text = (rows.prompt & ~rows.visual).to(torch.float32)
        received = text_attention(attention, rows, text / text.sum(dim=1, keepdim=True).clamp(min=1))
        keys = attention.key[:, :, -rows.prompt.shape[1] :].mean(dim=1)
        return torch.cat([received, keys.to(received.dtype)], dim=2)

    def score(self, context: TokenContext) -> Tensor:
        """The attention each visual token receives from the prompt's text."""
        return seen_by_text(context)

    def select(self, context: TokenContext) -> Selection:
        """Prune, match, and average what was matched."""
        assert context.observed is not None
        layout, scores = context.layout, self.score(context)
        counts = self.targets(context)
        split = [self._split(*pair) for pair in zip(layout.lengths, counts, strict=True)]
        left, merges = on_device(split, scores.device).unbind(dim=1)
        left = top_per_row(scores, left)
        if not any(count for _, count in split):
            return Selection(kept=left, counts=counts, scores=scores)
        goal, merged_away = bipartite_match(layout.gather(context.observed[:, :, 2:]), left, merges)
        kept = left & ~merged_away
        members = torch.zeros_like(goal).scatter_add(1, goal, left.long())
        weight = left / members.gather(1, goal).clamp(min=1).to(scores.dtype)
        slot = (kept.cumsum(dim=1) - 1).gather(1, goal)
        return Selection(kept=kept, counts=counts, scores=scores, mix=merge_matrix(slot, weight, max(counts)))

    def flops(self, sizes: StageSizes) -> int:
        """Attention of the text; and where tokens merge, matching and means."""
        _, merges = self._split(sizes.tokens, sizes.kept)
        matching = match_flops(sizes.images, sizes.tokens, sizes.head_width) + sizes.merging(sizes.tokens)
        return text_attention_flops(sizes) + (matching if merges else 0)

    def _split(self, length: int, target: int) -> tuple[int, int]:
        """How many of an image's tokens to leave by pruning, and how many of those to merge into others."""
        surplus = length - target
        pruned = math.floor(self.method.prune_share * surplus + 0.5)
        pruned = max(pruned, length - 2 * target)  # matching removes no more than every second token
        return length - pruned, surplus - pruned


@dataclass(frozen=True, kw_only=True)
class PuMer(FallingCompressor):
    """At each stage prune the visual tokens that text attends to least, then merge the most alike of the others.

    What PuMer does in the layers of a cross-modal encoder, carried over to a decoder. The score is the attention of
    layer K-1 from the prompt's text, averaged over its rows and over heads; text in front of an image has none to give
    in a causal decoder, and an image behind all text is scored by the last prompt row. Tokens that are left are matched
    within their image by the cosine of that layer's keys, averaged over heads (`bipartite_match`; rotary embedding
    applied, so neighbours are alike a little sooner). A token that others were merged into becomes their mean with it,
    at its own position; how many tokens an earlier stage merged into each is not remembered.

    `layers` are by default a quarter, a half and three quarters of the depth.

    Args:
        prune_share: the part of each stage's reduction that is done by pruning. Merging removes at most every second
            token; what it cannot is pruned, so that the count is exact.
    """

    positions: Positions = "original"
    prune_share: float = 0.4

    stage: ClassVar[type[Stage]] = _PuMerStage

    card: ClassVar[MethodCard] = MethodCard(
        name="pumer",
        title="PuMer",
        paper="arXiv 2305.17530",
        stage="in-LM",
        summary="largest attention from the question's text; of these, the most alike are merged, in stages",
        rule="At three layers prune the visual tokens to which the text attends least in the layer before.\n"
        "Then merge the most alike of the others in pairs, by the keys of that layer.\n"
        "Every stage removes the same fraction, until keep are left.",
        needs="layers >= 1; text behind the image",
        tokens="keep after the last stage; averaged over the layers at the defaults (N + n1 + n2 + keep) / 4, where "
        "n1 and n2 fall geometrically",
        weak="made for trained encoders (ViLT, METER): untried on decoders without training; merging blurs small text "
        "(OCR); in multi-turn chats the first question decides for all",
        servable="yes: exactly keep tokens, counts known for every layer",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.prune_share <= 1:
            raise FovealError(
                f"prune_share={self.prune_share} must be in [0, 1]: 1 prunes only, 0 merges where it can"
            )
