"""The language-model head: hidden states -> logits, as the model itself would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveal.engine.families import Parts
from foveal.errors import FovealError

__all__ = ["Head"]


@dataclass(frozen=True)
class Head:
    """(rows, width) final hidden states -> (rows, vocabulary) logits.

    Attributes:
        module: the layer that makes logits.
        forward: its forward, which a hook may have replaced in the module itself.
        cap: what Gemma caps logits at (arXiv 2408.00118, section 2).
    """

    module: nn.Module
    forward: Callable[[Tensor], Tensor]
    cap: float | None = None

    @classmethod
    def of(cls, parts: Parts) -> Head:
        """The head of a model.

        Raises:
            FovealError: the model has none, or changes what it says in a way that is not known here.
        """
        top: Any = parts.top
        module = top.get_output_embeddings()
        if module is None:
            raise FovealError(
                f"{type(top).__name__} has no language-model head: load it with AutoModelForImageTextToText"
            )
        scaled = [
            name
            for config in (top.config, top.config.get_text_config())
            for name in ("logit_scale", "logits_scaling", "output_multiplier")
            if getattr(config, name, 1) != 1
        ]
        if scaled:
            raise FovealError(
                f"{type(top).__name__} scales its logits ({scaled[0]}): training it is not supported"
            )
        return cls(
            module, module.forward, getattr(top.config.get_text_config(), "final_logit_softcapping", None)
        )

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits of these rows."""
        logits = self.forward(hidden)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    @property
    def matrix(self) -> Tensor:
        """(vocabulary, width) all there is to the head.

        Raises:
            FovealError: there is more: a bias, a cap or an adapter.
        """
        module = self.module
        if type(module) is not nn.Linear or module.bias is not None or self.cap is not None:
            raise FovealError(
                "fused losses need a language-model head that is one matrix, without bias, cap or adapter: leave "
                "fused_losses off"
            )
        return module.weight
