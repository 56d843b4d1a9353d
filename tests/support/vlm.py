"""A tiny random LLaVA with the bundled model's processor: real pictures and text in, words out."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from foveal.mini.architecture import build_processor

TOKENS = 144


@lru_cache(maxsize=1)
def processor() -> Any:
    return build_processor()


def model(layers: int = 4) -> Any:
    """In float64, so that batches of any size agree; weights large enough that words vary."""
    tokenizer = processor().tokenizer
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": None,
    }
    text = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=len(tokenizer),
        initializer_range=0.2,
        **ids,
    )
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=96,
        patch_size=8,
    )
    image_token = tokenizer.convert_tokens_to_ids(processor().image_token)
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=image_token, image_seq_length=TOKENS
    )
    built = LlavaForConditionalGeneration(config).double().eval()
    with torch.no_grad():
        built.model.multi_modal_projector.linear_2.weight.normal_(0, 0.4)
    built.generation_config.pad_token_id = tokenizer.pad_token_id
    built.generation_config.eos_token_id = None
    return built


def picture(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """Coloured noise in 6 x 6 blocks."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (6, 6, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize(size, Image.Resampling.NEAREST)
