"""PyramidDrop (arXiv 2410.17247): drop visual tokens in stages, ranked by the last prompt token at each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveal.compressors.base import MethodCard
from foveal.compressors.fastv import FastV
from foveal.compressors.staging import FallingCompressor, Stage

__all__ = ["PyramidDrop"]


@dataclass(frozen=True, kw_only=True)
class _PyramidStage(Stage, FastV):
    """Keep the tokens that the last prompt token attends to most, as FastV, in the layer that is about to run."""

    own_layer: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(FallingCompressor):
    """At each stage keep the tokens that the last prompt token attends to most, averaged over heads.

    Attention is that of the stage's own layer K: its norm and projections on the rows that reach it, at the positions
    they have there. `layers` are by default a quarter, a half and three quarters of the depth (8, 16, 24 of 32);
    `keep` is what the last stage leaves, 72 of 576 giving the paper's 288, 144 and 72. Its other ratios are `budgets`:
    budgets=(0.4, 0.2), keep=57 for 0.4, 0.2 and 0.1 of 576 tokens.
    """

    stage: ClassVar[type[Stage]] = _PyramidStage

    card: ClassVar[MethodCard] = MethodCard(
        name="pyramiddrop",
        title="PyramidDrop",
        paper="arXiv 2410.17247",
        stage="in-LM",
        summary="largest attention from the last prompt token, in stages",
        rule="At layers 1/4, 1/2 and 3/4 of the way take their own attention in the row of the last prompt token.\n"
        "Keep the visual tokens with the largest entries, averaged over heads.\n"
        "Every stage drops the same fraction, until keep are left.",
        needs="as many layers as stages, and one more",
        tokens="keep after the last stage; averaged over the layers at the defaults (N + n1 + n2 + keep) / 4, where "
        "n1 and n2 fall geometrically: 270 of 576 for keep=72",
        weak="saves little in early layers; at equal average budgets its last layers see very few tokens (OCR, small "
        "text); in multi-turn chats the first question decides for all",
        servable="yes: exactly keep tokens, counts known for every layer",
    )
