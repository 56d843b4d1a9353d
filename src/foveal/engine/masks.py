"""Attention masks from logical to physical coordinates.

The model's own mask is gathered, never rebuilt: bidirectional image blocks, sliding windows and padding stay exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.engine.rows import take
from foveal.errors import FovealError

__all__ = ["translate_mask"]


def translate_mask(
    mask: Tensor | None,
    rows: Tensor | None,
    columns: Tensor,
    *,
    uniform: bool,
    past: int,
    length: int,
    attention: str,
) -> Tensor | None:
    """Gather the rows and columns of a mask that still exist.

    Args:
        mask: None (plain causal), (batch, keys) or (batch or 1, heads or 1, queries, keys), bool or additive.
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
    if mask is None:
        return None if uniform else _causal(rows, columns, past, length, attention)
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        raise FovealError(
            f"masks of type {type(mask).__name__} are not supported: use sdpa, eager or flash attention"
        )
    if mask.ndim == 2:
        return take(mask, columns, -1, 0).bool() & (columns >= 0)
    # A sliding window's mask starts at a later logical column.
    columns = columns - max(past + length - mask.shape[-1], 0)
    exists = (columns >= 0)[:, None, None]
    if rows is not None:
        mask = take(mask, rows, 2, 0)
    mask = take(mask, columns, 3, 0)
    if mask.dtype == torch.bool:
        return mask & exists
    return mask.masked_fill(~exists, torch.finfo(mask.dtype).min)


def _causal(rows: Tensor | None, columns: Tensor, past: int, length: int, attention: str) -> Tensor:
    """The causal mask that the missing one stands for, with filler keys closed."""
    if "flash" in attention:
        return columns >= 0
    if rows is None:
        rows = torch.arange(length, device=columns.device).expand(columns.shape[0], -1)
    allowed = (columns[:, None] <= (past + rows)[:, :, None]) & (columns >= 0)[:, None]
    return allowed[:, None]
