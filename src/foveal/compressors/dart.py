"""DART (arXiv 2502.11494): drop duplicates; keep the tokens least similar to a few pivots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from foveal.compressors.base import Compressor, MethodCard
from foveal.compressors.context import AttentionInputs, Rows, Selection, TokenContext
from foveal.compressors.selection import (
    least_similar_to_pivots,
    on_device,
    split_evenly,
    top_per_row,
)
from foveal.compressors.sizes import StageSizes
from foveal.errors import FovealError

__all__ = ["DART"]


@dataclass(frozen=True, kw_only=True)
class DART(Compressor):
    """Pivots are the tokens with the largest L1 key norm in layer K-1: image tokens, and prompt tokens after the image.

    Each pivot in turn takes the visual tokens least cosine-similar to it (final norm of the residual stream entering
    layer K) that no earlier pivot took; image pivots are kept too.

    Args:
        image_pivots: pivots among the image's tokens.
        text_pivots: pivots among the prompt tokens after the image; never answers, padding or the system prompt.
        parity: count and visit pivots as the released code does: every pivot takes floor(keep / 8) tokens (a fraction:
            floor(keep * N / 8)), so that 8 k + 4 are kept, and pivots are visited in the order of a Python set. By
            default exactly `keep` tokens stay, and pivots are visited image first, by falling norm.
    """

    image_pivots: int = 4
    text_pivots: int = 4
    parity: bool = False

    card: ClassVar[MethodCard] = MethodCard(
        name="dart",
        title="DART",
        paper="arXiv 2502.11494",
        stage="in-LM",
        summary="least similar to pivots with large keys",
        rule="Pivots are tokens with large keys in layer K-1: four of the image, four of the prompt behind it.\n"
        "Each pivot in turn takes the image tokens least cosine-similar to it.\n"
        "What no pivot took is a duplicate, and is dropped.",
        needs="layer >= 1",
        tokens="keep after layer K; averaged over D layers (K N + (D - K) keep) / D",
        weak="ignores the question except through its pivots; small text (OCR)",
        servable="yes: exactly keep tokens",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_pivots < 1 or self.text_pivots < 0:
            raise FovealError(
                f"image_pivots={self.image_pivots} must be at least 1 and text_pivots={self.text_pivots} at least 0"
            )

    def observe(self, attention: AttentionInputs, rows: Rows) -> Tensor:
        """(batch, rows) L1 norm of each row's key over all heads."""
        keys = attention.key[:, :, -rows.prompt.shape[1] :]
        return keys.abs().sum(dim=(1, 3), dtype=torch.promote_types(keys.dtype, torch.float32))

    def select(self, context: TokenContext) -> Selection:
        """Pivots, their similarity to the image's tokens, and each pivot's share in turn."""
        assert context.observed is not None
        layout = context.layout
        norms = context.layout.gather(context.observed).masked_fill(~layout.valid, float("-inf"))
        counts = self.targets(context)
        wanted = on_device(counts, norms.device)

        image = norms.topk(min(self.image_pivots, norms.shape[1]), dim=1)
        text = self._text_pivots(context)
        pivot_rows = torch.cat([layout.rows.gather(1, image.indices), text.indices], dim=1)
        is_pivot = top_per_row(norms, wanted.clamp(max=self.image_pivots))
        remaining = wanted - is_pivot.sum(dim=1)
        usable = torch.cat([image.values, text.values], dim=1) > float("-inf")
        order = (
            _set_order(pivot_rows, usable)
            if self.parity
            else usable.sort(descending=True, stable=True).indices
        )
        pivot_rows = pivot_rows.gather(1, order)

        similarity = self._similarity(context, pivot_rows)
        shares = split_evenly(remaining, usable.sum(dim=1), pivot_rows.shape[1])
        taken = least_similar_to_pivots(similarity, layout.valid & ~is_pivot, shares)
        return Selection(kept=is_pivot | taken, counts=counts)

    def left(self, reaching: tuple[int, ...], whole: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens that stay of each image, counted as `parity` says."""
        if not self.parity:
            return self.counts(reaching)
        pivots = self.image_pivots + self.text_pivots
        keep = self.keep
        assert keep != "auto"
        shares = (int(keep * n / pivots if isinstance(keep, float) else keep // pivots) for n in reaching)
        return tuple(
            min(n, pivots * share + self.image_pivots) for n, share in zip(reaching, shares, strict=True)
        )

    def flops(self, sizes: StageSizes) -> int:
        """Similarity of all tokens to the pivots."""
        pivots = min(self.image_pivots, sizes.tokens) + min(self.text_pivots, sizes.keys)
        return sizes.products(pivots, sizes.tokens, sizes.width)

    def _text_pivots(self, context: TokenContext) -> torch.return_types.topk:
        """Rows with the largest keys among the prompt rows after each image; norm -inf where there are too few."""
        assert context.observed is not None
        layout = context.layout
        row = torch.arange(context.prompt.shape[1], device=context.prompt.device)
        last = torch.where(layout.valid, layout.rows, 0).amax(dim=1)
        text = context.prompt & ~context.visual
        after = text[layout.sample] & (row > last[:, None])
        norms = context.observed[layout.sample].masked_fill(~after, float("-inf"))
        return norms.topk(min(self.text_pivots, norms.shape[1]), dim=1)

    def _similarity(self, context: TokenContext, pivot_rows: Tensor) -> Tensor:
        """(images, pivots, tokens) cosine between pivots and the image's tokens."""
        layout = context.layout
        tokens = functional.normalize(context.final_norm(layout.gather(context.hidden)), dim=-1)
        pivots = context.final_norm(context.hidden[layout.sample[:, None], pivot_rows])
        return functional.normalize(pivots, dim=-1) @ tokens.transpose(1, 2)


def _set_order(rows: Tensor, usable: Tensor) -> Tensor:
    """The order in which CPython iterates set(rows), unusable pivots last. One transfer to the host for all images."""
    orders = []
    for values in torch.where(usable, rows, -1).tolist():
        order = [values.index(value) for value in list({value for value in values if value >= 0})]
        orders.append(order + [index for index, value in enumerate(values) if value < 0])
    return on_device(orders, rows.device)
