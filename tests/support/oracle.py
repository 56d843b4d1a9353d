"""The masked oracle: the unmodified model, nothing dropped, no cache; layers >= K may not see dropped columns.

It shares no code with the engine: it builds its mask from scratch.
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

    def close(hidden: Tensor, mask: Tensor | None) -> Tensor:
        rows = hidden.shape[-1]
        # A token that was dropped still sees itself, so that no row is NaN; its result is never read.
        closed = hidden[:, None, None, :] & ~torch.eye(rows, dtype=torch.bool)
        if mask is None:
            mask = torch.ones(rows, rows, dtype=torch.bool).tril()[None, None]
        if mask.dtype == torch.bool:
            return mask & ~closed
        return mask.masked_fill(closed, torch.finfo(mask.dtype).min)

    def hook(hidden: Tensor, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": close(hidden, kwargs["attention_mask"])}

    handles = [
        layer.register_forward_pre_hook(partial(hook, hidden), with_kwargs=True)
        for first, hidden in stages
        for layer in layers[first:]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def dropped_columns(visual: Tensor, kept: list[Tensor]) -> Tensor:
    """(batch, rows) bool: the visual tokens that are not in `kept` (positions per sample)."""
    dropped = visual.clone()
    for sample, positions in enumerate(kept):
        dropped[sample, positions] = False
    return dropped
