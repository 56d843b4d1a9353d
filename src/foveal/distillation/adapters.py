"""Low-rank adapters (LoRA, DoRA) through PEFT: the decoder's linear layers get adapters, the projector learns."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from foveal.distillation.config import EpicConfig
from foveal.engine.families import find_parts
from foveal.errors import FovealError

__all__ = ["adapted_layers", "merge_adapters", "with_adapters"]


def with_adapters(model: nn.Module, config: EpicConfig) -> nn.Module:
    """The model with LoRA adapters (arXiv 2106.09685), or DoRA's (2402.09353), as `config` says.

    Everything else is frozen but the projector, which PEFT copies and trains in full unless its learning rate is 0.
    What learns is in float32 if the run computes in mixed precision.

    Args:
        model: a Hugging Face model; one that has adapters already is returned as it is.
        config: lora_rank, lora_alpha, lora_dropout, lora_targets, dora.

    Raises:
        FovealError: PEFT is missing, or the decoder has no linear layers of those names.
    """
    if config.lora_rank is None or hasattr(model, "peft_config"):
        return model
    peft = _peft()
    parts = find_parts(model)
    names = {module: name for name, module in model.named_modules()}
    full = config.projector_learning_rate != 0 and bool(parts.placeholders)
    options = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,
        lora_dropout=config.lora_dropout,
        use_dora=config.dora,
        target_modules=list(adapted_layers(model, config.lora_targets)),
        modules_to_save=[names[module] for module in parts.projectors] if full else None,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # PEFT asks by the old name
        adapted: nn.Module = peft.get_peft_model(cast(PreTrainedModel, model), options)
    if config.bf16 or config.fp16:
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return adapted


def adapted_layers(model: nn.Module, targets: str | None = None) -> dict[str, nn.Linear]:
    """The decoder's linear layers that get an adapter, by name.

    Args:
        model: a Hugging Face model.
        targets: the last part of their names, such as "q_proj,v_proj"; None for all.

    Raises:
        FovealError: the decoder has no linear layers of those names.
    """
    inside = {id(module) for module in find_parts(model).layers.modules()}
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside
    }
    if targets is None:
        return layers
    endings = [name.strip() for name in targets.split(",")]
    known = sorted({_last(name) for name in layers})
    for ending in endings:
        if ending not in known:
            raise FovealError(
                f"lora_targets: the decoder has no linear layer {ending!r}, only {', '.join(known)}"
            )
    return {name: layer for name, layer in layers.items() if _last(name) in endings}


def merge_adapters(model: nn.Module, folder: str | Path) -> nn.Module:
    """The model with the adapters of `folder` merged into its weights: an ordinary model again.

    Args:
        model: the one that was adapted, with its weights as they were.
        folder: what PEFT's save_pretrained wrote.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        adapted = _peft().PeftModel.from_pretrained(cast(PreTrainedModel, model), str(folder))
    with torch.no_grad():
        merged: nn.Module = adapted.merge_and_unload()
    return merged


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise FovealError('LoRA needs PEFT: pip install "foveal[train]"') from error
    return peft


def _last(name: str) -> str:
    return name.rpartition(".")[2]
