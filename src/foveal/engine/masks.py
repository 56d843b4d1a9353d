"""Attention masks from logical to physical coordinates.

The model's own mask is gathered, never rebuilt: bidirectional image blocks, sliding windows and padding stay exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import Cache

from foveal.engine.rows import take
from foveal.errors import FovealError

__all__ = ["real_rows", "translate_mask"]


def translate_mask(
    mask: Any,
    rows: Tensor | None,
    columns: Tensor,
    *,
    uniform: bool,
    past: int,
    length: int,
    attention: str,
) -> Any:
    """Gather the rows and columns of a mask that still exist.

    Args:
        mask: None (plain causal), a flex block mask, (batch, keys), or (batch or 1, heads or 1, queries, keys), bool
            or additive.
        rows: (batch, queries) logical row in this forward of each physical query, -1 filler; None for all.
        columns: (batch, keys) logical index of each physical key after this forward, -1 filler.
        uniform: neither rows nor columns hold filler.
        past: logical keys before this forward.
        length: logical rows of this forward.
        attention: the backend's name; flash backends take 2-D masks.

    Returns:
        The physical mask, None where the backend's own causal rule is right.

    Raises:
        FovealError: a mask of another kind.
    """
    if mask is None and uniform:
        return None
    if "flash" in attention:
        return _keys(mask, columns)
    if mask is None:
        return _causal(rows, columns, past, length)
    if isinstance(mask, BlockMask):
        return _block_mask(mask, rows, columns, past + length)
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise FovealError(
            f"attention masks of this kind ({type(mask).__name__}) are not supported: use sdpa, eager, flash or flex "
            "attention"
        )
    columns = columns.to(mask.device)
    # A sliding window's mask starts at a later logical column.
    columns = columns - max(past + length - mask.shape[-1], 0)
    exists = (columns >= 0)[:, None, None]
    if rows is not None:
        mask = take(mask, rows, 2, 0)
    mask = take(mask, columns, 3, 0)
    if mask.dtype == torch.bool:
        return mask & exists
    return mask.masked_fill(~exists, torch.finfo(mask.dtype).min)


def _keys(mask: Tensor | None, columns: Tensor) -> Tensor:
    """The 2-D mask of flash backends."""
    exists = columns >= 0
    return exists if mask is None else take(mask, columns, -1, 0).bool() & exists.to(mask.device)


def _block_mask(mask: BlockMask, rows: Tensor | None, columns: Tensor, keys: int) -> BlockMask:
    """The block mask's own rule, asked about logical rows and columns."""
    queries = mask.seq_lengths[0] if rows is None else rows.shape[1]
    # A sliding window's mask starts at a later logical column.
    columns = columns - max(keys - mask.seq_lengths[1], 0)

    def physical(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row = query if rows is None else rows[batch, query].clamp(min=0)
        column = columns[batch, key]
        return mask.mask_mod(batch, head, row, column.clamp(min=0)) & (column >= 0)

    batch, length = columns.shape
    return create_block_mask(physical, batch, None, queries, length, device=columns.device)


def _causal(rows: Tensor | None, columns: Tensor, past: int, length: int) -> Tensor:
    """The causal mask that the missing one stands for, with filler keys closed."""
    if rows is None:
        rows = torch.arange(length, device=columns.device).expand(columns.shape[0], -1)
    allowed = (columns[:, None] <= (past + rows)[:, :, None]) & (columns >= 0)[:, None]
    return allowed[:, None]


def real_rows(mask: Any, source: Tensor, cache: Cache | None) -> Tensor:
    """(batch, rows) bool: which rows of this forward are no padding.

    Args:
        mask: what the model was called with: None, (batch, keys), a prepared 4-D or block mask, or one for each kind of
            layer.
        source: (batch, rows, ...) ids or embeddings.
        cache: asked for its logical length where a prepared mask has to be read, since a static one is waited for.
    """
    batch, rows = source.shape[:2]
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values())))
    if mask is None:
        return torch.ones(batch, rows, dtype=torch.bool, device=source.device)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        real: Tensor = mask[:, -rows:].bool()
        return real
    past = 0 if cache is None else int(cache.get_seq_length())
    if isinstance(mask, BlockMask):
        sample, row = torch.meshgrid(
            torch.arange(batch, device=source.device), torch.arange(rows, device=source.device), indexing="ij"
        )
        sees_itself: Tensor = mask.mask_mod(sample, torch.zeros_like(sample), row, row + past)
        return sees_itself.expand(batch, rows)
    # Prepared 4-D masks: padding may not even see itself. Those of sliding windows start at a later column.
    own = mask[:, 0].diagonal(min(past, mask.shape[-1] - rows), -2, -1)
    real = own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2
    return real.expand(batch, rows)
