"""Ask a decoder layer for its queries and keys before it runs.

Some methods rank the tokens that reach a layer by that layer's own attention. Its input norm and its attention module
are called as the layer would; where queries and keys are ready, an observer takes them, and the rest is not computed.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from foveal.engine.precision import no_cached_casts

__all__ = ["Peek"]

_running: ContextVar[bool] = ContextVar("foveal_peeking", default=False)


class _Seen(BaseException):  # no error: no `except Exception` on the way may stop it
    """Leaves the attention module once its inputs were observed."""


class Peek:
    """Runs part of a layer for its observer, in this thread."""

    @property
    def running(self) -> bool:
        """Whether the attention that is being observed runs for its observer only."""
        return _running.get()

    def stop(self) -> None:
        """To be called by the observer when it is done."""
        if _running.get():
            raise _Seen

    def run(self, layer: Any, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """Run `layer` on (batch, rows, width) up to its attention.

        Args:
            layer: a decoder layer with an observed `self_attn`, behind an `input_layernorm` in most families.
            hidden: the rows that reach it.
            kwargs: what it is called with, without a cache.
        """
        kwargs = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        norm = getattr(layer, "input_layernorm", nn.Identity())  # others normalise behind their attention
        token = _running.set(True)
        try:
            with torch.no_grad(), no_cached_casts():
                layer.self_attn(hidden_states=norm(hidden), **kwargs)
        except _Seen:
            pass
        finally:
            _running.reset(token)
