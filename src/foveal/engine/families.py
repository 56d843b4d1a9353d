"""Where the parts of a model are: the only place that knows about model families.

A family that follows the common path of transformers (`get_decoder()`, `config.image_token_id`, decoder `layers` with
`self_attn`) needs no entry; the table holds what must be known beyond that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from foveal.errors import FovealError

__all__ = ["FAMILIES", "Family", "Parts", "find_parts"]


@dataclass(frozen=True)
class Family:
    """What a family needs beyond the common path.

    Attributes:
        tokens_per_image: from the config, the fixed number of visual tokens of every image.
    """

    tokens_per_image: Callable[[Any], int]


@dataclass(frozen=True)
class Parts:
    """The modules the engine hooks.

    Attributes:
        top: the model whose forward takes labels, without a PEFT wrapper.
        base: the module that merges image features (the decoder itself in a bare language model).
        decoder: the module that owns `layers` and the final `norm`.
        image_token_id: the placeholder's id, None where ids name no visual token.
        tokens_per_image: the family's fixed number of visual tokens per image, or None.
    """

    top: nn.Module
    base: nn.Module
    decoder: nn.Module
    image_token_id: int | None
    tokens_per_image: int | None

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, 0-based."""
        return cast(nn.ModuleList, self.decoder.layers)

    def attention(self, layer: int) -> nn.Module:
        """The self-attention module of a layer."""
        return cast(nn.Module, self.layers[layer].self_attn)


def _llava_tokens(config: Any) -> int:
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    return int(patches + (config.vision_feature_select_strategy != "default"))


FAMILIES = {"llava": Family(tokens_per_image=_llava_tokens)}


def find_parts(model: nn.Module) -> Parts:
    """Locate the parts of a Hugging Face model.

    Raises:
        FovealError: the model has no decoder with self-attention layers that hooks can reach.
    """
    wrapped: Any = model
    top = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
    config = getattr(top, "config", None)
    if config is None or not hasattr(top, "get_decoder"):
        raise FovealError(
            f"{type(model).__name__} is no transformers model: pass one loaded by an Auto class"
        )
    decoder = _decoder(top)
    family = FAMILIES.get(config.model_type)
    return Parts(
        top=top,
        base=top.base_model,
        decoder=decoder,
        image_token_id=getattr(config, "image_token_id", None),
        tokens_per_image=family.tokens_per_image(config) if family else None,
    )


def _decoder(top: Any) -> nn.Module:
    decoder = top.get_decoder()
    for name in ("language_model", "text_model", "decoder", "model"):
        if hasattr(decoder, "layers"):
            break
        decoder = getattr(decoder, name, decoder)
    layers = getattr(decoder, "layers", ())
    if not len(layers) or not all(hasattr(layer, "self_attn") for layer in layers):
        raise FovealError(
            f"{type(top).__name__} has decoder layers without self-attention (cross-attention or linear-attention "
            "models keep no per-token cache that could be compressed): it is not supported"
        )
    found: nn.Module = decoder
    return found
