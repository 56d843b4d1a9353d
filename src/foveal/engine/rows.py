"""Gathers between logical rows (nothing dropped) and physical rows (what still exists).

A row index of -1 is filler: rows are right-aligned, so ragged samples carry their filler on the left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foveal.compressors.context import Selection, VisualLayout
from foveal.compressors.selection import kept_slots

__all__ = ["blend", "compact", "map_tensors", "mixed", "restore", "take"]


def compact(keep: Tensor, length: int) -> Tensor:
    """Indices of the kept entries of each row of `keep`.

    Args:
        keep: (batch, rows) bool.
        length: the largest number kept in any sample.

    Returns:
        (batch, length) int64, ascending, right-aligned, -1 where a sample has fewer.
    """
    index = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
    return torch.where(keep, index, -1).sort(dim=1).values[:, keep.shape[1] - length :]


def take(source: Tensor, index: Tensor, dim: int, batch_dim: int) -> Tensor:
    """Gather `index` (batch, length) along `dim`; filler reads entry 0, so mask it where it matters.

    The batch dimension of `source` may be 1: it is then expanded. The index follows `source` to its device.
    """
    index = index.to(source.device)
    dim, batch_dim = dim % source.ndim, batch_dim % source.ndim
    batch, length = index.shape
    expanded = list(source.shape)
    expanded[batch_dim] = batch
    view = [1] * source.ndim
    view[batch_dim], view[dim] = batch, length
    gathered = list(expanded)
    gathered[dim] = length
    return source.expand(expanded).gather(dim, index.clamp(min=0).view(view).expand(gathered))


def restore(source: Tensor, rows: Tensor, length: int) -> Tensor:
    """Inverse of a row gather: put (batch, kept, width) back at `rows` of (batch, length, width), zeros elsewhere."""
    batch, _, width = source.shape
    full = source.new_zeros(batch * (length + 1), width)
    rows = rows.to(source.device)
    start = torch.arange(batch, device=rows.device)[:, None] * (length + 1)
    # Whole rows at once: several times as fast as a scatter of single values.
    target = start + torch.where(rows >= 0, rows, length)
    full = full.index_copy(0, target.flatten(), source.flatten(0, 1))
    return full.view(batch, length + 1, width)[:, :length]


def blend(hidden: Tensor, layout: VisualLayout, selection: Selection) -> Tensor:
    """Put merged tokens into the kept slots of (batch, rows, width); the other slots' values mean nothing any more."""
    assert selection.mix is not None
    merged = mixed(selection.mix, layout.gather(hidden))
    slots = kept_slots(selection.kept & layout.valid, merged.shape[1])
    rows = torch.where(layout.valid, layout.rows, hidden.shape[1]).gather(1, slots)
    room = torch.cat([hidden, hidden.new_zeros(len(hidden), 1, hidden.shape[2])], dim=1)
    return room.index_put((layout.sample[:, None], rows), merged)[:, :-1]


def mixed(mix: Tensor, tokens: Tensor) -> Tensor:
    """(images, kept, tokens) @ (images, tokens, width), computed in the wider type and given in that of `tokens`."""
    dtype = torch.promote_types(mix.dtype, tokens.dtype)
    return (mix.to(dtype) @ tokens.to(dtype)).to(tokens.dtype)


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply `function` to every tensor of a nested tuple or list (rotary tables come as (cos, sin))."""
    if isinstance(tree, tuple | list):
        return type(tree)(map_tensors(function, item) for item in tree)
    return function(tree)
