"""The interface of a compression method: a frozen dataclass with one method.

@dataclass(frozen=True, kw_only=True)
class Loudest(foveal.Compressor):
    def score(self, context: foveal.TokenContext) -> Tensor:
        return context.layout.gather(context.hidden).norm(dim=-1)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveal.compressors.context import AttentionInputs, Selection, TokenContext
from foveal.compressors.selection import top_per_row
from foveal.errors import FovealError

__all__ = ["Compressor", "MethodCard"]


@dataclass(frozen=True)
class MethodCard:
    """What a user should know about a method before choosing it."""

    name: str
    title: str
    paper: str
    stage: str
    rule: str
    needs: str
    weak: str


@dataclass(frozen=True, kw_only=True)
class Compressor:
    """Drops visual tokens at the entry of decoder layer `layer`; layers before it see all of them.

    Args:
        keep: visual tokens kept per image: a count (int), or a fraction (float in (0, 1]) of the image's tokens that
            reach the layer. A video clip counts as one image.
        layer: 0-based decoder layer K; layers 0..K-1 see all tokens.
        per_frame: spend the budget on every frame of a clip (in some families, every pair of frames) instead.

    Raises:
        FovealError: keep or layer out of range.
    """

    keep: int | float
    layer: int = 2
    per_frame: bool = False

    card: ClassVar[MethodCard | None] = None

    def __post_init__(self) -> None:
        if isinstance(self.keep, bool) or not isinstance(self.keep, int | float):
            raise FovealError(
                f"keep={self.keep!r} is no number: pass a token count such as 64, or a fraction such as 0.25"
            )
        if isinstance(self.keep, int) and self.keep < 1:
            raise FovealError(f"keep={self.keep} must be at least 1 visual token per image")
        if isinstance(self.keep, float) and not 0 < self.keep <= 1:
            raise FovealError(
                f"keep={self.keep} as a fraction must be in (0, 1]; a count of tokens is an int"
            )
        if self.layer < self.first_layer():
            raise FovealError(
                f"layer={self.layer} is too low for {type(self).__name__}, which needs layer >= {self.first_layer()}"
            )

    @classmethod
    def first_layer(cls) -> int:
        """The smallest layer the method works at: 1 if it observes the layer before."""
        return 1 if cls.observes() else 0

    @classmethod
    def observes(cls) -> bool:
        """Whether the method defines `observe`."""
        return cls.observe is not Compressor.observe

    def observe(self, attention: AttentionInputs, prompt: Tensor) -> Tensor:
        """Reduce the attention inputs of layer K-1 to one number per row; optional.

        Args:
            attention: queries and keys of layer K-1, after rotary embedding.
            prompt: (batch, rows) bool, see `TokenContext.prompt`.

        Returns:
            (batch, rows), handed to `score` as `context.observed`.
        """
        raise NotImplementedError

    def score(self, context: TokenContext) -> Tensor:
        """Score visual tokens: (images, tokens), the largest are kept. The one method to write."""
        raise NotImplementedError(f"{type(self).__name__} must define score() or select()")

    def select(self, context: TokenContext) -> Selection:
        """Choose the tokens to keep; by default those with the largest `score`."""
        scores = self.score(context).masked_fill(~context.layout.valid, float("-inf"))
        counts = self.counts(context.layout.lengths)
        kept = top_per_row(scores, torch.tensor(counts, device=scores.device))
        return Selection(kept=kept, counts=counts, scores=scores)

    def counts(self, lengths: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens to keep of images with `lengths` tokens; a fraction is rounded, at least one token stays.

        Raises:
            FovealError: an image has fewer tokens than the count asked for.
        """
        if isinstance(self.keep, float):
            return tuple(max(1, math.floor(self.keep * length + 0.5)) for length in lengths)
        shortest = min(lengths)
        if self.keep > shortest:
            raise FovealError(
                f"keep={self.keep} is more than the {shortest} visual tokens of image {lengths.index(shortest)} of "
                "this batch: pass a smaller count, or a fraction such as keep=0.5"
            )
        return (self.keep,) * len(lengths)
