"""A stand-in for a CLIP text tower: words are random vectors, and a question is their sum."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from support.families import FIRST_TEXT, VOCABULARY

SHARED = 12


class WordTower:
    """What `foveal.TextTower` offers, in float64, for the families' token ids."""

    def __init__(self, width: int) -> None:
        generator = torch.Generator().manual_seed(7)
        self.words = torch.randn(VOCABULARY, SHARED, generator=generator, dtype=torch.float64)
        self.projection = torch.randn(SHARED, width, generator=generator, dtype=torch.float64)

    def questions(self, ids: Tensor) -> list[str]:
        """The words of each sample's prompt."""
        return [" ".join(str(word) for word in row.tolist() if word >= FIRST_TEXT) for row in ids]

    def embed(self, questions: Sequence[str]) -> Tensor:
        """(batch, shared)."""
        rows = [self.words[[int(word) for word in question.split()]].sum(0) for question in questions]
        return torch.stack(rows)

    def project(self, features: Tensor) -> Tensor:
        """(images, tokens, shared)."""
        normed = functional.layer_norm(features.double(), features.shape[-1:])
        return normed @ self.projection.T


@lru_cache
def _tower(width: int) -> WordTower:
    return WordTower(width)


def text_tower(model: Any) -> Any:
    """One that fits the model's vision tower."""
    return _tower(model.base_model.vision_tower.config.hidden_size)
