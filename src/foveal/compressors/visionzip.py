"""VisionZip (arXiv 2412.04467): a few dominant patches, and what is left merged into a few contextual tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from foveal.compressors.base import MethodCard, Positions
from foveal.compressors.context import Selection, TowerContext
from foveal.compressors.selection import kept_slots, top_per_row
from foveal.compressors.sizes import StageSizes
from foveal.compressors.towers import ByClassAttention, everything, patch_attention, take_slots
from foveal.errors import FovealError

__all__ = ["VisionZip", "zip_tokens"]


@dataclass(frozen=True, kw_only=True)
class VisionZip(ByClassAttention):
    """Dominant tokens: the class token, and the patches that it attends to most in the layer of the features.

    Attention is summed over heads. Of the patches left, every n-th in raster order is the target of a contextual token;
    the others go to the target most similar by cosine of the keys (mean over heads), and each contextual token is its
    target plus the mean of what went to it. The sequence is the class token, dominant patches, contextual tokens, the
    last two in raster order each; keep counts them all. keep=1 is the class token alone.

    Args:
        contextual: contextual tokens among `keep`: a count (int), or a share (float in [0, 1)), by default the released
            10 of 64; a share is rounded, and leaves at least one dominant token.
        query: "class" as above. "mean", for towers without a class token, as the authors do there: attention that a
            patch receives, averaged over all patches as queries; no class token is kept, and dominant tokens are
            patches.
    """

    positions: Positions = "packed"
    contextual: int | float = 10 / 64

    observed_layer: ClassVar[int | None] = 0
    card: ClassVar[MethodCard] = MethodCard(
        name="visionzip",
        title="VisionZip",
        paper="arXiv 2412.04467",
        stage="pre-LM",
        summary="what the class token attends to, the rest merged by key",
        rule="Dominant tokens: the class token, and the patches that it attends to most.\n"
        "Of the rest, every n-th is a target; the others join the target with the most similar key.\n"
        "A contextual token is its target plus the mean of those that joined.",
        needs='a CLIP tower; without a class token, query="mean"',
        tokens="keep in every layer, class token and contextual tokens included",
        weak="never sees the question; small text (OCR); several images have a budget each; the class token "
        "was no input of the projector in training",
        servable="yes: exactly keep tokens",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        contextual = self.contextual
        good = isinstance(contextual, int | float) and not isinstance(contextual, bool) and contextual >= 0
        if not good or (isinstance(contextual, float) and contextual >= 1):
            raise FovealError(
                f"contextual={contextual!r} must be a count of tokens such as 10, or a share of keep in [0, 1)"
            )
        if isinstance(self.keep, int):
            self._contextual_of(self.keep)

    def choose(self, context: TowerContext) -> Selection:
        """Dominant tokens by attention, contextual ones by key."""
        assert context.attention is not None
        images, tokens = context.features.shape[:2]
        attention = patch_attention(context.attention, tokens, self.query)
        keep = self.counts((tokens,) * images)[0]
        if keep == tokens:
            return everything(attention.sum(dim=1))
        key = context.attention.key[:, :, -tokens:]
        metric = key.mean(dim=1, dtype=attention.dtype)
        contextual = self._contextual_of(keep)
        return zip_tokens(attention, metric, keep - contextual, contextual, self.wants_class_token())

    def flops(self, sizes: StageSizes) -> int:
        """Attention; keys of all patches against those of the targets; and what makes the kept tokens."""
        if sizes.kept == sizes.tokens:
            return self.attention_flops(sizes)
        joining = sizes.products(self._contextual_of(sizes.kept), sizes.tokens, sizes.head_width)
        columns = sizes.tokens + self.wants_class_token()
        return self.attention_flops(sizes) + joining + sizes.merging(columns)

    def _contextual_of(self, keep: int) -> int:
        """Contextual tokens among `keep`."""
        if isinstance(self.contextual, float):
            return min(math.floor(self.contextual * keep + 0.5), keep - 1)
        if self.contextual >= keep:
            raise FovealError(
                f"contextual={self.contextual} leaves no dominant token among keep={keep}: pass fewer, or a share such "
                "as contextual=0.15"
            )
        return self.contextual


def zip_tokens(
    attention: Tensor, metric: Tensor, dominant: int, contextual: int, class_token: bool
) -> Selection:
    """Choose dominant patches, and merge the others into contextual tokens.

    Args:
        attention: (images, heads, tokens) that the patches receive.
        metric: (images, tokens, width) what likeness of patches is measured by.
        dominant: tokens kept as they are, the class token included; at least 1.
        contextual: tokens that take in the rest, all of which leaves at least one patch over.
        class_token: the first dominant token is the class token, the last column of `mix`.
    """
    scores = attention.sum(dim=1)
    images, tokens = scores.shape
    patches = dominant - class_token
    is_dominant = top_per_row(scores, torch.full((images,), patches, device=scores.device))
    order = kept_slots(is_dominant, tokens)
    best, rest = order[:, :patches], order[:, patches:]
    step = max(1, rest.shape[1] // max(1, contextual))
    targets = rest[:, ::step][:, :contextual]

    is_best, is_target = _one_hot(best, tokens), _one_hot(targets, tokens)
    kept = is_dominant | is_target.any(dim=1)
    mix = torch.cat([is_best.to(scores.dtype), is_target + _joining(metric, targets, ~kept)], dim=1)
    if class_token:
        mix = functional.pad(mix, (0, 1, 1, 0))
        mix[:, 0, -1] = 1
    counts = (dominant + contextual,) * images
    return Selection(kept=take_slots(kept, counts), counts=counts, scores=scores, mix=mix)


def _joining(metric: Tensor, targets: Tensor, joins: Tensor) -> Tensor:
    """(images, targets, tokens) weights of the mean, per target, of the tokens in `joins` that are most like it."""
    count = targets.shape[1]
    if not count:
        return joins[:, None].expand(-1, 0, -1).to(metric.dtype)
    unit = functional.normalize(metric, dim=-1)
    goal = unit.gather(1, targets[:, :, None].expand(-1, -1, unit.shape[2]))
    nearest = (goal @ unit.transpose(1, 2)).argmax(dim=1)
    joined = (nearest[:, None] == torch.arange(count, device=targets.device)[:, None]) & joins[:, None]
    return joined / joined.sum(dim=2, keepdim=True).clamp(min=1).to(metric.dtype)


def _one_hot(columns: Tensor, tokens: int) -> Tensor:
    """(images, some) int64 -> (images, some, tokens) bool."""
    return columns[:, :, None] == torch.arange(tokens, device=columns.device)
