"""What is read off a model's structure, without its weights."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPConfig

import foveal
from foveal.efficiency import cost, model_shape
from foveal.efficiency.configs import empty_model
from support import families, tiny
from support.families import ALL, FAMILIES


def model_of(family: str) -> Any:
    return families.model(family, attention=FAMILIES[family].attentions[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_is_enough(family: str, tmp_path: Path) -> None:
    """The same numbers from a folder that holds a config alone as from the model."""
    model = model_of(family)
    model.config.save_pretrained(tmp_path)
    assert model_shape(str(tmp_path)) == model_shape(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_of_one_part(family: str) -> None:
    model = model_of(family)
    parts = model_shape(model).parameters
    assert set(parts) == {"tower", "projector", "language model"}
    assert all(parts.values())
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())


def test_no_memory_is_taken() -> None:
    config = families.model("llava").config
    assert all(p.device == torch.device("meta") for p in empty_model(config).parameters())


def test_llava_seven_b() -> None:
    shape = model_shape("llava-hf/llava-1.5-7b-hf")
    layer = shape.layers[0]
    assert len(shape.layers) == 32
    assert (layer.attention, layer.inputs, layer.mlp) == (4 * 4096**2, 3 * 4096**2, 3 * 4096 * 11008)
    assert (layer.heads, layer.key_heads, layer.head_width, layer.window) == (32, 32, 128, None)
    assert layer.cached * 2 * 32 == 524_288
    assert layer.flops(10, 20) == 2 * layer.matrices * 10 + 4 * 4096 * 10 * 20
    assert (shape.width, shape.inner, shape.vocabulary, shape.tile_tokens) == (4096, 11008, 32064, 576)
    assert shape.projector == 1024 * 4096 + 4096**2
    tower = shape.tower
    assert (len(tower.layers), tower.features, tower.width, tower.inner) == (24, 23, 1024, 4096)
    assert (tower.class_tokens, tower.image_size, tower.merge, tower.embedding) == (
        1,
        24,
        1,
        1024 * 3 * 14**2,
    )
    assert tower.layers[0].matrices == 12 * 1024**2
    assert shape.patchwise
    assert shape.clip is not None
    # CLIP-L's text tower, its projection and that of patches: 123.65 M and 0.79 M
    assert shape.clip.parameters == 123_650_304 + 1024 * 768


def test_grouped_keys_and_windows() -> None:
    shape = model_shape(families.model("gemma3"))
    assert [layer.window for layer in shape.layers] == [16, 16, None] * 2
    layer = shape.layers[0]
    assert (layer.heads, layer.key_heads, layer.head_width, layer.cached) == (4, 2, 8, 32)


def test_heads_of_two_widths() -> None:
    sliding, full = model_shape(families.model("gemma4")).layers[:2]
    assert (sliding.head_width, full.head_width) == (8, 16)
    assert full.scores(3, 5) == 2 * sliding.scores(3, 5)


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "gemma4_experts"])
def test_a_row_meets_the_experts_it_is_sent_to(family: str) -> None:
    """Two of four, and the router."""
    model = families.model(family)
    layer = model.get_decoder().layers[0]
    numbers = {name: p.numel() for name, p in layer.named_parameters() if p.ndim > 1}
    attention = sum(count for name, count in numbers.items() if "self_attn" in name)
    experts = sum(count for name, count in numbers.items() if "experts" in name)
    found = model_shape(model).layers[0]
    assert found.attention == attention
    assert found.mlp == sum(numbers.values()) - attention - experts // 2


def test_towers_of_every_kind() -> None:
    qwen = model_shape(families.model("qwen2_5_vl"))
    assert (qwen.tower.image_size, qwen.tower.merge, qwen.tile_tokens) == (None, 2, None)
    assert qwen.tower.windows == (2, frozenset({1}))
    assert model_shape(families.model("qwen2_vl")).tower.width == 24
    assert model_shape(families.model("qwen3_vl")).deepstack == 3
    internvl = model_shape(families.model("internvl"))
    assert (internvl.tower.image_size, internvl.tower.merge, internvl.tile_tokens) == (6, 2, 9)
    assert model_shape(families.model("mistral3")).tower.joined
    assert model_shape(families.model("gemma4")).tower.pools
    assert not model_shape(families.model("llava_next")).patchwise


def test_features_of_several_layers() -> None:
    config = deepcopy(families.model("llava").config)
    shapes = []
    for layers in (-2, 1, [-3, 3]):
        config.vision_feature_layer = layers
        shapes.append(model_shape(empty_model(config)).tower)
    assert [shape.features for shape in shapes] == [2, 1, 3]
    assert [shape.width for shape in shapes] == [24, 24, 48]


def test_the_bundled_model_has_its_text_tower() -> None:
    shape = model_shape(None)
    assert shape.name == "LlavaForConditionalGeneration"
    assert (shape.tile_tokens, len(shape.layers)) == (144, 8)
    assert cost(shape, foveal.TRIM(keep=16)).text_tower > 0


def test_a_pair_is_found_in_the_folder(tmp_path: Path) -> None:
    config = deepcopy(families.model("llava").config)
    assert model_shape(empty_model(config)).clip is None
    text = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**config.vision_config.to_dict(), "projection_dim": 12}
    CLIPConfig(text_config=text, vision_config=vision, projection_dim=12).save_pretrained(tmp_path / "clip")
    config._name_or_path = str(tmp_path)
    clip = model_shape(empty_model(config)).clip
    assert clip is not None
    assert (clip.depth, clip.width, clip.shared, clip.layer.mlp) == (2, 16, 12, 2 * 16 * 40)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(foveal.FovealError, match="has no image token: pass a vision-language model"):
        model_shape(tiny.causal_lm())
    with pytest.raises(foveal.FovealError, match=r"cannot read the config of '.*nowhere'"):
        model_shape(str(tmp_path / "nowhere"))
    with pytest.raises(foveal.FovealError, match="Linear is no transformers model"):
        model_shape(nn.Linear(2, 2))
    with pytest.raises(foveal.FovealError, match="is not supported"):
        model_shape(families.model("qwen3_5"))
    assert "qwen3_5" in ALL
    config = deepcopy(families.model("llava").config)
    config.quantization_config = {"load_in_4bit": True}
    config.save_pretrained(tmp_path)
    with pytest.raises(foveal.FovealError, match=r"are quantised, .* pass the model that it was made from"):
        model_shape(str(tmp_path))


def test_shapes_are_values() -> None:
    shape = model_shape(families.model("llava"))
    assert replace(shape, width=1) != shape == model_shape(families.model("llava"))
