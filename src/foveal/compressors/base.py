"""The interface of a compression method: a frozen dataclass with one method.

@dataclass(frozen=True, kw_only=True)
class Loudest(foveal.Compressor):
    def score(self, context: foveal.TokenContext) -> Tensor:
        return context.layout.gather(context.hidden).norm(dim=-1)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import Any, ClassVar, Literal

from torch import Tensor

from foveal.compressors.context import AttentionInputs, Rows, Selection, TokenContext, TowerContext
from foveal.compressors.selection import on_device, top_per_row
from foveal.compressors.sizes import StageSizes
from foveal.errors import FovealError

__all__ = ["Compressor", "MethodCard", "Positions", "StagedCompressor", "TowerCompressor", "check_choice"]

Positions = Literal["original", "packed"]

_KINDS: dict[str, tuple[Any, str]] = {
    "bool": (bool, "True or False"),
    "int": (Integral, "a whole number"),
    "float": ((Integral, float), "a number"),
}


@dataclass(frozen=True)
class MethodCard:
    """What a user should know about a method before choosing it.

    Attributes:
        name: what `foveal.get` calls it.
        title: what its authors call it.
        paper: where it was published.
        stage: pre-LM or in-LM.
        summary: which tokens it keeps, in a few words.
        rule: how it chooses, in three lines.
        needs: what it needs of a model.
        tokens: how its budget is counted: after its last stage, and averaged over the decoder's layers.
        weak: where it is known to fail.
        servable: whether the number kept is known before the image is seen, as engines with static shapes need.
    """

    name: str
    title: str
    paper: str
    stage: str
    summary: str
    rule: str
    needs: str
    tokens: str
    weak: str
    servable: str


@dataclass(frozen=True, kw_only=True)
class Compressor:
    """Drops visual tokens at the entry of decoder layer `layer`; layers before it see all of them.

    Args:
        keep: visual tokens kept per image: a count (int), or a fraction (float in (0, 1]) of the image's tokens that
            reach the layer; "auto" in methods that find a budget themselves. A video clip counts as one image.
        layer: 0-based decoder layer K; layers 0..K-1 see all tokens.
        per_frame: spend the budget on every frame of a clip (in some families, every pair of frames) instead.
        positions: "original": kept tokens keep their position ids, with gaps; "packed": from this layer on, positions
            count only the tokens that are left. Attention masks (windows, image blocks) keep the original ones.

    Raises:
        FovealError: an option out of range.
    """

    keep: int | float | Literal["auto"]
    layer: int = 2
    per_frame: bool = False
    positions: Positions = "original"

    card: ClassVar[MethodCard | None] = None
    finds_budget: ClassVar[bool] = False
    own_layer: ClassVar[bool] = False  # observe layer K's own attention, computed for that, instead of K-1's

    def __post_init__(self) -> None:
        self._check_types()
        self._check_keep()
        if self.layer < self.first_layer():
            raise FovealError(
                f"layer={self.layer} is too low for {type(self).__name__}, which needs layer >= {self.first_layer()}"
            )
        check_choice(self, "positions", original="kept tokens keep theirs", packed="counted anew")

    def _check_types(self) -> None:
        """Strings from a shell or a file are not taken for numbers or flags."""
        for item in fields(self):
            value = getattr(self, item.name)
            kind = item.type if isinstance(item.type, str) else getattr(item.type, "__name__", "")
            wanted = _KINDS.get(kind)
            if wanted is not None and (
                not isinstance(value, wanted[0]) or (isinstance(value, bool) and kind != "bool")
            ):
                raise FovealError(f"{item.name}={value!r} of {type(self).__name__} must be {wanted[1]}")

    def _check_keep(self) -> None:
        keep = self.keep
        if keep == "auto":
            if not self.finds_budget:
                raise FovealError(
                    f'keep="auto" needs a method with a budget of its own (TRIM, PruMerge): {type(self).__name__} '
                    "takes a token count such as 64, or a fraction such as 0.25"
                )
            return
        if isinstance(keep, bool) or not isinstance(keep, Integral | float):
            raise FovealError(
                f"keep={keep!r} is no number: pass a token count such as 64, or a fraction such as 0.25"
            )
        if not isinstance(keep, float):
            keep = int(keep)
            object.__setattr__(self, "keep", keep)  # a NumPy integer, perhaps
        if isinstance(keep, int) and keep < 1:
            raise FovealError(f"keep={keep} must be at least 1 visual token per image")
        if isinstance(keep, float) and not 0 < keep <= 1:
            raise FovealError(f"keep={keep} as a fraction must be in (0, 1]; a count of tokens is an int")

    @classmethod
    def first_layer(cls) -> int:
        """The smallest layer the method works at: 1 if it observes the layer before."""
        return 1 if cls.observes() and not cls.own_layer else 0

    @classmethod
    def observes(cls) -> bool:
        """Whether the method defines `observe`."""
        return cls.observe is not Compressor.observe

    @classmethod
    def reads(cls) -> bool:
        """Whether the method defines `read`."""
        return cls.read is not Compressor.read

    def stages(self, depth: int) -> Sequence[Compressor]:
        """What acts at single layers of a decoder of `depth` layers: the method itself, unless it has several."""
        return (self,)

    def options(self) -> dict[str, Any]:
        """What the method was made with: `get(name, **options)` makes it again."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.init}

    def read(self, context: TokenContext) -> Tensor:
        """Reduce what enters layer 0 to one number per row, once for all stages of the method; optional.

        Returns:
            (batch, rows), handed to `observe` as `rows.read`.
        """
        raise NotImplementedError

    def observe(self, attention: AttentionInputs, rows: Rows) -> Tensor:
        """Reduce the attention inputs of layer K-1 to what `score` needs of every row; optional.

        Args:
            attention: queries and keys of layer K-1, after rotary embedding.
            rows: which of them are what.

        Returns:
            (batch, rows) or (batch, rows, ...), handed to `score` as `context.observed`.
        """
        raise NotImplementedError

    def score(self, context: TokenContext) -> Tensor:
        """Score visual tokens: (images, tokens), the largest are kept. The one method to write."""
        raise NotImplementedError(f"{type(self).__name__} must define score() or select()")

    def select(self, context: TokenContext) -> Selection:
        """Choose the tokens to keep; by default those with the largest `score`."""
        scores = self.score(context).masked_fill(~context.layout.valid, float("-inf"))
        counts = self.targets(context)
        kept = top_per_row(scores, on_device(counts, scores.device))
        return Selection(kept=kept, counts=counts, scores=scores)

    def targets(self, context: TokenContext) -> tuple[int, ...]:
        """Tokens that stay of each image."""
        return self.left(context.layout.lengths, context.whole_lengths)

    def left(self, reaching: tuple[int, ...], whole: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens that stay of each image, known before any is seen.

        Args:
            reaching: tokens of each image that reach this stage.
            whole: tokens that it had before the first.

        Raises:
            FovealError: an image has fewer tokens than the count asked for, or the image decides (keep="auto").
        """
        return self.counts(reaching)

    def flops(self, sizes: StageSizes) -> int | None:
        """FLOPs of the matrix products by which this stage observes, chooses and merges; None if nobody knows.

        Of `own_layer`, the projections of the layer that is looked at are not among them; `cost` adds them.
        """
        return None

    def reading_flops(self, sizes: StageSizes) -> int:
        """The same of `read`, once for all stages of the method."""
        return 0

    def counts(self, lengths: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens to keep of images with `lengths` tokens; a fraction is rounded, at least one token stays.

        Raises:
            FovealError: an image has fewer tokens than the count asked for, or decides itself (keep="auto").
        """
        keep, shortest = self.known_keep(), min(lengths)
        if isinstance(keep, float):
            return tuple(max(1, math.floor(keep * length + 0.5)) for length in lengths)
        if keep > shortest:
            raise FovealError(
                f"keep={keep} is more than the {shortest} visual tokens of image {lengths.index(shortest)} of "
                "this batch: pass a smaller count, or a fraction such as keep=0.5"
            )
        return (keep,) * len(lengths)

    def known_keep(self) -> int | float:
        """`keep`, where it is known before any image is seen.

        Raises:
            FovealError: the image decides.
        """
        if self.keep == "auto":
            raise FovealError(
                f'{type(self).__name__} with keep="auto" lets the image decide how many tokens stay: pass a count such '
                "as 64, or a fraction such as 0.25"
            )
        return self.keep


def check_choice(compressor: Compressor, option: str, **meanings: str) -> None:
    """Refuse an option that is none of the words which `meanings` explains."""
    value = getattr(compressor, option)
    if value not in meanings:
        choices = " nor ".join(f'"{word}" ({meaning})' for word, meaning in meanings.items())
        raise FovealError(f"{option}={value!r} is neither {choices}")


@dataclass(frozen=True, kw_only=True)
class StagedCompressor(Compressor):
    """A method that drops tokens at several layers.

    Args:
        layers: the decoder layers at whose entry tokens are dropped, ascending; None for the paper's, scaled to the
            model's depth.
    """

    layer: int = field(default=0, init=False, repr=False)
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None:
            layers = self.layers
            if not isinstance(layers, Sequence) or not all(type(layer) is int for layer in layers):
                raise FovealError(f"layers={layers!r} must be several whole numbers, such as (8, 16, 24)")
            object.__setattr__(self, "layers", tuple(layers))  # a list, where it was read from a file
            if not layers or list(layers) != sorted(set(layers)):
                raise FovealError(f"layers={layers} must be one or more layers in ascending order")

    def stages(self, depth: int) -> Sequence[Compressor]:
        """One compressor a layer."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TowerCompressor(Compressor, ABC):
    """A method that chooses between the vision tower and the decoder, whose layers see kept tokens only.

    Works where every patch of the tower becomes one visual token (LLaVA, PaliGemma).
    """

    layer: int = field(default=0, init=False, repr=False)

    observed_layer: ClassVar[int | None] = (
        None  # 0: the tower layer that makes the features; 1: the one behind it
    )
    needs_text: ClassVar[bool] = False
    projected: ClassVar[bool] = False  # chooses among what the projector made
    merges_in_tower: ClassVar[bool] = False  # defines removals() and match() as ToMe does

    @abstractmethod
    def choose(self, context: TowerContext) -> Selection:
        """Choose the tokens to keep, and what merges into them."""

    def wants_class_token(self) -> bool:
        """Whether a tower without class token (SigLIP) has to be refused."""
        return False

    def resized(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of the image that the tower is to see; by default all."""
        return grid
