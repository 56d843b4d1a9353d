"""The sizes that a method's cost formulas need."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StageSizes"]


@dataclass(frozen=True, kw_only=True)
class StageSizes:
    """What a stage chooses among. All samples are alike; a ragged batch costs what its longest sample does.

    Attributes:
        batch: samples.
        images: in the whole batch.
        tokens: of an image that reach the stage.
        kept: of them that leave it.
        rows: of a sample that reach the stage.
        words: text rows of a sample that may be asked about the image: those of the prompt, or behind the image.
        width: of a token: the decoder's hidden size, or that of the tower's features.
        heads: of the attention that the stage observes: the decoder's, or the tower's.
        key_heads: of its keys.
        head_width: of one head.
        class_token: whether the tower has one.
        streams: tensors of tokens that are merged: the residual stream, and features that are yet to be added
            (DeepStack).
    """

    batch: int
    images: int
    tokens: int
    kept: int
    rows: int
    words: int
    width: int
    heads: int
    key_heads: int
    head_width: int
    class_token: bool = False
    streams: int = 1
