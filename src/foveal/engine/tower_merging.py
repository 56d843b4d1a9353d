"""Merge tokens inside the blocks of a vision tower, between attention and MLP, as ToMe does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from foveal.compressors.context import AttentionInputs
from foveal.compressors.selection import kept_slots
from foveal.engine.attributes import replaced
from foveal.engine.probe import observe_attention

__all__ = ["Members", "Merger", "MergingBlocks"]


@dataclass
class Members:
    """Which patches the tokens of a tower stand for.

    Attributes:
        slots: (images, left) index of the token, class token included, that each was before any merge.
        weights: (images, left, tokens) how many of each original token it holds; class token included.
        key: (images, heads, left, head width) the keys of the block that is running.
    """

    slots: Tensor
    weights: Tensor
    key: Tensor | None = None

    @property
    def sizes(self) -> Tensor:
        """(images, left) how many tokens each stands for."""
        return self.weights.sum(dim=2)


_members: ContextVar[Members | None] = ContextVar("foveal_members", default=None)


class Merger(Protocol):
    """What decides which tokens merge."""

    proportional: bool

    def removals(self, tokens: int, blocks: int) -> tuple[int, ...]:
        """How many of `tokens` patches disappear in each block."""

    def match(self, metric: Tensor, removed: int, class_token: bool) -> tuple[Tensor, Tensor]:
        """(images, left) where each token goes, and whether it goes."""


class MergingBlocks:
    """The blocks of one tower.

    Args:
        blocks: those that the features pass through.
        merger: the method.
        tokens: patches of an image.
        class_token: whether a class token stands before them.
    """

    def __init__(self, blocks: list[nn.Module], merger: Merger, tokens: int, class_token: bool) -> None:
        self.blocks = blocks
        self.merger = merger
        self.tokens = tokens
        self.class_token = class_token

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Give the blocks a forward that merges; they are put back exactly on exit."""
        removals = self.merger.removals(self.tokens, len(self.blocks))
        with ExitStack() as undo:
            undo.callback(self.start)
            for index, (block, removed) in enumerate(zip(self.blocks, removals, strict=True)):
                if not removed and not any(removals[:index]):
                    continue  # as it was
                forward = partial(self._forward, block, removed)
                undo.enter_context(replaced(block, "forward", forward))
                attention: Any = block.self_attn
                undo.enter_context(observe_attention(attention, _note_keys))
            yield

    def start(self) -> None:
        """Forget the images before."""
        _members.set(None)

    def patches(self) -> tuple[Tensor | None, Tensor | None]:
        """Of the images that just passed through: `TowerContext.slots` and `members`, None where nothing merged."""
        members = _members.get()
        if members is None:
            return None, None
        first = int(self.class_token)
        return members.slots[:, first:] - first, members.weights[:, first:, first:]

    def _forward(
        self, block: Any, removed: int, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> Tensor:
        members = _members.get() or _whole(hidden_states)
        _members.set(members)
        if self.merger.proportional and members.slots.shape[1] < members.weights.shape[2]:
            attention_mask = members.sizes.log().to(hidden_states.dtype)[:, None, None]
        hidden, _ = block.self_attn(block.layer_norm1(hidden_states), attention_mask=attention_mask, **kwargs)
        hidden = hidden_states + hidden
        if removed:
            assert members.key is not None
            destination, gone = self.merger.match(members.key.mean(dim=1), removed, self.class_token)
            hidden = _merge(hidden, members, destination, gone, removed)
        made: Tensor = hidden + block.mlp(block.layer_norm2(hidden))
        return made


def _note_keys(attention: AttentionInputs) -> None:
    members = _members.get()
    if members is not None:
        members.key = attention.key


def _whole(hidden: Tensor) -> Members:
    images, tokens = hidden.shape[:2]
    each = torch.arange(tokens, device=hidden.device).expand(images, -1)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return Members(each, torch.eye(tokens, dtype=dtype, device=hidden.device).expand(images, -1, -1))


def _merge(hidden: Tensor, members: Members, destination: Tensor, gone: Tensor, removed: int) -> Tensor:
    """Average by size, and leave the tokens that stay in their order."""
    stay = kept_slots(~gone, hidden.shape[1] - removed)

    def collected(source: Tensor) -> Tensor:
        index = destination[..., None].expand(source.shape)
        total = torch.zeros_like(source).scatter_add(1, index, source)
        return total.gather(1, stay[..., None].expand(-1, -1, source.shape[2]))

    merged = collected(hidden.to(members.weights.dtype) * members.sizes[..., None])
    members.weights = collected(members.weights)
    members.slots = members.slots.gather(1, stay)
    return (merged / members.sizes[..., None]).to(hidden.dtype)
