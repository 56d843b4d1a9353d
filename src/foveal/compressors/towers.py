"""What the methods between tower and decoder share: class attention, an extra token, the released code's budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from foveal.compressors.base import TowerCompressor, check_choice
from foveal.compressors.context import AttentionInputs, Selection
from foveal.compressors.selection import on_device, top_per_row, upper_outliers
from foveal.compressors.sizes import StageSizes
from foveal.errors import FovealError

__all__ = [
    "ByClassAttention",
    "Query",
    "Ranking",
    "everything",
    "outlier_counts",
    "patch_attention",
    "released_budget",
    "released_share",
    "take_slots",
    "with_extra_token",
]

Query = Literal["class", "mean"]
Ranking = Literal["released", "paper"]
BLOCK = 256  # queries whose attention is held at a time


@dataclass(frozen=True, kw_only=True)
class ByClassAttention(TowerCompressor):
    """Ranks patches by the attention they receive from the class token.

    Args:
        query: "class", as published; "mean": every patch asks, for towers without a class token (SigLIP).
    """

    query: Query = "class"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "query", **{"class": "the class token's attention", "mean": "all patches'"})

    def wants_class_token(self) -> bool:
        """Whether the tower must have a class token."""
        return self.query == "class"

    def attention_flops(self, sizes: StageSizes) -> int:
        """FLOPs of `patch_attention`."""
        return sizes.attention(1 if self.query == "class" else sizes.tokens)


def patch_attention(attention: AttentionInputs, tokens: int, query: Query) -> Tensor:
    """The attention that an image's patches receive in a vision tower.

    Args:
        attention: of one tower layer, the class token first if there is one.
        tokens: patches of an image.
        query: from the class token ("class"), or averaged over all patches ("mean").

    Returns:
        (images, heads, tokens) probabilities among all keys.

    Raises:
        FovealError: there is no class token.
    """
    images, _, keys, _ = attention.key.shape
    device = attention.key.device
    if query == "mean":
        rows = torch.arange(keys - tokens, keys, device=device).expand(images, -1)
        sums = [attention.rows(block).sum(dim=2) for block in rows.split(BLOCK, dim=1)]
        received = torch.stack(sums).sum(dim=0) / tokens
    elif keys == tokens + 1:
        received = attention.row(torch.zeros(images, dtype=torch.int64, device=device))
    else:
        raise FovealError('query="class" needs a vision tower with a class token (CLIP): pass query="mean"')
    return received[..., keys - tokens :]


def released_budget(keep: float | str, scores: Tensor) -> tuple[int, float]:
    """Tokens that released TRIM and PruMerge keep of every image, and their share. "auto" transfers one number.

    The share of outliers is taken over the whole batch, with quartiles in float32.
    """
    tokens = scores.shape[1]
    if not isinstance(keep, str):
        return released_share(keep, tokens)
    flat = scores.to(torch.float32).flatten()[None]
    ratio = upper_outliers(flat, torch.ones_like(flat, dtype=torch.bool)).sum().item() / flat.shape[1]
    return int(tokens * ratio), ratio


def released_share(keep: float, tokens: int) -> tuple[int, float]:
    """Tokens that released TRIM and PruMerge keep of an image before they add any, and their share."""
    return (keep, keep / tokens) if isinstance(keep, int) else (int(tokens * keep), keep)


def outlier_counts(scores: Tensor, each: int = 1) -> tuple[int, ...]:
    """Tokens of each image, on the host: `each` patches for an outlier, one outlier at least, and an extra token."""
    outliers = upper_outliers(scores, torch.ones_like(scores, dtype=torch.bool)).sum(dim=1)
    return tuple((each * outliers.clamp(min=1) + 1).clamp(max=scores.shape[1]).tolist())


def everything(scores: Tensor) -> Selection:
    """Every token stays as it is; `scores` (images, tokens)."""
    images, tokens = scores.shape
    kept = torch.ones_like(scores, dtype=torch.bool)
    return Selection(kept=kept, counts=(tokens,) * images, scores=scores)


def with_extra_token(
    chosen: Tensor, rows: Tensor, extra: Tensor, counts: tuple[int, ...], scores: Tensor
) -> Selection:
    """The chosen tokens in raster order, and one more behind them.

    Args:
        chosen: (images, tokens) bool, counts[i] - 1 of image i.
        rows: (images, max(counts), tokens) weights of the m-th chosen token; anything beyond.
        extra: (images, tokens) weights of the extra token.
        counts: tokens of each image, the extra one included.
        scores: (images, tokens).
    """
    slot = torch.arange(rows.shape[1], device=rows.device)[:, None]
    selected = on_device(counts, rows.device)[:, None, None] - 1
    mix = torch.where(slot < selected, rows, extra[:, None] * (slot == selected))
    return Selection(kept=take_slots(chosen, counts), counts=counts, scores=scores, mix=mix)


def take_slots(chosen: Tensor, counts: tuple[int, ...]) -> Tensor:
    """(images, tokens) bool: the slots of the `chosen` tokens and, up to `counts[i]` in all, the last free ones."""
    tokens = chosen.shape[1]
    rank = torch.arange(tokens, device=chosen.device) + tokens * chosen
    return top_per_row(rank, on_device(counts, chosen.device))
