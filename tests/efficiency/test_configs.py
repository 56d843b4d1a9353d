from __future__ import annotations

import socket
from pathlib import Path

import pytest

from foveal import FovealError
from foveal.efficiency import ModelShape, model_shape
from foveal.efficiency.configs import KNOWN, read_config

# Parameters of the checkpoints' tensors, as the model hub counts them.
PUBLISHED = {
    "llava-hf/llava-1.5-7b-hf": 7_063_427_072,
    "llava-hf/llava-1.5-13b-hf": 13.35e9,
    "llava-hf/llava-v1.6-vicuna-7b-hf": 7.06e9,
    "llava-hf/llava-v1.6-vicuna-13b-hf": 13.35e9,
    "llava-hf/llava-v1.6-mistral-7b-hf": 7_566_747_648,
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": 8_030_348_832,
    "Qwen/Qwen2-VL-7B-Instruct": 8_291_375_616,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73_410_777_344,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
    "Qwen/Qwen3-VL-30B-A3B-Instruct": 31_070_754_032,
    "OpenGVLab/InternVL3-8B-hf": 7_944_373_760,
    "google/gemma-3-4b-it": 4_300_079_472,
    "google/gemma-3-12b-it": 12_187_325_040,
    "google/gemma-3-27b-it": 27_432_406_640,
    "google/paligemma-3b-mix-224": 2_923_466_480,
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": 2_246_784_880,
    "HuggingFaceM4/Idefics3-8B-Llama3": 8.46e9,
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": 24_011_361_280,
}


def shape_of(name: str, monkeypatch: pytest.MonkeyPatch) -> ModelShape:
    def refuse(*_: object) -> None:
        raise AssertionError("a known config needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return model_shape(name)


@pytest.mark.parametrize("name", KNOWN)
def test_known_configs_have_the_published_number_of_parameters(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, published = sum(shape_of(name, monkeypatch).parameters.values()), PUBLISHED[name]
    assert count == published if isinstance(published, int) else abs(count / published - 1) < 1e-3


# Heads of queries, of keys, and their width, which the number of parameters does not tell apart.
HEADS = {
    "llava-hf/llava-1.5-7b-hf": (32, 32, 128),
    "llava-hf/llava-1.5-13b-hf": (40, 40, 128),
    "llava-hf/llava-v1.6-mistral-7b-hf": (32, 8, 128),
    "Qwen/Qwen2.5-VL-3B-Instruct": (16, 2, 128),
    "Qwen/Qwen2.5-VL-7B-Instruct": (28, 4, 128),
    "Qwen/Qwen3-VL-8B-Instruct": (32, 8, 128),
    "google/gemma-3-4b-it": (8, 4, 256),
    "google/paligemma-3b-mix-224": (8, 1, 256),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_known_configs(name: str) -> None:
    layer = model_shape(name).layers[0]
    assert (layer.heads, layer.key_heads, layer.head_width) == HEADS[name]


# Visual tokens of a picture or tile: from the models' papers and processors.
TILES = {
    "llava-hf/llava-1.5-7b-hf": 576,
    "llava-hf/llava-v1.6-mistral-7b-hf": 576,
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": 729,
    "Qwen/Qwen2.5-VL-7B-Instruct": None,
    "OpenGVLab/InternVL3-8B-hf": 256,
    "google/gemma-3-4b-it": 256,
    "google/paligemma-3b-mix-224": 256,
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": 81,
    "HuggingFaceM4/Idefics3-8B-Llama3": 169,
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": None,
}


@pytest.mark.parametrize("name", TILES)
def test_visual_tokens_of_known_configs(name: str) -> None:
    assert model_shape(name).tile_tokens == TILES[name]


def test_windows_of_gemma() -> None:
    """Five local layers to each global one."""
    windows = [layer.window for layer in model_shape("google/gemma-3-4b-it").layers]
    assert windows[:6] == [1024] * 5 + [None]


def test_a_folder_goes_before_a_known_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "google/gemma-3-4b-it"
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FovealError, match=r"cannot read the config of 'google/gemma-3-4b-it'"):
        read_config(name)


def test_an_unknown_name_is_answered_with_one_like_it(tmp_path: Path) -> None:
    (tmp_path / "qwen2.5-vl-7b").mkdir()
    with pytest.raises(FovealError, match=r"one of the 21 names .* such as Qwen/Qwen2.5-VL-7B-Instruct$"):
        read_config(str(tmp_path / "qwen2.5-vl-7b"))
