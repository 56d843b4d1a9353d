"""Compiled graphs and hooks: torch.compile does not notice that hooks came or went."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from foveal.engine.families import layers_of_wrapping

__all__ = ["forget_graphs", "is_compiled"]


def forget_graphs(model: nn.Module) -> None:
    """Drop all compiled graphs of the process if `model` is compiled as a whole.

    A graph compiled before hooks came would silently not compress, one compiled with them would go on compressing.
    """
    if is_compiled(model):
        torch.compiler.reset()


def is_compiled(model: nn.Module) -> bool:
    """Whether the model, one of its wrappers, or its forward went through torch.compile."""
    wrapped: list[Any] = layers_of_wrapping(model)
    return (
        any(hasattr(module, "_orig_mod") for module in wrapped)
        or wrapped[-1]._compiled_call_impl is not None
        or hasattr(wrapped[-1].forward, "_torchdynamo_orig_callable")
    )
