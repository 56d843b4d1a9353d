"""TRIM (arXiv 2409.10994): let CLIP compare every patch with the question, before the language model reads either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from foveal.compressors.base import MethodCard, Positions, TowerCompressor, check_choice
from foveal.compressors.context import Selection, TowerContext
from foveal.compressors.selection import kept_slots, on_device, top_per_row
from foveal.compressors.sizes import StageSizes
from foveal.compressors.towers import (
    Ranking,
    everything,
    outlier_counts,
    released_budget,
    released_share,
    with_extra_token,
)
from foveal.errors import FovealError

__all__ = ["TRIM"]


@dataclass(frozen=True, kw_only=True)
class TRIM(TowerCompressor):
    """Rank patches by CLIP's similarity to the question, and append the mean of those not kept.

    keep=64 means 63 patches in raster order and the mean of all others, taken before the projector; keep=1 is the mean
    of the whole image. keep="auto" takes, of each image, the patches whose score (the soft-max of the ranking over the
    image's patches) lies above Q3 + 1.5 (Q3 - Q1), at least one, and the mean token; the counts are brought to the host
    once per call.

    Args:
        ranking: the paper and its code disagree. "released", what the published numbers were made with: the plain dot
            product of the two embeddings, not normalised, is NEGATED before the soft-max, so that the patches LEAST
            similar to the question are kept; without the minus results were worse, say the authors. "paper", Eq. 1
            and 2: the most similar by cosine are kept.
        parity: the released code's budget. `keep` counts patches without the mean token, and a fraction is rounded
            down. "auto" counts the outliers of the whole batch together and gives every image the same number, so
            that an image depends on its batch; it fails where there is none.
    """

    positions: Positions = "packed"
    ranking: Ranking = "released"
    parity: bool = False

    needs_text: ClassVar[bool] = True
    finds_budget: ClassVar[bool] = True
    card: ClassVar[MethodCard] = MethodCard(
        name="trim",
        title="TRIM",
        paper="arXiv 2409.10994",
        stage="pre-LM",
        summary="CLIP's similarity to the question, and the mean of the rest",
        rule="Compare every patch with the question in the space that CLIP's two towers share.\n"
        "Keep the least similar patches, as the released code does, or the most similar, as the paper says.\n"
        "One extra token is the mean of the patches not kept.",
        needs="a CLIP tower; its text tower and projections are loaded beside it (124 M parameters for CLIP-L)",
        tokens='keep in every layer, the mean token included; "auto": the outliers of the score and one more',
        weak="small text (OCR); Chinese and other languages that CLIP does not read; questions over 77 CLIP tokens are "
        "cut; of a conversation, one question decides for all turns",
        servable='a count or a fraction: yes, exactly keep tokens; "auto": no, the image decides',
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "ranking", released="least similar kept", paper="most similar kept")
        if self.parity and self.ranking != "released":
            raise FovealError(
                'parity=True is the released code: pass ranking="released" with it, or parity=False'
            )

    def choose(self, context: TowerContext) -> Selection:
        """The best patches and the mean of the others."""
        relevance = self._relevance(context)
        scores = relevance.softmax(dim=1)
        tokens = scores.shape[1]
        counts = self._counts(scores)
        if min(counts) == tokens and not self.parity:
            return everything(scores)
        selected = on_device(counts, scores.device) - 1
        chosen = top_per_row(relevance, selected)  # as by score, where that does not underflow
        order = kept_slots(chosen, max(counts))
        rows = (order[:, :, None] == torch.arange(tokens, device=order.device)).to(scores.dtype)
        mean = ~chosen / (tokens - selected)[:, None].to(scores.dtype)
        return with_extra_token(chosen, rows, mean, counts, scores)

    def left(self, reaching: tuple[int, ...], whole: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens of each image, the mean included."""
        if not self.parity:
            return self.counts(reaching)
        keep = self.known_keep()
        return tuple(self._with_mean(released_share(keep, tokens)[0], tokens) for tokens in reaching)

    def flops(self, sizes: StageSizes) -> int:
        """Similarity to the question, and the mean, which takes every kept token through one product."""
        whole = sizes.kept == sizes.tokens and not self.parity
        return sizes.products(sizes.tokens, 1, sizes.shared) + (0 if whole else sizes.merging(sizes.tokens))

    def _relevance(self, context: TowerContext) -> Tensor:
        """(images, tokens), the larger the sooner kept; float32 or wider."""
        assert context.image_embeds is not None
        assert context.text_embeds is not None
        dtype = torch.promote_types(context.image_embeds.dtype, torch.float32)
        image, text = context.image_embeds.to(dtype), context.text_embeds.to(dtype)
        if self.ranking == "paper":
            image, text = functional.normalize(image, dim=-1), functional.normalize(text, dim=-1)
        similarity = (image @ text[:, :, None]).squeeze(2)
        return similarity if self.ranking == "paper" else -similarity

    def _counts(self, scores: Tensor) -> tuple[int, ...]:
        """Tokens of each image, the mean included."""
        images, tokens = scores.shape
        if self.keep != "auto":
            return self.left((tokens,) * images, (tokens,) * images)
        if not self.parity:
            return outlier_counts(scores)
        return (self._with_mean(released_budget(self.keep, scores)[0], tokens),) * images

    def _with_mean(self, selected: int, tokens: int) -> int:
        """Tokens of an image where the released code selects so many."""
        if not 0 < selected < tokens:
            raise FovealError(
                f"keep={self.keep!r} is {selected} of {tokens} patches, where the released code fails: it needs at "
                "least one, and one left for the mean token; pass another keep, or parity=False"
            )
        return selected + 1
