"""The language-model head: hidden states -> logits, as the model itself would."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foveal.distillation.objective import Head
from foveal.engine.families import Parts
from foveal.errors import FovealError

__all__ = ["capped", "head_of"]


def head_of(parts: Parts) -> nn.Module:
    """The module behind the decoder that makes logits.

    Raises:
        FovealError: the model has none, or changes what it says in a way that is not known here.
    """
    top: Any = parts.top
    head = top.get_output_embeddings()
    if head is None:
        raise FovealError(
            f"{type(top).__name__} has no language-model head: load the model with AutoModelForImageTextToText"
        )
    scaled = [name for name in ("logit_scale", "logits_scaling") if hasattr(top.config, name)]
    if scaled:
        raise FovealError(
            f"{type(top).__name__} scales its logits ({scaled[0]}): training it is not supported"
        )
    found: nn.Module = head
    return found


def capped(head: Head, parts: Parts) -> Head:
    """The head followed by the cap that Gemma puts on logits (arXiv 2408.00118, section 2)."""
    top: Any = parts.top
    cap: float | None = getattr(top.config.get_text_config(), "final_logit_softcapping", None)
    if cap is None:
        return head

    def with_cap(hidden: Tensor) -> Tensor:
        return cap * torch.tanh(head(hidden) / cap)

    return with_cap
