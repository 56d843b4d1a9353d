"""CDPruner (arXiv 2506.10967): keep tokens that differ from each other and matter to the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from foveal.compressors.base import MethodCard, Positions, TowerCompressor, check_choice
from foveal.compressors.context import Selection, TowerContext
from foveal.compressors.selection import countdown, gram, gram_flops, greedy_dpp, on_device
from foveal.compressors.sizes import StageSizes
from foveal.compressors.towers import Ranking

__all__ = ["CDPruner"]


@dataclass(frozen=True, kw_only=True)
class CDPruner(TowerCompressor):
    """Conditional diversity: greedy MAP of a determinantal point process over the projector's outputs.

    The kernel is r_i cos(i, j) r_j, with r the relevance to the question: the cosine between a patch and the question
    in CLIP's shared space, stretched to 0..1 within the image. Where the budget exceeds the rank of the features, the
    rest follows by relevance (the released code repeats picks there, and keeps fewer tokens). Scores are the picking
    order, counted down: `keep` for the first pick, 1 for the last, 0 for what was dropped.

    Args:
        ranking: "released": the cosine is negated, as in the released code, and patches UNLIKE the question count as
            relevant; its authors say they saw this in CLIP only (Theia-4869/CDPruner#14). "paper": as the formula has
            it, patches like the question.
        parity: stretch relevance over the whole batch, as the released code does; an image then depends on the others.
            Questions longer than CLIP's limit are cut in either case, where newer released code averages over pieces.
    """

    positions: Positions = "packed"
    ranking: Ranking = "released"
    parity: bool = False

    needs_text: ClassVar[bool] = True
    projected: ClassVar[bool] = True
    card: ClassVar[MethodCard] = MethodCard(
        name="cdpruner",
        title="CDPruner",
        paper="arXiv 2506.10967",
        stage="pre-LM",
        summary="diverse, weighted by CLIP relevance to the question",
        rule="Relevance is the cosine of patch and question in CLIP's shared space (negated, as released).\n"
        "Weigh the patches' similarity to each other by the relevance of both.\n"
        "Pick one by one what adds most volume: relevant, and unlike all that was picked.",
        needs="a CLIP tower and its text model, for the question",
        tokens="keep in every layer of the decoder; the question also passes CLIP's text model",
        weak="small text (OCR); CLIP reads English and 77 tokens (Chinese, long questions); chosen for one question "
        "(multi-turn); the released sign holds for CLIP alone; as many sequential steps as tokens kept",
        servable="yes: exactly keep tokens",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "ranking", released="as the published code", paper="as the formula")

    def choose(self, context: TowerContext) -> Selection:
        """Relevance of every patch, then greedy picks."""
        assert context.image_embeds is not None
        assert context.text_embeds is not None
        relevance = self.relevance(context.image_embeds, context.text_embeds[:, None])
        return self.pick(context.features, relevance)

    def relevance(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """(images, tokens): a little above 0 for the least relevant patch, 1 more for the most; 1 where all are alike.

        Args:
            image_embeds: (images, tokens, shared).
            text_embeds: (images, texts, shared), whose cosines are averaged.
        """
        cosine = (_unit(image_embeds) @ _unit(text_embeds).transpose(1, 2)).mean(dim=2)
        signed = -cosine if self.ranking == "released" else cosine
        lowest, highest = signed.aminmax() if self.parity else signed.aminmax(dim=1, keepdim=True)
        spread = highest - lowest
        return torch.where(spread > 0, (signed - lowest + 1e-6) / spread, 1.0)

    def pick(self, features: Tensor, relevance: Tensor) -> Selection:
        """Greedy MAP, given (images, tokens) relevance."""
        images, tokens = relevance.shape
        counts = self.counts((tokens,) * images)
        kernel = gram(_unit(features) * relevance[:, :, None])
        everything = torch.ones_like(relevance, dtype=torch.bool)
        wanted = on_device(counts, features.device)
        order = greedy_dpp(kernel, everything, wanted, counts[0])
        scores = countdown(order, wanted, tokens).to(relevance.dtype)
        return Selection(kept=scores > 0, counts=counts, scores=scores)

    def flops(self, sizes: StageSizes) -> int:
        """Relevance, the kernel, and one product with all earlier picks at every pick."""
        relevance = sizes.products(sizes.tokens, 1, sizes.shared)
        kernel = gram_flops(sizes.images, sizes.tokens, sizes.projected)
        return relevance + kernel + sizes.kept * sizes.products(sizes.tokens, 1, sizes.kept)


def _unit(vectors: Tensor) -> Tensor:
    """Length 1, in float32 at least."""
    return functional.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)
