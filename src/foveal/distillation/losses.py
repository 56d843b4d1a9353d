"""Losses per position: (logits, targets) -> one number a position. Masking and reduction happen once, elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["cross_entropy", "forward_kl"]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood: (positions, vocabulary) and (positions,) -> (positions,), float32 or wider."""
    return functional.cross_entropy(_wide(logits), targets, reduction="none")


def forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) over the vocabulary, times the squared temperature.

    Args:
        student: (positions, vocabulary) logits.
        teacher: (positions, vocabulary) logits, no gradient flows into them.
        temperature: divides both logits; the square keeps the gradient's scale (Hinton et al., 2015).

    Returns:
        (positions,), float32 or wider.
    """
    log_student = functional.log_softmax(_wide(student) / temperature, dim=-1)
    log_teacher = functional.log_softmax(_wide(teacher.detach()) / temperature, dim=-1)
    divergence = functional.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(dim=-1)
    return divergence * temperature**2


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
