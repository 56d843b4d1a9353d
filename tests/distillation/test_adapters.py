from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from foveal import FovealError
from foveal.distillation import EpicConfig, EpicTrainer
from foveal.distillation.adapters import adapted_layers, merge_adapters, with_adapters
from foveal.mini import SceneConversations
from support import tiny, vlm
from support.families import FAMILIES


def config(folder: Path, **options: Any) -> EpicConfig:
    given = {"lora_rank": 2, "use_cpu": True, "report_to": "none", "disable_tqdm": True, **options}
    return EpicConfig(output_dir=str(folder), **given)


def learning(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_adapters_learn_and_the_projector_in_full(tmp_path: Path) -> None:
    adapted = with_adapters(tiny.llava(), config(tmp_path))
    names = learning(adapted)
    assert sum("lora_" in name for name in names) == 6 * 7 * 2  # layers, linear layers of each, A and B
    rest = [name for name in names if "lora_" not in name]
    assert rest
    assert all("multi_modal_projector.modules_to_save" in name for name in rest)


def test_a_projector_that_shall_not_learn_stays_as_it_is(tmp_path: Path) -> None:
    names = learning(with_adapters(tiny.llava(), config(tmp_path, projector_learning_rate=0.0)))
    assert all("lora_" in name for name in names)


def test_no_rank_no_adapters_and_never_twice(tmp_path: Path) -> None:
    model = tiny.llava()
    assert with_adapters(model, config(tmp_path, lora_rank=None)) is model
    adapted = with_adapters(model, config(tmp_path))
    assert with_adapters(adapted, config(tmp_path)) is adapted


@pytest.mark.parametrize("family", [name for name, case in FAMILIES.items() if "text_config" in case.config])
def test_only_the_decoder_is_adapted(family: str) -> None:
    case = FAMILIES[family]
    names = adapted_layers(case.build(2, case.attentions[0]))
    assert names
    assert not [name for name in names if "vis" in name or "tower" in name or "lm_head" in name]


def test_wanted_layers_only() -> None:
    names = adapted_layers(tiny.llava(layers=2), "q_proj, v_proj")
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "v_proj"}
    assert len(names) == 4
    with pytest.raises(FovealError, match="no linear layer 'c_attn', only down_proj, gate_proj, k_proj"):
        adapted_layers(tiny.llava(layers=2), "q_proj,c_attn")


def test_what_learns_is_in_float32_in_mixed_precision(tmp_path: Path) -> None:
    adapted = with_adapters(tiny.llava(dtype=torch.bfloat16), config(tmp_path, bf16=True))
    kinds = {parameter.dtype for parameter in adapted.parameters() if parameter.requires_grad}
    assert kinds == {torch.float32}


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_merged_weights_say_what_the_adapters_said(tmp_path: Path, dora: bool) -> None:
    options = config(
        tmp_path,
        dora=dora,
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=0.05,
        save_strategy="no",
    )
    trainer = EpicTrainer(
        model=with_adapters(vlm.model(), options),
        args=options,
        train_dataset=SceneConversations("train", 4),
        processing_class=vlm.processor(),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    assert trainer.model is not None
    adapted = trainer.model.eval()
    merged: Any = merge_adapters(vlm.model(), tmp_path / "adapter")
    batch = trainer.data_collator([SceneConversations("validation", 1)[0]])
    batch.pop("labels")
    with torch.no_grad():
        expected, found, plain = (model(**batch).logits for model in (adapted, merged, vlm.model()))
    assert type(merged) is type(vlm.model())
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-2)
