"""The model's shape: a CLIP tower of five layers, a two-layer projector and a Llama decoder of eight layers."""

from __future__ import annotations

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from foveal.mini.scenes import GRID, PATCH, SIDE
from foveal.mini.tokenizer import IMAGE_TOKEN, build_tokenizer

__all__ = ["MEAN", "STD", "build_clip", "build_clip_processor", "build_llava", "build_processor"]

MEAN = 0.5
STD = 0.25
_TOWER_WIDTH = 128


def _vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=_TOWER_WIDTH,
        intermediate_size=384,
        projection_dim=_TOWER_WIDTH,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
    )


def build_llava(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlavaForConditionalGeneration:
    """An untrained model; its 144 visual tokens are the patch outputs of the tower's last layer but one."""
    vocabulary = tokenizer.get_vocab()
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=400,
        num_hidden_layers=8,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.04,
        pad_token_id=vocabulary["<pad>"],
        bos_token_id=vocabulary["<s>"],
        eos_token_id=vocabulary["</s>"],
    )
    config = LlavaConfig(
        vision_config=_vision(),
        text_config=text,
        image_token_index=vocabulary[IMAGE_TOKEN],
        image_seq_length=GRID * GRID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.pad_token_id = vocabulary["<pad>"]
    model.generation_config.bos_token_id = vocabulary["<s>"]
    model.generation_config.eos_token_id = vocabulary["</s>"]
    return model


def build_clip(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> CLIPModel:
    """An untrained pair of towers with the same vision tower and a text tower of two layers."""
    vocabulary = tokenizer.get_vocab()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_TOWER_WIDTH,
        intermediate_size=384,
        projection_dim=_TOWER_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        pad_token_id=vocabulary["<pad>"],
        bos_token_id=vocabulary["<s>"],
        eos_token_id=vocabulary["</s>"],
    )
    torch.manual_seed(seed)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=_vision(), projection_dim=_TOWER_WIDTH))


def _build_image_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
        do_convert_rgb=True,
    )


def build_clip_processor() -> CLIPProcessor:
    """The same images; text closed by ``</s>``, from which the text tower's embedding is read."""
    return CLIPProcessor(image_processor=_build_image_processor(), tokenizer=build_tokenizer(closing=True))


def build_processor() -> LlavaProcessor:
    """Images straight to 96 x 96, no cropping; text with LLaVA 1.5's chat format."""
    tokenizer = build_tokenizer()
    return LlavaProcessor(
        image_processor=_build_image_processor(),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )
