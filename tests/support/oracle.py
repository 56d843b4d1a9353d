"""The masked oracle: the unmodified model, nothing dropped; layers >= K may not see dropped columns.

It shares no code with the engine. `closed_columns` builds a causal mask from scratch; `hidden_columns` closes columns
in the model's own mask, whatever the family's, and serves a cache too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor


@contextmanager
def closed_columns(
    layers: Any, first_layer: int, visible: Tensor, window: int | None = None
) -> Iterator[None]:
    """In layers >= first_layer, attend causally (to the last `window`) to visible (batch, rows) columns only."""
    rows = visible.shape[1]
    causal = torch.ones(rows, rows, dtype=torch.bool).tril()
    if window is not None:
        causal = causal.triu(1 - window)
    allowed = causal & visible[:, None, None, :]
    # A row without any visible column would be NaN; its result is never read.
    allowed = allowed | torch.eye(rows, dtype=torch.bool)

    def close(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs["attention_mask"]
        if mask is not None and mask.dtype != torch.bool:
            mask = torch.zeros(allowed.shape, dtype=mask.dtype).masked_fill(
                ~allowed, torch.finfo(mask.dtype).min
            )
        else:
            mask = allowed
        return args, {**kwargs, "attention_mask": mask}

    handles = [layer.register_forward_pre_hook(close, with_kwargs=True) for layer in layers[first_layer:]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def visible_columns(visual: Tensor, real: Tensor, kept: list[Tensor]) -> Tensor:
    """(batch, rows) bool: real text, and the visual tokens in `kept` (positions per sample)."""
    visible = real.bool() & ~visual
    for sample, positions in enumerate(kept):
        visible[sample, positions] = True
    return visible


@contextmanager
def hidden_columns(layers: Any, stages: list[tuple[int, Tensor]]) -> Iterator[None]:
    """From each stage's layer on, close columns in the model's own mask.

    Args:
        layers: the decoder layers.
        stages: (first layer, (batch, rows) bool: the columns that nothing sees from there on).
    """
    handles = [
        layer.register_forward_pre_hook(partial(close_columns, index, hidden), with_kwargs=True)
        for first, hidden in stages
        for index, layer in enumerate(layers)
        if index >= first
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def close_columns(layer: int, hidden: Tensor, _module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Pre-hook of a layer: nothing may see the hidden columns, whether or not a cache holds the first of them."""
    cache, mask = kwargs.get("past_key_values"), kwargs["attention_mask"]
    past, rows = 0 if cache is None else int(cache.get_seq_length(layer)), args[0].shape[1]
    if mask is None:
        mask = torch.ones(rows, past + rows, dtype=torch.bool).tril(past)[None, None]
    columns = mask.shape[-1]  # those of a sliding window are the last ones
    hidden = torch.nn.functional.pad(hidden, (0, max(past + rows - hidden.shape[1], 0)))
    # A token that was dropped still sees itself, so that no row is NaN; its result is never read.
    itself = torch.eye(rows, columns, dtype=torch.bool).roll(columns - rows, 1)
    closed = hidden[:, None, None, past + rows - columns : past + rows] & ~itself
    if mask.dtype == torch.bool:
        return args, {**kwargs, "attention_mask": mask & ~closed}
    return args, {**kwargs, "attention_mask": mask.masked_fill(closed, torch.finfo(mask.dtype).min)}


def dropped_columns(visual: Tensor, kept: list[Tensor]) -> Tensor:
    """(batch, rows) bool: the visual tokens that are not in `kept` (positions per sample)."""
    dropped = visual.clone()
    for sample, positions in enumerate(kept):
        dropped[sample, positions] = False
    return dropped
