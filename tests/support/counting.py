"""What a forward really cost: FLOPs by part, rows and bytes by layer, as torch and the cache tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import DynamicCache

import foveal
from foveal.compressors import TowerCompressor
from foveal.engine import hooks, tower
from foveal.engine.families import find_parts
from support.families import FIRST_TEXT

Inputs = dict[str, Tensor]
aten = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _distances(one: Any, other: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * one[0] * one[1] * other[1] * one[2]


# What the counter does not know: attention's kernel for CPUs, and distances, whatever their kernel multiplies.
UNKNOWN = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._euclidean_dist: _distances,
    aten._cdist_forward: _distances,
}


@dataclass
class Counted:
    """What `Cost` predicts."""

    tower: int
    text_tower: int
    projector: int
    selection: int
    layers: tuple[int, ...]
    head: int
    first_token: int
    rows: tuple[int, ...]
    cache: tuple[int, ...]
    steps: tuple[int, ...]
    cache_at_end: tuple[int, ...]


class _Books:
    """Takes what some functions compute out of the modules that they run in."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter = counter
        self.totals: Counter[str] = Counter()
        self._moved: Counter[str] = Counter()
        self._open: list[int] = []  # what the calls inside a call have booked

    def booking(self, book: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose FLOPs go into a book, but for those that go into another inside it."""

        def booked(*args: Any, **kwargs: Any) -> Any:
            before, parents = self.counter.get_total_flops(), set(self.counter.mod_tracker.parents)
            self._open.append(0)
            try:
                return function(*args, **kwargs)
            finally:
                inside = self._open.pop()
                spent = self.counter.get_total_flops() - before
                self.totals[book] += spent - inside
                if self._open:
                    self._open[-1] += spent
                else:
                    self._moved.update(dict.fromkeys(parents, spent))

        return booked

    def of(self, module: nn.Module, name: str) -> int:
        """What a module computed itself."""
        return sum(self.counter.get_flop_counts().get(name, {}).values()) - self._moved[name]


def counted(
    model: Any, inputs: Inputs, methods: Any = None, text_tower: Any = None, steps: int = 0
) -> Counted:
    """Run a prompt, and decode steps behind it.

    Args:
        model: uncompressed.
        inputs: samples that are alike.
        methods: to compress it with.
        text_tower: for methods that read the question.
        steps: how many tokens to decode behind the prompt.
    """
    parts = find_parts(model)
    cache = DynamicCache(config=model.config.get_text_config())
    seen: list[int] = []
    with ExitStack() as stack, torch.no_grad():
        books = _Books(FlopCounterMode(display=False, custom_mapping=UNKNOWN))
        stack.enter_context(_booked(books, methods, text_tower))
        if methods is not None:
            stack.enter_context(foveal.compress(model, methods, text_tower=text_tower))
        for layer in parts.layers:
            note = layer.register_forward_hook(lambda _layer, _args, out: seen.append(_first(out).shape[1]))
            stack.callback(note.remove)
        with books.counter:
            model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        first, filled = books.counter.get_total_flops(), _bytes(cache)
        found = _by_part(parts, books)
        decoded = [_step(parts, inputs, cache, index) for index in range(steps)]
    return Counted(
        **found,
        text_tower=books.totals["text tower"],
        selection=books.totals["selection"],
        first_token=first,
        rows=tuple(seen[: len(parts.layers)]),
        cache=filled,
        steps=tuple(decoded),
        cache_at_end=_bytes(cache),
    )


@contextmanager
def _booked(books: _Books, methods: Any, text_tower: Any) -> Iterator[None]:
    """Selection and the text tower in books of their own."""
    several = methods if isinstance(methods, list) else [methods]
    places: list[tuple[Any, str, str]] = [
        (owner, name, "selection")
        for owner, names in ((hooks.Hooks, ("_read", "_look", "_observe")), (hooks, ("decide", "advance")))
        for name in names
    ]
    places.append((tower, "_kept_rows", "selection"))
    for method in several:
        if isinstance(method, TowerCompressor):
            places.append((type(method), "choose", "selection"))
        if isinstance(method, foveal.ToMe):
            places.append((type(method), "match", "selection"))
    if text_tower is not None:
        places += [(type(text_tower), name, "text tower") for name in ("embed", "project")]
    with ExitStack() as stack:
        for owner, name, book in places:
            stack.enter_context(patch.object(owner, name, books.booking(book, getattr(owner, name))))
        yield


def _by_part(parts: Any, books: _Books) -> dict[str, Any]:
    names = {id(module): f"{type(parts.top).__name__}.{name}" for name, module in parts.top.named_modules()}

    def of(module: Any) -> int:
        return books.of(module, names[id(module)])

    inside = {id(module) for module in parts.tower.modules()}
    projectors = [(of(module), id(module) in inside) for module in parts.projectors]
    return {
        "tower": of(parts.tower) - sum(flops for flops, within in projectors if within),
        "projector": sum(flops for flops, _ in projectors),
        "layers": tuple(of(layer) for layer in parts.layers),
        "head": of(parts.top.lm_head),
    }


def _step(parts: Any, inputs: Inputs, cache: Any, index: int) -> int:
    """FLOPs of the decode step that reads token `index` of the answer."""
    token = torch.full((len(inputs["input_ids"]), 1), FIRST_TEXT + index)
    mask = pad(inputs["attention_mask"], (0, index + 1), value=1)
    places = mask.sum(dim=1, keepdim=True) - 1
    options = {"attention_mask": mask, "past_key_values": cache}
    if parts.many_axes:
        options["position_ids"] = places.expand(3, -1, -1)
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN) as counter:
        parts.top(input_ids=token, use_cache=True, **options)
    return int(counter.get_total_flops())


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _bytes(cache: Any) -> tuple[int, ...]:
    return tuple(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
