"""Losses per position: (logits, targets) -> one number a position. Masking and reduction happen once, elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["DIVERGENCES", "Divergence", "cross_entropy", "forward_kl", "jensen_shannon", "reverse_kl"]

Divergence = Callable[[Tensor, Tensor, float], Tensor]
"""(student logits, teacher logits, temperature), each (positions, vocabulary) -> (positions,)."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood: (positions, vocabulary) and (positions,) -> (positions,), float32 or wider."""
    return functional.cross_entropy(_wide(logits), targets, reduction="none")


def forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) over the vocabulary, times the squared temperature (EPIC, arXiv 2510.00515, eq. 3).

    Args:
        student: (positions, vocabulary) logits.
        teacher: (positions, vocabulary) logits, no gradient flows into them.
        temperature: divides both logits; the square keeps the gradient's scale (Hinton et al., 2015).

    Returns:
        (positions,), float32 or wider.
    """
    log_student, log_teacher = _both(student, teacher, temperature)
    return _kl(log_teacher, log_student) * temperature**2


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(student || teacher), otherwise as `forward_kl`: seeks the teacher's main mode (MiniLLM, arXiv 2306.08543)."""
    log_student, log_teacher = _both(student, teacher, temperature)
    return _kl(log_student, log_teacher) * temperature**2


def jensen_shannon(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Half the KL of each from their mean, otherwise as `forward_kl`; at most log 2 (times the squared temperature)."""
    log_student, log_teacher = _both(student, teacher, temperature)
    log_mean = torch.logaddexp(log_student, log_teacher) - math.log(2)
    return (_kl(log_student, log_mean) + _kl(log_teacher, log_mean)) / 2 * temperature**2


DIVERGENCES: dict[str, Divergence] = {
    "forward-kl": forward_kl,
    "reverse-kl": reverse_kl,
    "jsd": jensen_shannon,
}


def _both(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of student and teacher."""
    return (
        functional.log_softmax(_wide(student) / temperature, dim=-1),
        functional.log_softmax(_wide(teacher.detach()) / temperature, dim=-1),
    )


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last dimension."""
    return functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=-1)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
