"""See a layer's queries and keys without changing its attention backend.

The attention module of one layer gets a shallow copy of its config that names a registered function. That function
receives queries and keys after projections, norms and rotary embedding, whatever the family, hands them to an
observer, and calls the backend the model was using. Nothing is computed twice and no N x N matrix is made.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

__all__ = ["AttentionInputs", "observe_attention"]

_NAME = "foveal_probe"


@dataclass(frozen=True)
class AttentionInputs:
    """What one attention module received.

    Attributes:
        query: (batch, heads, queries, head width), rotary embedding applied.
        key: (batch, key-value heads, keys, head width), earlier keys of the cache first.
        mask: the backend's mask: None (causal), 2-D (batch, keys) or 4-D, bool or additive.
        scaling: the factor on query-key products.
        softcap: cap of the scores, None in most families.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None

    def row(self, query_index: Tensor) -> Tensor:
        """The soft-max row of one query per sample.

        Args:
            query_index: (batch,) which query of this forward.

        Returns:
            (batch, heads, keys) attention probabilities, float32 or wider.
        """
        batch, heads, queries, width = self.query.shape
        groups, keys = self.key.shape[1:3]
        index = query_index.view(batch, 1, 1, 1)
        query = self.query.gather(2, index.expand(batch, heads, 1, width)).view(batch, groups, -1, width)
        scores = torch.matmul(query, self.key.transpose(-1, -2)).view(batch, heads, keys) * self.scaling
        if self.softcap:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = self._masked(scores, query_index, keys - queries)
        return scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))

    def _masked(self, scores: Tensor, query_index: Tensor, past: int) -> Tensor:
        """Close the keys that the query may not see."""
        mask = self.mask
        if mask is None:
            column = torch.arange(scores.shape[-1], device=scores.device)
            return scores.masked_fill(column > (query_index + past)[:, None, None], float("-inf"))
        if mask.ndim == 2:
            return scores.masked_fill(~mask.bool()[:, None, -scores.shape[-1] :], float("-inf"))
        mask = mask.expand(scores.shape[0], -1, -1, -1)
        index = query_index.view(-1, 1, 1, 1).expand(-1, mask.shape[1], 1, mask.shape[-1])
        row = mask.gather(2, index)[:, :, 0]
        return scores.masked_fill(~row, float("-inf")) if row.dtype == torch.bool else scores + row


def _probe(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    config = module.config
    with torch.no_grad():
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        config.foveal_observer(AttentionInputs(query, key, attention_mask, scaling, kwargs.get("softcap")))
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    backend = ALL_ATTENTION_FUNCTIONS.get_interface(config.foveal_backend, eager)
    return backend(module, query, key, value, attention_mask, **kwargs)


@contextmanager
def observe_attention(attention: nn.Module, observer: Callable[[AttentionInputs], None]) -> Iterator[None]:
    """Call `observer` at each forward of `attention`; its config is put back exactly on exit."""
    original: Any = attention.config
    if _NAME not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(_NAME, _probe)
    replaced = copy.copy(original)
    replaced.foveal_backend = original._attn_implementation
    replaced.foveal_observer = observer
    replaced._attn_implementation_internal = _NAME
    attention.config = replaced
    try:
        yield
    finally:
        attention.config = original
