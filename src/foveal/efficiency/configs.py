"""A model's shape without its weights: from a checkpoint's config, or by a well-known name without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, CLIPConfig, CLIPModel

from foveal.engine.families import Parts
from foveal.errors import FovealError

__all__ = ["KNOWN", "empty_clip", "empty_model", "read_config"]

# What their config.json says, as far as it differs from the library's defaults.
KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "llava-hf/llava-1.5-7b-hf": ("llava", {"text_config": {"model_type": "llama", "vocab_size": 32064}}),
    "llava-hf/llava-1.5-13b-hf": (
        "llava",
        {
            "text_config": {
                "model_type": "llama",
                "vocab_size": 32064,
                "hidden_size": 5120,
                "intermediate_size": 13824,
                "num_hidden_layers": 40,
                "num_attention_heads": 40,
                "num_key_value_heads": 40,
            }
        },
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": (
        "qwen2_5_vl",
        {
            "vision_config": {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
            "text_config": {
                "vocab_size": 152064,
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
            },
        },
    ),
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
            f"one whose shape is known ({', '.join(KNOWN)})"
        ) from error


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
