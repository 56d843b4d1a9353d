"""A model's shape without its weights: from a checkpoint's config, or by a well-known name without a network."""

from __future__ import annotations

from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, CLIPConfig, CLIPModel

from foveal.engine.families import Parts
from foveal.errors import FovealError

__all__ = ["KNOWN", "USUAL_SIDE", "empty_clip", "empty_model", "read_config"]

USUAL_SIDE = 32
"""Visual tokens of a side of a picture, where models take any size and nobody said: some 900 pixels."""

_LLAMA_7B = {"model_type": "llama", "vocab_size": 32064}
_LLAMA_13B = {
    **_LLAMA_7B,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}
_QWEN2_7B = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
_QWEN3 = {"vocab_size": 151936, "num_attention_heads": 32, "head_dim": 128}
_QWEN25_VISION = {"hidden_size": 1280, "intermediate_size": 3420}
_SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
_GEMMA3_VISION = {**_SIGLIP, "image_size": 896, "patch_size": 14, "vision_use_head": False}
_GEMMA3 = {"vocab_size": 262208, "sliding_window": 1024}

# What their config.json says, as far as it differs from the library's defaults.
KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "llava-hf/llava-1.5-7b-hf": ("llava", {"text_config": _LLAMA_7B}),
    "llava-hf/llava-1.5-13b-hf": ("llava", {"text_config": _LLAMA_13B}),
    "llava-hf/llava-v1.6-vicuna-7b-hf": ("llava_next", {"text_config": _LLAMA_7B}),
    "llava-hf/llava-v1.6-vicuna-13b-hf": ("llava_next", {"text_config": _LLAMA_13B}),
    "llava-hf/llava-v1.6-mistral-7b-hf": (
        "llava_next",
        {
            "text_config": {
                "model_type": "mistral",
                "vocab_size": 32064,
                "intermediate_size": 14336,
                "num_key_value_heads": 8,
                "sliding_window": None,
            }
        },
    ),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": (
        "llava_onevision",
        {"text_config": {**_QWEN2_7B, "model_type": "qwen2"}},
    ),
    "Qwen/Qwen2-VL-7B-Instruct": (
        "qwen2_vl",
        {"vision_config": {"hidden_size": 3584}, "text_config": _QWEN2_7B},
    ),
    "Qwen/Qwen2.5-VL-3B-Instruct": (
        "qwen2_5_vl",
        {
            "tie_word_embeddings": True,
            "vision_config": {**_QWEN25_VISION, "out_hidden_size": 2048},
            "text_config": {
                "vocab_size": 151936,
                "hidden_size": 2048,
                "intermediate_size": 11008,
                "num_hidden_layers": 36,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
            },
        },
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": (
        "qwen2_5_vl",
        {"vision_config": {**_QWEN25_VISION, "out_hidden_size": 3584}, "text_config": _QWEN2_7B},
    ),
    "Qwen/Qwen2.5-VL-72B-Instruct": (
        "qwen2_5_vl",
        {
            "vision_config": {"hidden_size": 1280, "intermediate_size": 3456, "out_hidden_size": 8192},
            "text_config": {
                "vocab_size": 152064,
                "hidden_size": 8192,
                "intermediate_size": 29568,
                "num_hidden_layers": 80,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
            },
        },
    ),
    "Qwen/Qwen3-VL-4B-Instruct": (
        "qwen3_vl",
        {
            "tie_word_embeddings": True,
            "vision_config": {
                "depth": 24,
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "out_hidden_size": 2560,
                "deepstack_visual_indexes": [5, 11, 17],
            },
            "text_config": {
                **_QWEN3,
                "hidden_size": 2560,
                "intermediate_size": 9728,
                "num_hidden_layers": 36,
                "num_key_value_heads": 8,
            },
        },
    ),
    "Qwen/Qwen3-VL-8B-Instruct": (
        "qwen3_vl",
        {
            "vision_config": {"out_hidden_size": 4096},
            "text_config": {
                **_QWEN3,
                "hidden_size": 4096,
                "intermediate_size": 12288,
                "num_hidden_layers": 36,
                "num_key_value_heads": 8,
            },
        },
    ),
    "Qwen/Qwen3-VL-30B-A3B-Instruct": (
        "qwen3_vl_moe",
        {
            "vision_config": {"out_hidden_size": 2048},
            "text_config": {
                **_QWEN3,
                "hidden_size": 2048,
                "intermediate_size": 6144,
                "moe_intermediate_size": 768,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "num_hidden_layers": 48,
                "num_key_value_heads": 4,
            },
        },
    ),
    "OpenGVLab/InternVL3-8B-hf": (
        "internvl",
        {
            "tie_word_embeddings": False,
            "vision_config": {"attention_bias": True},
            "text_config": {**_QWEN2_7B, "model_type": "qwen2", "vocab_size": 151674},
        },
    ),
    "google/gemma-3-4b-it": (
        "gemma3",
        {
            "vision_config": _GEMMA3_VISION,
            "text_config": {
                **_GEMMA3,
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "head_dim": 256,
            },
        },
    ),
    "google/gemma-3-12b-it": (
        "gemma3",
        {
            "vision_config": _GEMMA3_VISION,
            "text_config": {
                **_GEMMA3,
                "hidden_size": 3840,
                "intermediate_size": 15360,
                "num_hidden_layers": 48,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 256,
            },
        },
    ),
    "google/gemma-3-27b-it": (
        "gemma3",
        {
            "vision_config": _GEMMA3_VISION,
            "text_config": {
                **_GEMMA3,
                "hidden_size": 5376,
                "intermediate_size": 21504,
                "num_hidden_layers": 62,
                "num_attention_heads": 32,
                "num_key_value_heads": 16,
                "head_dim": 128,
            },
        },
    ),
    "google/paligemma-3b-mix-224": (
        "paligemma",
        {
            "vision_config": {
                **_SIGLIP,
                "model_type": "siglip_vision_model",
                "patch_size": 14,
                "vision_use_head": False,
            },
            "text_config": {
                "model_type": "gemma",
                "vocab_size": 257216,
                "hidden_size": 2048,
                "intermediate_size": 16384,
                "num_hidden_layers": 18,
                "num_attention_heads": 8,
                "num_key_value_heads": 1,
                "head_dim": 256,
            },
        },
    ),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": (
        "smolvlm",
        {
            "scale_factor": 3,
            "vision_config": {**_SIGLIP, "image_size": 384, "patch_size": 14},
            "text_config": {
                "model_type": "llama",
                "vocab_size": 49280,
                "hidden_size": 2048,
                "intermediate_size": 8192,
                "num_hidden_layers": 24,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
            },
        },
    ),
    "HuggingFaceM4/Idefics3-8B-Llama3": (
        "idefics3",
        {
            "scale_factor": 2,
            "vision_config": {**_SIGLIP, "image_size": 364, "patch_size": 14},
            "text_config": {
                "model_type": "llama",
                "vocab_size": 128259,
                "intermediate_size": 14336,
                "num_key_value_heads": 8,
            },
        },
    ),
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": ("mistral3", {"tie_word_embeddings": False}),
}

_CLIP_LARGE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}


def read_config(source: str | None) -> Any:
    """The config of a checkpoint.

    Args:
        source: a directory or a hub name; None for the bundled model.

    Raises:
        FovealError: it cannot be read, and the name is not one whose shape is known.
    """
    if source is None:
        from foveal.mini import weights_path

        source = str(weights_path())
    if source in KNOWN and not Path(source).exists():
        kind, options = KNOWN[source]
        return AutoConfig.for_model(kind, **options)
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise FovealError(
            f"cannot read the config of {source!r}: pass a checkpoint's directory, a hub name that can be reached, or "
            f"one of the {len(KNOWN)} names whose shape is built in, such as {_like(source)}"
        ) from error


def _like(name: str) -> str:
    """The built-in name that is most like another."""
    return max(KNOWN, key=lambda known: SequenceMatcher(None, name.lower(), known.lower()).ratio())


def empty_model(config: Any) -> nn.Module:
    """The model that `config` describes, without memory for its weights."""
    with torch.device("meta"):
        model: nn.Module = AutoModelForImageTextToText.from_config(config)
    return model


def empty_clip(parts: Parts) -> Any:
    """The CLIP pair that reads questions beside a model's tower, without weights; None where none is known."""
    folder = Path(str(getattr(parts.top.config, "name_or_path", ""))) / "clip"
    vision: Any = parts.tower.config
    if folder.is_dir():
        config = CLIPConfig.from_pretrained(folder)
    elif vision.model_type == "clip_vision_model" and vision.hidden_size == 1024:
        config = CLIPConfig(text_config=_CLIP_LARGE, vision_config=vision.to_dict(), projection_dim=768)
    else:
        return None
    with torch.device("meta"):
        return CLIPModel(config)
