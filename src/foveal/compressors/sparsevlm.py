"""SparseVLM (arXiv 2410.04417, version 1): visual tokens ranked by the words that concern the image, in stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveal.compressors.base import MethodCard
from foveal.compressors.context import AttentionInputs, Rows, Selection, TokenContext
from foveal.compressors.selection import density_peaks, falling, first_per_row, on_device
from foveal.compressors.sizes import StageSizes
from foveal.compressors.staging import (
    FallingCompressor,
    Stage,
    merge_matrix,
    seen_by_text,
    text_attention,
    text_attention_flops,
    with_weight,
)

__all__ = ["SparseVLM", "rater_affinity"]


@dataclass(frozen=True, kw_only=True)
class _SparseStage(Stage):
    """Keep what the raters attend to, and merge the best of the rest into a few clusters."""

    method: SparseVLM

    def observe(self, attention: AttentionInputs, rows: Rows) -> Tensor:
        """(batch, rows, 2) the raters' mean attention to this forward's rows, and the last prompt row's."""
        assert rows.read is not None
        return text_attention(attention, rows, rows.read)

    def score(self, context: TokenContext) -> Tensor:
        """The attention each visual token receives from the raters."""
        return seen_by_text(context)

    def select(self, context: TokenContext) -> Selection:
        """The largest scores, and clusters of the largest below them."""
        scores = self.score(context)
        split = self._splits(context.layout.lengths, context.whole_lengths)
        counts = tuple(kept + clusters for kept, clusters in split)
        order = falling(scores)
        kept = first_per_row(order, on_device([kept for kept, _ in split], scores.device))
        if any(clusters for _, clusters in split):
            kept, mix = self._recycle(context, order, kept, split)
            return Selection(kept=kept, counts=counts, scores=scores, mix=mix)
        return Selection(kept=kept, counts=counts, scores=scores)

    def left(self, reaching: tuple[int, ...], whole: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens and clusters."""
        return tuple(kept + clusters for kept, clusters in self._splits(reaching, whole))

    def flops(self, sizes: StageSizes) -> int:
        """Attention of the raters, at most all words; and where tokens merge, their distances and means."""
        ((kept, clusters),) = self._splits((sizes.tokens,), (sizes.whole,))
        pool = _pool(sizes.tokens - kept)
        recycling = sizes.products(pool, pool, sizes.width) + sizes.merging(sizes.tokens)
        return text_attention_flops(sizes) + (recycling if clusters else 0)

    def _splits(self, reaching: tuple[int, ...], whole: tuple[int, ...]) -> list[tuple[int, int]]:
        """Of each image, `_split` of what is to be left."""
        targets = super().left(reaching, whole)
        return [self._split(length, target) for length, target in zip(reaching, targets, strict=True)]

    def _split(self, length: int, target: int) -> tuple[int, int]:
        """How many of an image's tokens to keep, and how many clusters to make of the others."""
        if self.method.parity:
            kept = max(1, min(target, length - 1))
            return kept, _clusters(length - kept) if self.method.recycle else 0
        if target == length or not self.method.recycle:
            return target, 0
        # One token more makes the sum larger by 0 or 1, so the largest that fits meets the target.
        for kept in range(target - 1, 0, -1):
            if kept + _clusters(length - kept) <= target:
                return kept, target - kept
        return 1, target - 1

    def _recycle(
        self, context: TokenContext, order: Tensor, kept: Tensor, split: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Merge the best of what is dropped.

        Args:
            context: the stage's.
            order: (images, tokens) int64, the tokens by falling score.
            kept: (images, tokens) bool, the best.
            split: how many those are, and how many clusters to make, by image.

        Returns:
            the `kept` and the `mix` of a `Selection`.
        """
        pool, cluster, centers = self._cluster(context, order, split)
        most = max(kept + clusters for kept, clusters in split)
        slots = kept.scatter(1, centers, True)
        if self.positions == "packed":  # kept tokens first, then clusters, as released
            own = kept.cumsum(dim=1) - 1
            goal = own[:, -1:] + torch.arange(1, centers.shape[1] + 1, device=kept.device)
            goal.clamp_(max=most - 1)  # beyond an image's clusters, where nothing is merged
        else:  # every token keeps its position
            own = slots.cumsum(dim=1) - 1
            goal = own.gather(1, centers)

        dtype = torch.promote_types(context.hidden.dtype, torch.float32)
        merged, cluster = (cluster >= 0).to(dtype), cluster.clamp(min=0)
        size = torch.zeros_like(centers, dtype=dtype).scatter_add_(1, cluster, merged)
        share = 1 / (size + 1e-6 if self.method.parity else size.clamp_(min=1))
        mix = merge_matrix(own, kept.to(dtype), most)
        entry = goal.gather(1, cluster) * kept.shape[1] + pool
        mix.view(len(mix), -1).scatter_add_(1, entry, share.gather(1, cluster).mul_(merged))
        return slots, mix

    def _cluster(
        self, context: TokenContext, order: Tensor, split: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cluster the best of what is dropped.

        Returns:
            pool (images, pool) int64, the tokens that are merged, best first; cluster (images, pool) int64, the one
            that each joins, -1 for what is no such token; centers (images, clusters) int64, the tokens at their
            centers, and beyond an image's clusters the best token, which is kept.
        """
        layout, device = context.layout, order.device
        sizes = [
            (kept, clusters, _pool(length - kept) if clusters else 0)
            for length, (kept, clusters) in zip(layout.lengths, split, strict=True)
        ]
        kept, clusters, pooled = on_device(sizes, device).unbind(dim=1)
        place = torch.arange(max(pooled for _, _, pooled in sizes), device=device)
        pool = order.gather(1, (kept.unsqueeze(1) + place).clamp_(max=order.shape[1] - 1))
        centers, cluster = density_peaks(
            layout.gather(context.hidden, layout.rows.gather(1, pool)),
            place < pooled.unsqueeze(1),
            clusters,
            max(count for _, count in split),
        )
        return pool, cluster, torch.where(centers >= 0, pool.gather(1, centers.clamp(min=0)), order[:, :1])


@dataclass(frozen=True, kw_only=True)
class SparseVLM(FallingCompressor):
    """At each stage keep the visual tokens that the raters attend to most, and recycle the best of the others.

    Raters are words that concern the image, found once in the embeddings: every visual token spreads a soft-max of
    plain dot products over the prompt's text behind the sample's first image, and words whose mean is above average
    are raters. A sample with several images has one set of raters, asked about all of them; an image that no rater
    sees is scored by the last prompt row. The score is the attention of layer K-1 from the raters, averaged over them
    and over heads.

    Of n dropped tokens the best int(0.3 n) + 1 = m are merged into int(m / 10) + 1 means (`density_peaks`). They stand
    behind the image's kept tokens if positions are "packed", and where their center stood if "original". They are part
    of the budget, and may be dropped or merged again by the next stage. A budget too small for them has fewer, so that
    at least one token is kept.

    `layers` are those behind the paper's, which drop tokens after layers 2, 6 and 15 of 32, scaled to the depth.
    Budgets fall geometrically by default, which the paper's tables do not.

    Args:
        recycle: merge; False keeps the best only.
        parity: count as the released code does: `keep` and `budgets` are without the clusters, (300, 200) and 110 in
            the setting it calls 192; every stage drops a token at least; and a cluster is its sum / (size + 1e-6).
    """

    recycle: bool = True
    parity: bool = False

    stage: ClassVar[type[Stage]] = _SparseStage
    default_layers: ClassVar[tuple[int, ...]] = (3, 7, 16)

    card: ClassVar[MethodCard] = MethodCard(
        name="sparsevlm",
        title="SparseVLM",
        paper="arXiv 2410.04417",
        stage="in-LM",
        summary="largest attention from the question's visual words, in stages; the rest partly merged",
        rule="Raters are the words that the image's embeddings point at more than on average.\n"
        "After layers 2, 6 and 15 of 32 keep the visual tokens that the raters attend to most.\n"
        "The best of the dropped ones are merged into a few clusters, which count as tokens.",
        needs="layers >= 1; text behind the image",
        tokens="keep, clusters included, after the last stage; averaged over D layers, with layers K1, K2, K3: "
        "(K1 N + (K2 - K1) n1 + (K3 - K2) n2 + (D - K3) keep) / D",
        weak="raters are chosen by embeddings that know no context; in multi-turn chats the first question decides for "
        "all; small text (OCR) is blurred in clusters",
        servable="yes: exactly keep tokens, counts known for every layer",
    )

    def read(self, context: TokenContext) -> Tensor:
        """(batch, rows) equal weights of the raters, adding up to 1; 0 for other rows."""
        affinity, text = rater_affinity(context)
        mean = affinity.sum(dim=1, keepdim=True) / text.sum(dim=1, keepdim=True).clamp(min=1)
        raters = (text & (affinity > mean)).to(affinity.dtype)
        return raters / raters.sum(dim=1, keepdim=True).clamp(min=1)

    def reading_flops(self, sizes: StageSizes) -> int:
        """The images' tokens meet all words, of a batch at most as many as it has in all."""
        words = min(sizes.keys, sizes.sequences * sizes.text)
        return sizes.products(words, sizes.tokens, sizes.width)


def rater_affinity(context: TokenContext) -> tuple[Tensor, Tensor]:
    """How much a sample's images point at each word of its prompt behind the first image.

    Returns:
        (batch, rows) soft-max over those words, averaged over visual tokens, 0 elsewhere; (batch, rows) bool: the
        words.
    """
    layout, visual = context.layout, context.visual
    words = context.prompt & ~visual & (visual.cumsum(dim=1) > 0)
    # No sample has more text than the batch, whose visual tokens are counted on the host.
    most = min(words.shape[1], words.numel() - sum(layout.lengths))
    dtype = torch.promote_types(context.hidden.dtype, torch.float32)
    listed, present = with_weight(words.to(dtype), lambda: most)
    listed, absent = listed[layout.sample], present[layout.sample] == 0  # by image
    word, token = (layout.gather(context.hidden, rows).to(dtype) for rows in (listed, layout.rows))
    affinity = (word @ token.mT).masked_fill_(absent[:, :, None], float("-inf")).softmax(dim=1)
    if layout.padded:
        affinity.masked_fill_(~layout.valid[:, None], 0)
    received = affinity.sum(dim=2).masked_fill_(absent, 0)  # NaN where a sample has no such word
    total = torch.zeros_like(words, dtype=dtype)
    total.index_put_((layout.sample[:, None], listed), received, accumulate=True)
    return total.div_(visual.sum(dim=1, keepdim=True).clamp_(min=1)), words


def _pool(dropped: int) -> int:
    """How many of the dropped tokens are merged."""
    return int(0.3 * dropped) + 1


def _clusters(dropped: int) -> int:
    """Into how many clusters."""
    return int(_pool(dropped) / 10) + 1 if dropped else 0
