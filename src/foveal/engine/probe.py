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
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foveal.compressors.context import AttentionInputs
from foveal.engine.attributes import replaced

__all__ = ["observe_attention"]

_NAME = "foveal_probe"
_EAGER = "eager_attention_forward"


def _probe(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    config = module.config
    if query.shape[2] > 1:  # a decode step chooses nothing
        with torch.no_grad():
            scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
            config.foveal_observer(
                AttentionInputs(query, key, attention_mask, scaling, kwargs.get("softcap"))
            )
    # Not the class alone: FSDP2 gives a module a class of its own module.
    places = (sys.modules[cls.__module__] for cls in type(module).__mro__)
    eager: Any = next((vars(place)[_EAGER] for place in places if _EAGER in vars(place)), None)
    backend = ALL_ATTENTION_FUNCTIONS.get_interface(config.foveal_original._attn_implementation, eager)
    return backend(module, query, key, value, attention_mask, **kwargs)


@contextmanager
def observe_attention(attention: nn.Module, observer: Callable[[AttentionInputs], None]) -> Iterator[None]:
    """Call `observer` at each forward of `attention`; its config is put back exactly on exit."""
    original: Any = attention.config
    if _NAME not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(_NAME, _probe)
    config = copy.copy(original)
    config.foveal_original = original  # its backend may be changed at any time
    config.foveal_observer = observer
    config._attn_implementation_internal = _NAME
    with replaced(attention, "config", config):
        yield
