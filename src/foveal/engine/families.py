"""Model families: where their parts are and what is peculiar about them. The only place that knows.

A family that follows the common path of transformers (`get_decoder()`, `config.image_token_id`, features from
`get_image_features()`, decoder `layers` with `self_attn`) works without an entry, with a warning that it is untested.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal, cast

from torch import nn

from foveal.errors import FovealError

__all__ = ["FAMILIES", "Family", "Parts", "find_parts", "unwrap"]


@dataclass(frozen=True)
class Family:
    """Where a family's parts are below its base model, and its quirks.

    Attributes:
        tower: the vision tower.
        projector: from the tower's width to the decoder's; inside the tower in some families.
        decoder: the module that owns the decoder layers.
        patchwise: every patch of the tower becomes one row of the projector, and one visual token; no tiles, whose
            padding would be cut away again, and with it what was merged.
        tiles: features come per tile, and an image is a whole run of placeholders.
        broken: modalities whose placeholders of one image or clip are broken up by text tokens (row breaks,
            timestamps), so that only the features tell where the next one starts.
        frames: how frames are told apart in a clip: by `grid` positions, as `runs` of placeholders, or from the
            config, the number of tokens of each; None where the family takes no video.
    """

    tower: str
    projector: str
    decoder: str = "language_model"
    patchwise: bool = False
    tiles: bool = False
    broken: frozenset[str] = frozenset()
    frames: Literal["grid", "runs"] | Callable[[Any], int] | None = None


def _onevision_frame(config: Any) -> int:
    """Tokens of a video frame: the tower's grid, pooled 2 x 2."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    return int((-(-side // 2)) ** 2)


_LLAVA = Family(tower="vision_tower", projector="multi_modal_projector")
_PATCHWISE = replace(_LLAVA, patchwise=True)
_QWEN = Family(tower="visual", projector="visual.merger", frames="grid")
_QWEN3 = Family(tower="visual", projector="visual.merger", broken=frozenset({"video"}), frames="runs")
_IDEFICS = Family(tower="vision_model", projector="connector", decoder="text_model")

FAMILIES: dict[str, Family] = {
    "gemma3": _LLAVA,
    "gemma4": Family(
        tower="vision_tower", projector="embed_vision", broken=frozenset({"video"}), frames="runs"
    ),
    "idefics3": _IDEFICS,
    "internvl": replace(_LLAVA, tiles=True),
    "llava": _PATCHWISE,
    "llava_next": _LLAVA,
    "llava_onevision": replace(_LLAVA, frames=_onevision_frame),
    "mistral3": replace(_LLAVA, broken=frozenset({"image"})),
    "paligemma": _PATCHWISE,
    "qwen2_5_vl": _QWEN,
    "qwen2_vl": _QWEN,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "smolvlm": _IDEFICS,
}

_SHARING = (
    "its last layers reuse the keys of earlier ones, which would still hold the tokens that were dropped"
)
_RUNNING = "its linear-attention layers keep a running state, from which no token can be dropped"
_CROSS = "its decoder sees images through cross-attention, not as tokens in the sequence"
_REFUSED = {
    "gemma3n": _SHARING,
    "gemma3n_text": _SHARING,
    "mllama": _CROSS,
    "qwen3_5": _RUNNING,
    "qwen3_5_moe": _RUNNING,
}


@dataclass(frozen=True)
class Parts:
    """The modules the engine hooks.

    Attributes:
        top: the model whose forward takes labels, without wrappers.
        base: the module that merges image features (the decoder itself in a bare language model).
        decoder: the module that owns `layers` and the final `norm`.
        family: the family's entry, or an empty one.
        placeholders: token id of each modality's placeholder; empty where ids name no visual token.
        deepstack: number of decoder layers behind which features are added again (DeepStack).
    """

    top: nn.Module
    base: nn.Module
    decoder: nn.Module
    family: Family
    placeholders: dict[str, int] = field(default_factory=dict)
    deepstack: int = 0

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, 0-based."""
        return cast(nn.ModuleList, self.decoder.layers)

    @property
    def tower(self) -> nn.Module:
        """The vision tower."""
        return self.base.get_submodule(self.family.tower)

    @property
    def projector(self) -> nn.Module:
        """The projector."""
        return self.base.get_submodule(self.family.projector)

    @property
    def projectors(self) -> list[nn.Module]:
        """The projector, and those of DeepStack's features."""
        return [self.projector, *getattr(self.tower, "deepstack_merger_list", ())]

    @property
    def tower_layers(self) -> nn.ModuleList:
        """The layers of the vision tower."""
        return cast(Any, self.tower).encoder.layers  # type: ignore[no-any-return]

    @property
    def has_class_token(self) -> bool:
        """Whether the vision tower puts a class token (CLS) in front of the patches."""
        return hasattr(getattr(self.tower, "embeddings", None), "class_embedding")

    @property
    def many_axes(self) -> bool:
        """Whether positions name the row and column of every patch (M-RoPE)."""
        config: Any = self.decoder.config
        return "mrope_section" in (getattr(config, "rope_parameters", None) or {})

    @property
    def reads_positions(self) -> bool:
        """Whether attention needs position ids besides rotary tables (Ministral 3 scales its queries by them)."""
        named = inspect.signature(self.attention(0).forward).parameters.get("position_ids")
        return named is not None and named.default is named.empty

    def attention(self, layer: int) -> nn.Module:
        """The self-attention module of a layer."""
        return cast(nn.Module, self.layers[layer].self_attn)


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside torch.compile, DDP and PEFT wrappers."""
    inner: Any = model
    while True:
        if hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif isinstance(inner, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = inner.module
        elif hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        else:
            return cast(nn.Module, inner)


def find_parts(model: nn.Module) -> Parts:
    """Locate the parts of a Hugging Face model.

    Raises:
        FovealError: no transformers model, or one of a family that cannot be supported, with the reason.
    """
    top: Any = unwrap(model)
    config = getattr(top, "config", None)
    if config is None or not hasattr(top, "get_decoder"):
        raise FovealError(
            f"{type(model).__name__} is no transformers model: pass one loaded by an Auto class"
        )
    _refuse_family(config)
    placeholders = {
        modality: token
        for modality in ("image", "video")
        if (token := getattr(config, f"{modality}_token_id", None)) is not None
    }
    if placeholders and config.model_type not in FAMILIES:
        _warn_untested(config.model_type)
    vision = getattr(config, "vision_config", None)
    return Parts(
        top=top,
        base=top.base_model,
        decoder=_decoder(top),
        family=_family(config),
        placeholders=placeholders,
        deepstack=len(getattr(vision, "deepstack_visual_indexes", None) or ()),
    )


def _family(config: Any) -> Family:
    """The family's entry; what is unknown follows the common path."""
    if getattr(getattr(config, "vision_config", None), "model_type", None) == "pixtral":
        return FAMILIES["mistral3"]  # Pixtral-12B calls itself a LLaVA
    return FAMILIES.get(config.model_type, _LLAVA)


def _refuse_family(config: Any) -> None:
    reason = _REFUSED.get(config.model_type)
    text = config.get_text_config()
    if getattr(text, "num_kv_shared_layers", 0):
        reason = _SHARING
    elif getattr(text, "hidden_size_per_layer_input", 0):
        reason = "its layers take inputs of their own for every row of the sequence"
    if reason:
        raise FovealError(f"this {config.model_type} model is not supported: {reason}")


@cache
def _warn_untested(model_type: str) -> None:
    """Once per family and process."""
    warnings.warn(
        f"{model_type} models are untested with Foveal: they follow the common path of transformers and should work; "
        "compare keep=1.0 with the plain model before you trust them",
        stacklevel=4,
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
    if not hasattr(decoder, "norm"):
        raise FovealError(
            f"{type(top).__name__} has no final `norm` behind its decoder layers, which methods ask for: it is not "
            "supported"
        )
    found: nn.Module = decoder
    return found
