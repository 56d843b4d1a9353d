"""The tiny LLaMA and its inputs with which the official in-LM methods were recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import foveal
from support.tiny import ExactRotary, exact_norms

GOLDEN = Path(__file__).parent.parent / "golden"
IMAGE = slice(35, 611)


def load(*names: str) -> dict[str, Any]:
    """Recorded files by name."""
    return {name: np.load(GOLDEN / f"{name}.npz") for name in names}


def llama(dtype: torch.dtype) -> Any:
    """The model with the recorded weights."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=6,
        num_attention_heads=4,
        vocab_size=256,
        rms_norm_eps=1e-5,
        max_position_embeddings=2048,
    )
    model = LlamaForCausalLM(config)
    (weights,) = load("weights_tiny").values()
    model.load_state_dict({name: torch.tensor(weights[name]) for name in weights.files})
    model = model.to(dtype).eval()
    exact_norms(model)
    model.model.rotary_emb = ExactRotary(width=16, theta=1e4)
    return model


def compressed(model: Any, embeds: np.ndarray, method: foveal.Compressor) -> tuple[Tensor, Any]:
    """The logits of sample 0, and the run."""
    inputs = torch.tensor(embeds).to(model.dtype)
    visual = torch.zeros(inputs.shape[:2], dtype=torch.bool)
    visual[:, IMAGE] = True
    with torch.no_grad(), foveal.compress(model, method, visual_mask=visual) as record:
        logits = model(inputs_embeds=inputs, use_cache=False).logits
    return logits[0], record
