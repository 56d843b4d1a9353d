"""What a method is given, and what it answers. Plain tensors: nothing here knows a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from foveal.compressors.selection import on_device

__all__ = ["AttentionInputs", "Rows", "Selection", "TokenContext", "TowerContext", "VisualLayout"]


@dataclass(frozen=True)
class VisualLayout:
    """The visual tokens among the rows that reach a layer, one padded line per image.

    Attributes:
        sample: (images,) the sample each image belongs to.
        rows: (images, tokens) the row of each visual token; 0 where `valid` is False.
        valid: (images, tokens) bool, False for padding.
        lengths: visual tokens of each image, on the host.
    """

    sample: Tensor
    rows: Tensor
    valid: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, numbers: Tensor, lengths: tuple[int, ...]) -> VisualLayout:
        """Group rows by image.

        Args:
            numbers: (batch, rows) image number of each row, -1 for text; ascending in reading order.
            lengths: how many rows each image has, known on the host so that nothing waits for the device.
        """
        device, row_count = numbers.device, numbers.shape[1]
        flat = torch.nonzero_static(numbers.flatten() >= 0, size=sum(lengths)).squeeze(1)
        length = on_device(lengths, device)
        start = length.cumsum(0) - length
        offset = torch.arange(max(lengths), device=device)
        valid = offset < length[:, None]
        position = flat[(start[:, None] + offset).clamp(max=sum(lengths) - 1)]
        return cls(
            sample=position[:, 0] // row_count,
            rows=torch.where(valid, position % row_count, 0),
            valid=valid,
            lengths=lengths,
        )

    @property
    def padded(self) -> bool:
        """Whether any line has padding, known on the host."""
        return len(set(self.lengths)) > 1

    def mask_padding(self, values: Tensor, value: float) -> Tensor:
        """(images, tokens) with a value in place of padding; the very same tensor where there is none."""
        return values.masked_fill(~self.valid, value) if self.padded else values

    def gather(self, source: Tensor, rows: Tensor | None = None) -> Tensor:
        """(batch, rows, ...) -> (images, tokens, ...): the entries of every image's visual tokens.

        Args:
            source: one entry for each row.
            rows: (images, some) the rows to take, of the image's sample; None for those of all its tokens.
        """
        rows = self.rows if rows is None else rows
        flat = (self.sample * source.shape[1]).unsqueeze(1) + rows
        # Whole rows at once: several times as fast as an index of two tensors.
        return source.flatten(0, 1).index_select(0, flat.flatten()).view(*rows.shape, *source.shape[2:])

    def scatter(self, kept: Tensor, shape: torch.Size) -> Tensor:
        """(images, tokens) bool -> (batch, rows) bool, False for every row that is no visual token."""
        batch, row_count = shape
        full = torch.zeros(batch, row_count + self.padded, dtype=torch.bool, device=kept.device)
        rows = torch.where(self.valid, self.rows, row_count) if self.padded else self.rows
        full[self.sample[:, None], rows] = kept
        return full[:, :row_count]


@dataclass(frozen=True)
class AttentionInputs:
    """What one attention module received.

    Attributes:
        query: (batch, heads, queries, head width), rotary embedding applied.
        key: (batch, key-value heads, keys, head width), earlier keys of the cache first.
        mask: the backend's mask: None (causal), 2-D (batch, keys), 4-D, bool or additive, or a flex block mask.
        scaling: the factor on query-key products.
        softcap: cap of the scores, None in most families.
        causal: whether no mask means that a query sees no later key; False in vision towers.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | BlockMask | None
    scaling: float
    softcap: float | None = None
    causal: bool = True

    def without_empty_slots(self, keys: int | None) -> AttentionInputs:
        """Only the first `keys` keys, where a static cache hands over all its slots; None for all."""
        if keys is None or keys == self.key.shape[2]:
            return self
        mask = self.mask[..., :keys] if isinstance(self.mask, Tensor) else self.mask
        return replace(self, key=self.key[:, :, :keys], mask=mask)

    def row(self, query_index: Tensor) -> Tensor:
        """The soft-max row of one query per sample.

        Args:
            query_index: (batch,) which query of this forward.

        Returns:
            (batch, heads, keys) attention probabilities, float32 or wider.
        """
        return self.rows(query_index[:, None])[:, :, 0]

    def rows(self, query_index: Tensor) -> Tensor:
        """The soft-max rows of some queries of each sample.

        Args:
            query_index: (batch, some) which queries of this forward.

        Returns:
            (batch, heads, some, keys) attention probabilities, float32 or wider.
        """
        batch, heads, queries, width = self.query.shape
        groups, keys = self.key.shape[1:3]
        some = query_index.shape[1]
        index = query_index[:, None, :, None].expand(-1, heads, -1, width)
        # Scaled first and in full: products of large keys overflow in half precision.
        dtype = torch.promote_types(self.key.dtype, torch.float32)
        query = self.query.gather(2, index).to(dtype).mul(self.scaling).view(batch, groups, -1, width)
        scores = torch.matmul(query, self.key.to(dtype).mT).view(batch, heads, some, keys)
        if self.softcap:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = self._masked(scores, query_index, keys - queries)
        return scores.softmax(dim=-1)

    def _masked(self, scores: Tensor, query_index: Tensor, past: int) -> Tensor:
        """Close the keys that the queries may not see."""
        mask = self.mask
        if self.causal and (mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)):
            column = torch.arange(scores.shape[-1], device=scores.device)
            later = column > (query_index + past)[:, None, :, None]
            # A limit, because filling through a mask of all heads takes longer than the soft-max.
            limit = torch.where(later, float("-inf"), float("inf")).to(scores.dtype)
            scores = torch.minimum(scores, limit)
        if mask is None:
            return scores
        if isinstance(mask, BlockMask):
            sample = torch.arange(len(scores), device=scores.device)[:, None, None]
            column = torch.arange(scores.shape[-1], device=scores.device)[None, None]
            seen = mask.mask_mod(sample, torch.zeros_like(sample), query_index[:, :, None], column)
            return scores.masked_fill(~seen[:, None], float("-inf"))
        if mask.ndim == 2:
            return scores.masked_fill(~mask.bool()[:, None, None, -scores.shape[-1] :], float("-inf"))
        mask = mask.expand(scores.shape[0], -1, -1, -1)
        index = query_index[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[-1])
        rows = mask.gather(2, index)
        return scores.masked_fill(~rows, float("-inf")) if rows.dtype == torch.bool else scores + rows


@dataclass(frozen=True)
class Rows:
    """The rows whose attention a method observes.

    Attributes:
        prompt: (batch, rows) bool, see `TokenContext.prompt`.
        visual: (batch, rows) bool: the rows that are visual tokens.
        words: (batch, rows) bool: the real rows that are no visual token.
        most: the most words of any sample, on the host.
        read: what `Compressor.read` returned, (batch, rows), for methods that define it.
    """

    prompt: Tensor
    visual: Tensor
    words: Tensor
    most: int
    read: Tensor | None = None

    @cached_property
    def text(self) -> Tensor:
        """(batch, most) the rows that are words, ascending, right-aligned; -1 is filler."""
        row = torch.arange(self.words.shape[1], device=self.words.device)
        return torch.where(self.words, row, -1).sort(dim=1).values[:, self.words.shape[1] - self.most :]

    @property
    def last(self) -> Tensor:
        """(batch,) the last row of each sample's prompt."""
        row = torch.arange(self.prompt.shape[1], device=self.prompt.device)
        return torch.where(self.prompt, row, 0).amax(dim=1)


@dataclass(frozen=True)
class TokenContext:
    """What a method may look at when tokens are dropped at the entry of a decoder layer.

    Attributes:
        hidden: (batch, rows, width) residual stream entering the layer.
        layout: the visual tokens among the rows, grouped by image.
        visual: (batch, rows) bool: the rows that are visual tokens.
        prompt: (batch, rows) bool: real rows up to the first answer being trained on; no padding.
        observed: what `Compressor.observe` returned, (batch, rows, ...), for methods that define it.
        final_norm: the decoder's last normalisation.
        whole_lengths: visual tokens that each image had before any stage, on the host.
    """

    hidden: Tensor
    layout: VisualLayout
    visual: Tensor
    prompt: Tensor
    observed: Tensor | None
    final_norm: Callable[[Tensor], Tensor]
    whole_lengths: tuple[int, ...]


@dataclass(frozen=True)
class TowerContext:
    """What a pre-LM method may look at: images between the vision tower and the decoder. All images have one size.

    Attributes:
        features: (images, tokens, width) what the projector is given; of methods with `projected`, what it made.
        grid: rows and columns of the patches; their product is the number of visual tokens that the decoder expects.
        class_token: (images, width) the tower's class token (CLS) in the layer that `features` come from; None in
            towers without one.
        attention: queries and keys of the tower layer that the method observes, the class token first where there is
            one; no mask.
        image_embeds: (images, tokens, shared) the patches in the space that CLIP shares with text, not normalised.
        text_embeds: (images, shared) the question about each image in that space, not normalised.
        slots: (images, tokens) of a method that merges in the tower, the patch that each feature was before; None
            where nothing merged.
        members: (images, tokens, patches) the patches that each of those features stands for.
    """

    features: Tensor
    grid: tuple[int, int]
    class_token: Tensor | None = None
    attention: AttentionInputs | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    slots: Tensor | None = None
    members: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Visual tokens that the decoder expects of an image."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Selection:
    """A method's decision.

    Attributes:
        kept: (images, tokens) bool.
        counts: tokens kept per image, on the host; None when only the device knows.
        scores: (images, tokens) the larger the sooner kept, for pictures; None where a method has no such number.
        mix: (images, kept, tokens) of methods that merge: the m-th kept token of an image, in raster order, becomes the
            sum of all tokens weighted by row m; rows beyond an image's count are zero. A pre-LM method may weigh the
            class token in one more column. None where kept tokens stay as they are.
        sources: (images, kept, tokens) which tokens each kept one stands for, where the method has merged them itself;
            None where `mix` tells, or every token stands for itself.
        traced: False where it cannot be told which tokens the kept ones stand for.
    """

    kept: Tensor
    counts: tuple[int, ...] | None = None
    scores: Tensor | None = None
    mix: Tensor | None = None
    sources: Tensor | None = None
    traced: bool = True
