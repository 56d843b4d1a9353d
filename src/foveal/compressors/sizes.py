"""The sizes that a method's cost formulas need."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StageSizes"]


@dataclass(frozen=True, kw_only=True)
class StageSizes:
    """What a stage chooses among. All samples are alike; a ragged batch costs what its longest sample does.

    Attributes:
        images: in the whole batch.
        whole: tokens that an image had before any stage.
        tokens: of an image that reach the stage.
        kept: of them that leave it.
        text: text rows of a sample's prompt.
        sequences: that the observed attention runs over: samples in the decoder, images in the tower.
        keys: of one such sequence; in the tower, the class token's included.
        heads: of that attention.
        head_width: of one head.
        width: of a token where it is merged: the decoder's hidden size, or that of what the projector is given.
        projected: width of what the projector makes.
        shared: width of the space that a text tower shares with patches; 0 where none is known.
        blocks: of the tower that the features pass through.
        streams: tensors of tokens that are merged: the residual stream, and features that are yet to be added
            (DeepStack).
    """

    images: int
    whole: int
    tokens: int
    kept: int
    text: int
    sequences: int
    keys: int
    heads: int
    head_width: int
    width: int
    projected: int
    shared: int
    blocks: int
    streams: int

    def attention(self, queries: int) -> int:
        """FLOPs of the scores of `queries` rows of every sequence against all of its keys."""
        return 2 * self.sequences * queries * self.keys * self.heads * self.head_width

    def products(self, rows: int, columns: int, width: int) -> int:
        """FLOPs of comparing `rows` vectors of every image with `columns` others, `width` wide."""
        return 2 * self.images * rows * columns * width

    def merging(self, columns: int) -> int:
        """FLOPs of making every kept token of `columns` ones (`Selection.mix`)."""
        return self.streams * self.products(self.kept, columns, self.width)
