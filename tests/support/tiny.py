"""Tiny random models of real classes, and ragged inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

IMAGE = 5
TOKENS = 36  # visual tokens per image: (24 / 4) ** 2
VOCABULARY = 120
PAD = 0


class ExactNorm(nn.Module):
    """RMSNorm that stays in the model's own precision (the library's rounds to float32)."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.epsilon = norm.weight, norm.variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden * torch.rsqrt(variance + self.epsilon)


def exact_norms(module: nn.Module) -> None:
    """Replace every RMSNorm below `module` in place."""
    for name, child in module.named_children():
        if type(child).__name__.endswith("RMSNorm"):
            setattr(module, name, ExactNorm(child))
        else:
            exact_norms(child)


def text_config(layers: int = 6, attention: str = "sdpa") -> LlamaConfig:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=None,
    )
    config._attn_implementation = attention
    return config


def llava(layers: int = 6, attention: str = "sdpa", dtype: torch.dtype = torch.float64) -> Any:
    """A LLaVA of 36 visual tokens per image, weights large enough that attention is far from uniform."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=24,
        patch_size=4,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text_config(layers, attention),
        image_token_id=IMAGE,
        image_seq_length=TOKENS,
    )
    config._attn_implementation = attention
    model = LlavaForConditionalGeneration(config).to(dtype).eval()
    return prepared(model)


def causal_lm(layers: int = 6, attention: str = "sdpa", dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    model = LlamaForCausalLM(text_config(layers, attention)).to(dtype).eval()
    return prepared(model)


def prepared(model: Any) -> Any:
    """Spread the weights, keep norms in full precision, and let generate never stop early."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name and parameter.ndim == 2:
                parameter.normal_(0, 1.2 / parameter.shape[1] ** 0.5)
    exact_norms(model)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def batch(images: list[int], texts: list[int], side: str = "left", seed: int = 0) -> dict[str, Tensor]:
    """Inputs of a LLaVA: sample i holds images[i] images between texts[i] random text tokens, padded on `side`."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for image_count, text_count in zip(images, texts, strict=True):
        text = torch.randint(10, VOCABULARY, (text_count + image_count,), generator=generator).tolist()
        ids = [1]
        for _ in range(image_count):
            ids += [text.pop(), *[IMAGE] * TOKENS]
        samples.append(ids + text)
    length = max(map(len, samples))
    pad = [[PAD] * (length - len(ids)) for ids in samples]
    rows = [p + ids if side == "left" else ids + p for p, ids in zip(pad, samples, strict=True)]
    ones = [[1] * len(ids) for ids in samples]
    zeros = [[0] * len(p) for p in pad]
    mask = [z + o if side == "left" else o + z for z, o in zip(zeros, ones, strict=True)]
    inputs = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}
    if sum(images):
        shape = (sum(images), 3, 24, 24)
        inputs["pixel_values"] = torch.randn(shape, generator=generator, dtype=torch.float64)
    return inputs


class ExactRotary(nn.Module):
    """Rotary tables in float64 (the library computes them in float32)."""

    def __init__(self, width: int, theta: float) -> None:
        super().__init__()
        self.inverse = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].double() * self.inverse
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)
