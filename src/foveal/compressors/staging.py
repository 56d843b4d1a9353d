"""What methods with several stages share: their layers and budgets, what text attends to, and merging."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from foveal.compressors.base import Compressor, Positions, StagedCompressor
from foveal.compressors.context import AttentionInputs, Rows, TokenContext
from foveal.compressors.sizes import StageSizes
from foveal.errors import FovealError

__all__ = [
    "FallingCompressor",
    "Stage",
    "geometric",
    "merge_matrix",
    "scaled_layers",
    "seen_by_text",
    "text_attention",
    "text_attention_flops",
    "with_weight",
]

_BLOCK = 64  # text rows whose attention is held at once


@dataclass(frozen=True, kw_only=True)
class FallingCompressor(StagedCompressor):
    """A method whose budget falls from stage to stage, until `keep` tokens are left of each image.

    Args:
        positions: "packed": from each stage's layer on, positions count only the tokens that are left; "original":
            kept tokens keep their position ids, with gaps.
        budgets: tokens left after each stage but the last, whose budget is `keep`: counts (int), or fractions (float)
            of the image's original tokens, rounded down. None: stage s of S (from 1) leaves
            N (keep / N) ** (s / S) of N tokens, rounded to the nearest, so that every stage drops the same fraction.
            Where an image has fewer tokens than a budget, the stage drops none of them; no stage goes below `keep`.

    A fraction `keep` is one of the image's original tokens, too.

    Raises:
        FovealError: an option out of range, or as many budgets as do not fit the layers.
    """

    positions: Positions = "packed"
    budgets: Sequence[int | float] | None = None

    stage: ClassVar[type[Stage]]
    default_layers: ClassVar[tuple[int, ...]] = (8, 16, 24)  # of a decoder of 32
    lowest_layer: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None and self.layers[0] < self.lowest_layer:
            raise FovealError(
                f"layers={self.layers} start too low for {type(self).__name__}: the first must be at least "
                f"{self.lowest_layer}"
            )
        if self.budgets is not None:
            object.__setattr__(self, "budgets", tuple(self.budgets))
            self._check_budgets(tuple(self.budgets), len(self.layers or self.default_layers))

    def _check_budgets(self, budgets: tuple[int | float, ...], stages: int) -> None:
        if len(budgets) != stages - 1:
            raise FovealError(
                f"budgets={budgets} must name {stages - 1} budgets, one for each of the {stages} stages but the last, "
                "whose budget is keep"
            )
        for budget in budgets:
            count = isinstance(budget, int) and not isinstance(budget, bool) and budget >= 1
            if not count and not (isinstance(budget, float) and 0 < budget <= 1):
                raise FovealError(
                    f"budgets={budgets}: {budget} is neither a count of tokens (an int, at least 1) nor a fraction "
                    "(a float in (0, 1])"
                )
        falling = [*budgets, self.keep]
        for kind in (int, float):
            alike = [budget for budget in falling if isinstance(budget, kind)]
            if alike != sorted(alike, reverse=True):
                raise FovealError(
                    f"budgets={budgets} must fall from stage to stage, down to keep={self.keep}"
                )

    def stages(self, depth: int) -> Sequence[Compressor]:
        """One compressor a layer.

        Raises:
            FovealError: the decoder is too shallow for the default layers.
        """
        layers = self.layers or scaled_layers(self.default_layers, depth)
        return tuple(
            self.stage(
                keep=self.keep,
                layer=layer,
                per_frame=self.per_frame,
                positions=self.positions,
                method=self,
                number=number,
                of=len(layers),
            )
            for number, layer in enumerate(layers)
        )


@dataclass(frozen=True, kw_only=True)
class Stage(Compressor):
    """What acts at one of a method's layers.

    Args:
        method: the method.
        number: which stage of it, counted from 0.
        of: how many stages there are.
    """

    method: FallingCompressor
    number: int
    of: int

    def left(self, reaching: tuple[int, ...], whole: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens that this stage is to leave of each image: never more than reach it."""
        keep = self.counts(whole)
        budgets = self.method.budgets
        if budgets is None or self.number == self.of - 1:
            targets = geometric(keep, whole, self.number, self.of)
        else:
            budget = budgets[self.number]
            targets = tuple(
                max(final, int(tokens * budget) if isinstance(budget, float) else budget)
                for final, tokens in zip(keep, whole, strict=True)
            )
        return tuple(min(target, tokens) for target, tokens in zip(targets, reaching, strict=True))


def geometric(keep: Sequence[int], whole: Sequence[int], number: int, stages: int) -> tuple[int, ...]:
    """Tokens of each image after stage `number` of `stages`, when every stage drops the same fraction.

    Args:
        keep: tokens left of each image after the last stage, at least 1.
        whole: tokens before the first.
        number: counted from 0.
        stages: how many there are.
    """
    if number == stages - 1:
        return tuple(keep)
    share = (number + 1) / stages
    return tuple(math.floor(n * (k / n) ** share + 0.5) for k, n in zip(keep, whole, strict=True))


def scaled_layers(layers: Sequence[int], depth: int, of: int = 32) -> tuple[int, ...]:
    """Layers of a decoder of `of` layers at the same fractions of one of `depth`: distinct, and at least 1.

    Raises:
        FovealError: there are too few layers.
    """
    scaled: list[int] = []
    for layer in layers:
        scaled.append(max(scaled[-1] + 1 if scaled else 1, math.floor(layer * depth / of + 0.5)))
    if scaled[-1] >= depth:
        raise FovealError(
            f"a decoder of {depth} layers is too shallow for {len(scaled)} stages at the default layers "
            f"({', '.join(map(str, layers))} of {of}): pass layers=, at most {depth - 1}"
        )
    return tuple(scaled)


def text_attention(attention: AttentionInputs, rows: Rows, weights: Tensor) -> Tensor:
    """The attention that every row receives from text, averaged over heads.

    Args:
        attention: of the layer observed.
        rows: its rows.
        weights: (batch, rows) of the text rows; the others are not looked at.

    Returns:
        (batch, rows, 2): the weighted sum over text rows; and that of the last prompt row alone, for `seen_by_text`.
    """
    weights, last = weights.masked_fill(rows.visual, 0), rows.last[:, None]
    text, weight = with_weight(weights, lambda: rows.text.shape[1])
    # A row of padding sees nothing: NaN. The last row takes its place, and comes once more by itself.
    index = torch.cat([torch.where(weight == 0, last, text), last], dim=1)
    weight = functional.pad(weight, (0, 1))
    total = weight.new_zeros(())
    for some, share in zip(index.split(_BLOCK, dim=1), weight.split(_BLOCK, dim=1), strict=True):
        received = attention.rows(some)
        shares = share.to(received.dtype).div(received.shape[1])[:, None].expand(-1, received.shape[1], -1)
        total = total + (shares.reshape(len(share), 1, -1) @ received.flatten(1, 2))[:, 0]
    both = torch.stack([total, received[:, :, -1].mean(dim=1)], dim=2)
    return both[:, -rows.prompt.shape[1] :]


def text_attention_flops(sizes: StageSizes) -> int:
    """FLOPs of `text_attention` where every text row of the prompt has weight, and the last comes once more."""
    queries = sizes.text + 1
    return sizes.attention(queries) + 2 * sizes.sequences * queries * sizes.heads * sizes.keys


def with_weight(weights: Tensor, most: Callable[[], int]) -> tuple[Tensor, Tensor]:
    """The columns that have weight, the heaviest first.

    Args:
        weights: (batch, columns), not negative.
        most: tells how many columns of a sample can have weight, where counting would wait for a device.

    Returns:
        (batch, some) int64 columns, and their weights: 0 where a sample has fewer.
    """
    count = int(weights.count_nonzero(dim=1).max()) if weights.is_cpu else most()
    weights, index = weights.sort(dim=1, descending=True, stable=True)
    return index[:, :count], weights[:, :count]


def seen_by_text(context: TokenContext) -> Tensor:
    """Score visual tokens by `text_attention`, the first two entries of what was observed.

    An image that none of the text rows sees, because it stands behind them or there are none, is scored by the last
    prompt row.

    Returns:
        (images, tokens), -inf for padding.
    """
    assert context.observed is not None
    layout = context.layout
    total, last = layout.gather(context.observed[:, :, :2]).unbind(dim=2)
    seen = layout.mask_padding(total, 0).amax(dim=1, keepdim=True) > 0
    return layout.mask_padding(torch.where(seen, total, last), float("-inf"))


def merge_matrix(slot: Tensor, weight: Tensor, slots: int) -> Tensor:
    """`Selection.mix` of tokens that go to one slot each.

    Args:
        slot: (images, tokens) int64; anything where `weight` is 0.
        weight: (images, tokens) of the token in its slot's sum; 0 for tokens that are dropped.
        slots: the largest number of tokens that an image keeps.
    """
    images, tokens = slot.shape
    mix = weight.new_zeros(images, slots, tokens)
    return mix.scatter_(1, slot.clamp(0, slots - 1)[:, None], weight[:, None])
