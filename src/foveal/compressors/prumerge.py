"""PruMerge and PruMerge+ (arXiv 2403.15388): keep what the class token attends to, and fold the rest into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from foveal.compressors.base import MethodCard, Positions
from foveal.compressors.context import AttentionInputs, Selection, TowerContext
from foveal.compressors.selection import kept_slots, on_device, top_per_row
from foveal.compressors.sizes import StageSizes
from foveal.compressors.towers import (
    ByClassAttention,
    everything,
    outlier_counts,
    patch_attention,
    released_budget,
    released_share,
    take_slots,
    with_extra_token,
)
from foveal.errors import FovealError

__all__ = ["PruMerge", "PruMergePlus"]

RELEASED_GRID = 575  # the released code samples the patches before this one, whatever their number


@dataclass(frozen=True, kw_only=True)
class PruMerge(ByClassAttention):
    """Keep the patches that the class token attends to most in the last layer of a CLIP tower.

    Attention is taken at full width (heads concatenated, scale 1 / sqrt(width)), over all keys, the class token's too.
    Each kept patch becomes itself plus attention * feature of its `neighbours` nearest patches by key cosine, kept ones
    included. One extra token closes the sequence: the sum of attention * feature over the patches not kept. Nothing is
    divided by the sum of the weights, as in the released code. Kept patches stay in raster order.

    keep=64 means 63 patches and the extra token; keep=1 is the extra token alone, summed over all patches. keep="auto"
    takes, of each image, the patches whose attention lies above Q3 + 1.5 (Q3 - Q1), at least one, and the extra token;
    the counts are brought to the host once per call.

    Args:
        neighbours: patches merged into each kept one; all others where there are fewer.
        query: "class": attention of the class token. "mean", for towers without one: attention that a patch receives,
            averaged over all patches as queries.
        parity: the released code's order and budget. Kept patches stand by falling attention. `keep` counts them
            without the extra token, and a fraction is rounded down. "auto" counts the outliers of the whole batch
            together, so that an image depends on its batch, and may leave the extra token alone.
    """

    positions: Positions = "packed"
    neighbours: int = 32
    parity: bool = False

    observed_layer: ClassVar[int | None] = 1
    finds_budget: ClassVar[bool] = True
    per_outlier: ClassVar[int] = 1  # patches kept for each that stands out, with keep="auto"
    card: ClassVar[MethodCard] = MethodCard(
        name="prumerge",
        title="PruMerge",
        paper="arXiv 2403.15388",
        stage="pre-LM",
        summary="what the class token attends to, neighbours merged in",
        rule="Keep the patches that the class token attends to most in the tower's last layer.\n"
        "Each takes in its 32 nearest patches by key, weighted by attention.\n"
        "One extra token sums up the patches not kept.",
        needs='a CLIP tower whose features stop one layer early; without a class token, query="mean"',
        tokens='keep in every layer, the extra token included; "auto": the outliers of attention and one more',
        weak="never sees the question; small text (OCR) and small objects beside a salient one; several images "
        'have a budget each; "auto" may keep very few',
        servable='a count or a fraction: yes, exactly keep tokens; "auto": no, the image decides',
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 0:
            raise FovealError(f"neighbours={self.neighbours!r} must be a count of patches, 0 or more")

    def choose(self, context: TowerContext) -> Selection:
        """Patches with the largest attention, their neighbours, and the sum of the rest."""
        assert context.attention is not None
        images, tokens = context.features.shape[:2]
        attention = _full_width(context.attention)
        received = patch_attention(attention, tokens, self.query)[:, 0]
        keys = attention.key[:, 0, -tokens:]
        if self.parity:
            return self._released(received, keys)
        counts = (
            outlier_counts(received, self.per_outlier)
            if self.keep == "auto"
            else self.counts((tokens,) * images)
        )
        if min(counts) == tokens:
            return everything(received)
        chosen = self._chosen(received, on_device(counts, received.device) - 1, context.grid)
        rows = self._merged(kept_slots(chosen, max(counts)), received, keys)
        return with_extra_token(chosen, rows, received * ~chosen, counts, received)

    def left(self, reaching: tuple[int, ...], whole: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens of each image, the extra one included."""
        if not self.parity:
            return self.counts(reaching)
        return tuple(self._released_count(tokens) for tokens in reaching)

    def flops(self, sizes: StageSizes) -> int:
        """Attention at full width, neighbours by key, and what makes the kept tokens."""
        if sizes.kept == sizes.tokens and not self.parity:
            return self.attention_flops(sizes)
        keys = sizes.heads * sizes.head_width
        neighbours = sizes.products(sizes.kept - self.parity, sizes.tokens, keys)
        return self.attention_flops(sizes) + neighbours + sizes.merging(sizes.tokens)

    def _released_count(self, tokens: int) -> int:
        selected, ratio = released_share(self.known_keep(), tokens)
        return self._with_extra(selected + len(self._stride(selected, ratio, tokens)), tokens)

    def _chosen(self, received: Tensor, selected: Tensor, grid: tuple[int, int]) -> Tensor:
        """(images, tokens) bool, `selected[i]` patches of image i."""
        return top_per_row(received, selected)

    def _merged(self, order: Tensor, received: Tensor, keys: Tensor) -> Tensor:
        """(images, kept, tokens) weights: each patch of `order` (images, kept) itself, and its neighbours."""
        images, kept = order.shape
        tokens = received.shape[1]
        unit = functional.normalize(keys, dim=-1)
        picked = unit.gather(1, order[:, :, None].expand(-1, -1, unit.shape[2]))
        itself = order[:, :, None] == torch.arange(tokens, device=order.device)
        similarity = (picked @ unit.transpose(1, 2)).masked_fill_(itself, float("-inf"))
        count = torch.full(
            (images * kept,), min(self.neighbours, tokens - 1), dtype=torch.int64, device=order.device
        )
        near = top_per_row(similarity.flatten(0, 1), count).view_as(itself)
        return itself + near * received[:, None]

    def _released(self, received: Tensor, keys: Tensor) -> Selection:
        """As the released code: by falling attention, then what PruMerge+ samples, then the extra token.

        It merges within a list of N entries, the kept patches followed by the rest. A patch that PruMerge+ keeps twice
        stands there twice, and the rest then begins later: as many patches at its start are in neither group.
        """
        images, tokens = received.shape
        selected, ratio = released_budget(self.keep, received)
        order = received.sort(dim=1, descending=True, stable=True).indices[:, :selected]
        order = torch.cat([order, self._released_samples(order, ratio, tokens)], dim=1)
        kept = order.shape[1]
        counts = (self._with_extra(kept, tokens),) * images
        chosen = torch.zeros_like(received, dtype=torch.bool).scatter_(1, order, True)
        unchosen_first = chosen.sort(dim=1, stable=True).indices
        unchosen = tokens - chosen.sum(dim=1, keepdim=True)
        rest = torch.arange(tokens - kept, device=order.device) + unchosen - (tokens - kept)
        entries = torch.cat([order, unchosen_first.gather(1, rest)], dim=1)

        weight = received.gather(1, entries)
        key = keys.gather(1, entries[:, :, None].expand_as(keys))
        slot = torch.arange(tokens, device=order.device)
        rows = self._merged(slot[:kept].expand(images, -1), weight, key)
        rows = torch.cat([rows, (weight * (slot >= kept))[:, None]], dim=1)
        mix = torch.zeros_like(rows).scatter_add_(2, entries[:, None].expand_as(rows), rows)
        return Selection(kept=take_slots(chosen, counts), counts=counts, scores=received, mix=mix)

    def _with_extra(self, kept: int, tokens: int) -> int:
        """Tokens of an image where the released code keeps so many patches."""
        if kept >= tokens:
            raise FovealError(
                f"keep={self.keep} leaves no patch for the extra token of the released code: pass a smaller keep, or "
                "parity=False"
            )
        return kept + 1

    def _released_samples(self, order: Tensor, ratio: float, tokens: int) -> Tensor:
        """(images, samples) patches kept besides those of `order` (images, selected)."""
        return order[:, :0]

    def _stride(self, selected: int, ratio: float, tokens: int) -> range:
        """The patches that the released code samples, where they do not depend on the image."""
        return range(0)


@dataclass(frozen=True, kw_only=True)
class PruMergePlus(PruMerge):
    """PruMerge with patches spread evenly over the image beside those with the largest attention.

    Of keep - 1 patches a quarter (rounded up) is chosen by attention, the others evenly from what is left: the first by
    frac(0.7549 column + 0.5698 row), the dither of the R2 sequence, which covers a grid of any size with any number of
    samples. keep="auto" takes three samples for each outlier. Merging and the extra token are PruMerge's.

    Args:
        parity: the released code, whose grid is a stride in raster order. "auto": one image at a time, stride
            int(int(1 / ratio) / 3) over the first 575 patches, without what attention chose. A fraction: patches by
            attention (rounded down), then every int(1 / keep)-th; a patch found by both is kept twice, and as many
            others are lost. Where that code fails, so does this: it needs 575 patches, and as many samples as it
            chose by attention.
    """

    per_outlier: ClassVar[int] = 4
    card: ClassVar[MethodCard] = MethodCard(
        name="prumerge+",
        title="PruMerge+",
        paper="arXiv 2403.15388",
        stage="pre-LM",
        summary="PruMerge, and patches spread evenly over the image",
        rule="Keep a quarter of the budget by the class token's attention, the others evenly over the image.\n"
        "Each takes in its 32 nearest patches by key, weighted by attention.\n"
        "One extra token sums up the patches not kept.",
        needs='a CLIP tower whose features stop one layer early; without a class token, query="mean"',
        tokens='keep in every layer, the extra token included; "auto": four times the outliers and one more',
        weak="never sees the question; small text (OCR) between the samples; several images have a budget "
        "each",
        servable='a count or a fraction: yes, exactly keep tokens; "auto": no, the image decides',
    )

    def _chosen(self, received: Tensor, selected: Tensor, grid: tuple[int, int]) -> Tensor:
        salient = top_per_row(received, (selected + 3) // 4)
        even = _spread(grid, received.device).expand_as(received).masked_fill(salient, float("-inf"))
        return salient | top_per_row(even, selected - (selected + 3) // 4)

    def _released_samples(self, order: Tensor, ratio: float, tokens: int) -> Tensor:
        images, selected = order.shape
        samples: Sequence[int] = self._stride(selected, ratio, tokens)
        if self.keep == "auto":
            if images > 1:
                raise FovealError(
                    f'the released PruMerge+ takes one image with keep="auto", not {images}: pass parity=False'
                )
            taken = set(order[0].tolist())
            samples = [index for index in samples if index not in taken]
        return on_device(list(samples), order.device).long().expand(images, -1)

    def _stride(self, selected: int, ratio: float, tokens: int) -> range:
        if not selected or tokens < RELEASED_GRID:
            raise FovealError(
                f"the released PruMerge+ needs a patch to keep and {RELEASED_GRID} patches, not {selected} and "
                f"{tokens}: pass parity=False"
            )
        step = int(1 / ratio)
        if self.keep == "auto":
            return range(0, RELEASED_GRID, step // 3)
        samples = range(step // 2, RELEASED_GRID, step)
        if len(samples) != selected:
            raise FovealError(
                f"the released PruMerge+ needs as many samples as patches, but keep={self.keep} gives "
                f"{len(samples)} and {selected}: pass parity=False"
            )
        return samples


def _full_width(attention: AttentionInputs) -> AttentionInputs:
    """One head as wide as all, in float32 at least: a product of a thousand channels may overflow in half precision."""

    def concatenated(heads: Tensor) -> Tensor:
        wide = heads.transpose(1, 2).flatten(2)[:, None]
        return wide.to(torch.promote_types(wide.dtype, torch.float32))

    query, key = concatenated(attention.query), concatenated(attention.key)
    return replace(attention, query=query, key=key, scaling=query.shape[-1] ** -0.5)


def _spread(grid: tuple[int, int], device: torch.device) -> Tensor:
    """(1, patches) larger for patches to sample earlier."""
    row = torch.arange(grid[0], dtype=torch.float64, device=device)[:, None]
    column = torch.arange(grid[1], dtype=torch.float64, device=device)
    plastic = 1.324717957244746  # the real root of x^3 = x + 1
    return -((column / plastic + row / plastic**2) % 1).flatten()[None]
