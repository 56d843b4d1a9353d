"""What learns, at which rate, and what stays as it is; also below PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import foveal
from foveal.distillation import EpicConfig
from foveal.distillation.trainable import freeze, parameter_groups
from support import families
from support.training import conversations, difference, make_trainer, model, weights

# PEFT asks transformers by a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PARTS = {
    "tower": "model.vision_tower.",
    "projector": "model.multi_modal_projector.",
    "language": ("model.language_model.", "lm_head."),
}


def config(tmp_path: Path, **options: Any) -> EpicConfig:
    return EpicConfig(output_dir=str(tmp_path), use_cpu=True, learning_rate=1e-3, **options)


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The parts of which a weight changed."""
    names = [name for name in before if not torch.equal(before[name], after[name])]
    return {part for part, prefix in PARTS.items() for name in names if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"projector", "language"}),
        ({"projector_learning_rate": 0.0}, {"language"}),
        ({"train_language_model": False}, {"projector"}),
        ({"tower_learning_rate": 1e-3}, {"tower", "projector", "language"}),
        (
            {"tower_learning_rate": 1e-3, "projector_learning_rate": 0.0, "train_language_model": False},
            {"tower"},
        ),
    ],
)
def test_a_step_moves_what_has_a_learning_rate(
    tmp_path: Path, options: dict[str, Any], expected: set[str]
) -> None:
    trainer = make_trainer(tmp_path, conversations(4), max_steps=1, warmup_steps=0, **options)
    before = weights(trainer)
    trainer.train()
    assert moved(before, weights(trainer)) == expected


def test_each_part_has_its_rate_and_norms_do_not_decay(tmp_path: Path) -> None:
    options = {"projector_learning_rate": 2e-3, "tower_learning_rate": 3e-4, "weight_decay": 0.1}
    trainer = make_trainer(tmp_path, learning_rate=1e-3, **options)
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = group["lr"], group["weight_decay"]
    assert set(found) == set(names.values())
    assert found["lm_head.weight"] == (1e-3, 0.1)
    assert found["model.language_model.norm.weight"][0] == 1e-3
    assert found["model.multi_modal_projector.linear_1.weight"] == (2e-3, 0.1)
    assert found["model.multi_modal_projector.linear_1.bias"] == (2e-3, 0.0)
    assert found["model.vision_tower.embeddings.class_embedding"][0] == 3e-4


def test_rates_fall_together(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, learning_rate=1e-3, projector_learning_rate=4e-3, lr_scheduler_type="linear"
    )
    seen = []

    def note(*args: Any, **kwargs: Any) -> Any:
        seen.append(sorted({group["lr"] for group in trainer.optimizer.param_groups}))
        return step(*args, **kwargs)

    step = trainer.training_step
    trainer.training_step = note  # type: ignore[method-assign]
    trainer.train()
    assert all(projector == pytest.approx(4 * language) for language, projector in seen[1:])
    assert seen[-1][0] < 1e-3


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_familys_parts_are_told_apart(family: str, tmp_path: Path) -> None:
    case = families.FAMILIES[family]
    learner = case.build(4, case.attentions[0])
    options = {"projector_learning_rate": 2e-3, "tower_learning_rate": 3e-4}
    freeze(learner, config(tmp_path, **options))
    rates = {group["lr"] for group in parameter_groups(learner, config(tmp_path, **options), ())}
    assert rates == {1e-3, 2e-3, 3e-4}


def test_nothing_to_learn_is_refused(tmp_path: Path) -> None:
    options = {"projector_learning_rate": 0.0, "train_language_model": False}
    with pytest.raises(foveal.FovealError, match="every learning rate is 0"):
        freeze(model(), config(tmp_path, **options))


# ---------------------------------------------------------------------- PEFT


def adapted(saved: list[str] | None) -> Any:
    """LoRA on the decoder's queries."""
    from peft import LoraConfig, get_peft_model

    learner = model()
    targets = [
        name
        for name, module in learner.model.language_model.named_modules(prefix="model.language_model")
        if isinstance(module, nn.Linear) and name.endswith("q_proj")
    ]
    return get_peft_model(learner, LoraConfig(r=2, target_modules=targets, modules_to_save=saved))


def test_adapters_and_the_projectors_copy_learn_at_their_rates(tmp_path: Path) -> None:
    learner = adapted(["multi_modal_projector"])
    options = config(tmp_path, projector_learning_rate=5e-3)
    freeze(learner, options)
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    groups = parameter_groups(learner, options, ())
    assert groups[0]["lr"] == 1e-3, "the one that Trainer logs"
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert all("lora_" in name or ".modules_to_save." in name for name in rates)
    assert {rate for name, rate in rates.items() if "lora_" in name} == {1e-3}
    assert {rate for name, rate in rates.items() if "multi_modal_projector" in name} == {5e-3}
    assert sum("lora_A" in name for name in rates) == 6


def test_without_a_rate_the_projectors_copy_stays(tmp_path: Path) -> None:
    learner = adapted(["multi_modal_projector"])
    freeze(learner, config(tmp_path, projector_learning_rate=0.0))
    assert all("lora_" in name for name, p in learner.named_parameters() if p.requires_grad)


def test_what_peft_would_not_save_does_not_learn_in_secret(tmp_path: Path) -> None:
    learner = adapted(None)
    freeze(learner, config(tmp_path))
    learner.get_base_model().model.multi_modal_projector.requires_grad_(True)
    with pytest.raises(foveal.FovealError, match=r"multi_modal_projector.* would learn, but PEFT saves only"):
        freeze(learner, config(tmp_path))


def test_adapters_resume_to_the_same_weights(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 3}
    unbroken = make_trainer(tmp_path, learner=adapted(["multi_modal_projector"]), **options)
    before = weights(unbroken)
    unbroken.train()
    learner = adapted(["multi_modal_projector"])
    again = make_trainer(tmp_path / "again", learner=learner, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert difference(weights(unbroken), weights(again)) == 0
    changed = {name for name, tensor in weights(unbroken).items() if not torch.equal(tensor, before[name])}
    assert {"multi_modal_projector", "language_model"} == {
        part
        for part in ("multi_modal_projector", "language_model", "vision_tower", "lm_head")
        if any(part in name for name in changed)
    }
    assert not any("original_module" in name for name in changed)
