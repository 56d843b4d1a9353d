"""Leave the vision tower where its features are ready.

LLaVA takes features from the last layer but one: what the last computes is thrown away. While the model itself calls
its tower, in a forward or in `generate`, and says which hidden states it will use (`output_hidden_states=-2`, as
transformers does where it records those alone), the layers behind the last of them hand on what they are given. Whoever
else calls the tower, or watches it with hooks, gets all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from foveal.engine.attributes import replaced
from foveal.engine.families import Parts

__all__ = ["features_only", "leave_early"]

# The model that is at work: it looks at nothing of its tower but features.
_at_work: ContextVar[nn.Module | None] = ContextVar("foveal_at_work", default=None)
# The tower that is called, and how many of its layers are needed; None for all.
_needed: ContextVar[tuple[nn.Module, int] | None] = ContextVar("foveal_tower_layers", default=None)


@contextmanager
def features_only(model: nn.Module) -> Iterator[None]:
    """Inside, what the model's tower returns is seen by the model alone."""
    token = _at_work.set(model)
    try:
        yield
    finally:
        _at_work.reset(token)


@contextmanager
def leave_early(parts: Parts, observed: int | None = None) -> Iterator[None]:
    """Let the tower leave early; it is put back exactly on exit.

    Args:
        parts: the model's modules.
        observed: a tower layer that a method looks into, if it does.
    """
    layers = _layers(parts)
    config: Any = parts.top.config
    configured = _last(getattr(config, "vision_feature_layer", None), len(layers))
    first = len(layers) if configured is None else configured
    first = first if observed is None else max(first, observed + 1)
    with ExitStack() as undo:
        if first < len(layers) and parts.top is not parts.base:
            tower: Any = parts.tower
            top: Any = parts.top
            undo.enter_context(replaced(top, "generate", _generating(top)))
            undo.enter_context(replaced(tower, "forward", _leaving(top, tower, first, layers)))
            for index, layer in enumerate(layers[first:], first):
                undo.enter_context(replaced(layer, "forward", _passing(tower, index, layer.forward)))
        yield


def _layers(parts: Parts) -> list[nn.Module]:
    """The tower's layers; none where it is built otherwise, or its images come as tiles."""
    if not parts.family.patchwise:
        return []
    return list(getattr(getattr(parts.tower, "encoder", None), "layers", ()))


def _last(states: Any, layers: int) -> int | None:
    """How many of `layers` make the last of the hidden `states` (an index, or several); None where nobody says.

    The first state is what enters the first layer.
    """
    several = states if isinstance(states, list | tuple) else [states]
    if not several or not all(type(state) is int for state in several):
        return None
    return max(int(state) if state >= 0 else layers + 1 + state for state in several)


def _generating(top: Any) -> Callable[..., Any]:
    """Generate encodes images before it calls the model."""
    generate = top.generate

    @wraps(generate)
    def generating(*args: Any, **kwargs: Any) -> Any:
        with features_only(top):
            return generate(*args, **kwargs)

    return generating


def _leaving(top: nn.Module, tower: Any, first: int, layers: list[nn.Module]) -> Callable[..., Any]:
    forward, behind = tower.forward, [module for layer in layers[first:] for module in layer.modules()]
    early = {id(module) for layer in layers[:first] for module in layer.modules()}
    late = [module for module in tower.modules() if id(module) not in early]

    @wraps(forward)
    def leaving(*args: Any, **kwargs: Any) -> Any:
        # Compiled code cannot read context variables.
        if torch.compiler.is_compiling() or _at_work.get() is not top:
            return forward(*args, **kwargs)
        last = _last(kwargs.get("output_hidden_states"), len(layers))
        if last is None or _watched(late) or _draws(tower, behind):
            return forward(*args, **kwargs)
        token = _needed.set((tower, max(first, last)))
        try:
            return forward(*args, **kwargs)
        finally:
            _needed.reset(token)

    return leaving


def _passing(tower: nn.Module, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def passing(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        needed = None if torch.compiler.is_compiling() else _needed.get()
        if needed is None or needed[0] is not tower or index < needed[1]:
            return forward(hidden_states, *args, **kwargs)
        return hidden_states

    return passing


def _watched(late: list[nn.Module]) -> bool:
    """Whether hooks of others see what is left out, or what comes of it; the library's own only record states."""
    hooks = [
        hook
        for module in late
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    ]
    return not all(getattr(hook, "__module__", "").startswith(("foveal.", "transformers.")) for hook in hooks)


def _draws(tower: Any, behind: list[nn.Module]) -> bool:
    """Whether what is left out would draw random numbers, and so change all that are drawn later."""
    training = [module for module in behind if module.training]
    dropouts = (module.p for module in training if isinstance(module, nn.Dropout))
    return bool(training and getattr(tower.config, "attention_dropout", 0)) or any(dropouts)
