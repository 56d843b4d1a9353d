"""A key-value cache that speaks logical lengths while its pruned layers hold fewer keys.

Everything that asks the cache for a length (mask creation, positions, generate's bookkeeping) is told the
uncompressed one. What a pruned layer really holds is a `LayerView` on the cache object itself, so decoding needs no
other state: interleaved caches, threads and second turns work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache

from foveal.compressors.selection import on_device
from foveal.errors import FovealError

__all__ = [
    "LayerView",
    "LogicalCache",
    "Switch",
    "held_keys",
    "physical_length",
    "static_length",
    "switch_of",
    "view_of",
    "with_views",
]


@dataclass(eq=False)
class LayerView:
    """What a pruned layer's cache holds. Layers of one stage share one view.

    Attributes:
        columns: (batch, known) logical index of the first physical keys, -1 for filler.
        offset: logical minus physical index of every later key; a tensor where the cache is static, so that compiled
            graphs do not depend on its value.
        uniform: no filler, so every sample holds the same number of keys.
        shift: (batch,) by how much later tokens' positions are ahead of the packed ones; None where positions stay.
        table: of a static cache, (batch, slots) logical index of every slot, -1 for filler and slots beyond the end.
        memo: the translated masks of the current step, by the mask they came from.
    """

    columns: Tensor
    offset: int | Tensor
    uniform: bool
    shift: Tensor | None = None
    table: Tensor | None = None
    memo: dict[Any, tuple[Any, Any]] = field(default_factory=dict)

    def columns_between(self, start: int, stop: int) -> Tensor:
        """Logical index (batch, stop - start) of the physical keys start..stop-1."""
        batch, known = self.columns.shape
        later = torch.arange(max(start, known), max(stop, known), device=self.columns.device) + self.offset
        return torch.cat([self.columns[:, start:stop], later.expand(batch, -1)], dim=1)

    def allocated(self, slots: int | None) -> LayerView:
        """This view for a cache with a fixed number of slots; unchanged where `slots` is None."""
        if slots is None:
            return self
        table = self.columns_between(0, slots)
        table = table.masked_fill(table >= slots, -1).contiguous()
        offset = on_device(self.offset, table.device)
        return LayerView(self.columns, offset, uniform=False, shift=self.shift, table=table)

    def map(self, function: Callable[[Tensor], Tensor]) -> None:
        """Change the batch dimension of everything."""
        self.columns = function(self.columns)
        self.table = None if self.table is None else function(self.table)
        self.shift = None if self.shift is None else function(self.shift)
        self.memo.clear()


class Switch:
    """From which layer on a decoder is hooked now, if it is; known to all caches that its hooks made."""

    first: int | None = None

    def __deepcopy__(self, memo: Any) -> Switch:
        """A copied cache still belongs to the same model."""
        return self


_switches: WeakKeyDictionary[nn.Module, Switch] = WeakKeyDictionary()


def switch_of(decoder: nn.Module) -> Switch:
    """The decoder's switch."""
    return _switches.setdefault(decoder, Switch())


class LogicalCache(Cache):
    """Mixed into the class of a cache on its first prune."""

    views: dict[int, LayerView]
    switch: Switch

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        """Add keys and values.

        Raises:
            FovealError: no hook is there to fit masks to the keys that are left; nothing was added to any layer.
        """
        first = self.switch.first
        if layer_idx == 0 and self.views and (first is None or first > min(self.views)):
            raise FovealError(
                "this cache holds a compressed prompt: go on inside foveal.compress with methods that act no later "
                "than those that made it, or start a new cache"
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """Logical length of a layer: dropped tokens count."""
        view = self.views.get(layer_idx)
        length = super().get_seq_length(layer_idx)
        return length if view is None else length + view.offset

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        """Logical position of the next query."""
        return self.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Logical keys that a mask covers, and the first of them."""
        view = self.views.get(layer_idx)
        if view is None or view.table is not None:
            sizes: tuple[int, int] = super().get_mask_sizes(query_length, layer_idx)
            return sizes
        past = self.get_seq_length(layer_idx)
        window = getattr(self.layers[layer_idx], "sliding_window", None)
        first = 0 if window is None else max(past - window + 1, 0)
        return past - first + query_length, first

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow the beams that live on."""
        super().reorder_cache(cast(torch.LongTensor, beam_idx))
        self._map_columns(lambda columns: columns.index_select(0, beam_idx.to(columns.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample in place."""
        super().batch_repeat_interleave(repeats)
        self._map_columns(lambda columns: columns.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some samples."""
        super().batch_select_indices(indices)
        self._map_columns(lambda columns: columns[indices.to(columns.device)])

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens (a negative count; a positive number is the logical length to keep)."""
        removed = self.get_seq_length() - tokens_to_remove if tokens_to_remove > 0 else -tokens_to_remove
        if removed < 0:
            return
        for view in self._distinct_views():
            layer = next(index for index, other in self.views.items() if other is view)
            _crop_view(view, physical_length(self, layer) - removed)
        super().crop(-int(removed))

    def reset(self) -> None:
        """Empty the cache."""
        super().reset()  # type: ignore[no-untyped-call]
        self.views = {}

    def _distinct_views(self) -> list[LayerView]:
        return list({id(view): view for view in self.views.values()}.values())

    def _map_columns(self, function: Callable[[Tensor], Tensor]) -> None:
        for view in self._distinct_views():
            view.map(function)


def _crop_view(view: LayerView, remaining: int) -> None:
    """Forget the known columns past `remaining`; they must be plain tokens, not a pruned prompt."""
    known = view.columns.shape[1]
    if remaining >= known:
        return
    expected = torch.arange(max(remaining, 0), known, device=view.columns.device) + view.offset
    if remaining < 0 or not bool((view.columns[:, remaining:] == expected).all()):
        raise FovealError(
            "crop() reaches into the compressed prompt, whose dropped tokens cannot come back: start a new cache"
        )
    view.columns = view.columns[:, :remaining]
    view.memo.clear()


def static_length(cache: Cache, layer: int) -> int | None:
    """Slots of a static layer, None of one that grows."""
    if layer >= len(cache.layers) or not cache.layers[layer].is_compileable:
        return None
    return int(cache.layers[layer].get_max_length())


def held_keys(cache: Cache, layer: int) -> int:
    """Keys that a layer that grows hands to attention besides the new ones: all, or a sliding window's last."""
    length = physical_length(cache, layer)
    if layer >= len(cache.layers):
        return length
    held: Any = cache.layers[layer]
    return min(length, held.sliding_window - 1) if getattr(held, "is_sliding", False) else length


def physical_length(cache: Cache, layer: int) -> int:
    """Keys that have passed through layer `layer` of the cache, dropped ones not counted."""
    return int(Cache.get_seq_length(cache, layer))


def view_of(cache: Cache | None, layer: int) -> LayerView | None:
    """The view of a pruned layer, None where nothing was dropped."""
    return cache.views.get(layer) if isinstance(cache, LogicalCache) else None


_classes: dict[tuple[type[Cache], tuple[int, ...]], type[Cache]] = {}
_lock = threading.Lock()


def with_views(cache: Cache, hooked_layers: tuple[int, ...], switch: Switch) -> LogicalCache:
    """Switch `cache` in place to a class that reports logical lengths.

    One class per set of hooked layers: compiled graphs are guarded on the cache's type but not on module hooks, so a
    graph made with other hooks can never be reused for this cache.
    """
    original = type(cache).__bases__[1] if isinstance(cache, LogicalCache) else type(cache)
    key = (original, hooked_layers)
    with _lock:
        if key not in _classes:
            _classes[key] = type(f"Logical{original.__name__}", (LogicalCache, original), {})
    new = not isinstance(cache, LogicalCache)
    cache.__class__ = _classes[key]
    assert isinstance(cache, LogicalCache)
    if new:
        cache.views = {}
    cache.switch = switch
    return cache
