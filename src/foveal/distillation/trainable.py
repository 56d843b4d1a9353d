"""What learns, and how fast: the projector, the language model and the vision tower."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

from torch import nn

from foveal.distillation.config import EpicConfig
from foveal.engine.families import find_parts
from foveal.errors import FovealError

__all__ = ["freeze", "parameter_groups"]


def freeze(model: nn.Module, config: EpicConfig) -> None:
    """Let nothing learn that `config` gives no learning rate; what is frozen already (below LoRA) stays so.

    Raises:
        FovealError: nothing would be left to learn, or something that PEFT would not save.
    """
    rates = _rates(model, config)
    for parameter in model.parameters():
        if not rates[id(parameter)]:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise FovealError(
            "every learning rate is 0, or its part frozen: let the projector, the language model or the tower learn"
        )
    _refuse_unsaved(model)


def parameter_groups(model: nn.Module, config: EpicConfig, decayed: Collection[str]) -> list[dict[str, Any]]:
    """What learns, as an optimizer takes it: one group for each learning rate, with and without weight decay.

    Args:
        model: the model.
        config: gives the rates.
        decayed: names of the parameters that weight decay acts on.
    """
    rates = _rates(model, config)
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[rates[id(parameter)], config.weight_decay if name in decayed else 0.0].append(parameter)
    # Trainer logs the first group's rate: the language model's, if it learns.
    ordered = sorted(groups.items(), key=lambda group: group[0][0] != config.learning_rate)
    return [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in ordered]


def _refuse_unsaved(model: nn.Module) -> None:
    """PEFT's checkpoints hold adapters, and what `modules_to_save` names."""
    if not hasattr(model, "peft_config"):
        return
    from peft import get_peft_model_state_dict

    adapted: Any = model
    kept = {
        weight.data_ptr()
        for adapter in adapted.peft_config
        for weight in get_peft_model_state_dict(
            model, adapter_name=adapter, save_embedding_layers=False
        ).values()
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.data_ptr() not in kept:
            raise FovealError(
                f"{name} would learn, but PEFT saves only adapters: name its module in LoraConfig(modules_to_save=...)"
            )


def _rates(model: nn.Module, config: EpicConfig) -> dict[int, float]:
    """The peak learning rate of each parameter, by id. What is neither tower nor projector is language model."""
    parts = find_parts(model)
    language = config.learning_rate if config.train_language_model else 0.0
    projector = config.projector_learning_rate
    rates = {id(parameter): language for parameter in model.parameters()}
    if not parts.placeholders:
        return rates
    rates.update({id(parameter): config.tower_learning_rate for parameter in parts.tower.parameters()})
    for module in parts.projectors:  # inside the tower in some families
        for parameter in module.parameters():
            rates[id(parameter)] = config.learning_rate if projector is None else projector
    return rates
