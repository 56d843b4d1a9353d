"""Losses against their definitions."""

from __future__ import annotations

import pytest
import torch

from foveal.distillation import cross_entropy, forward_kl


def test_cross_entropy_is_the_negative_log_likelihood() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
    expected = [-torch.log(row.exp()[t] / row.exp().sum()) for row, t in zip(logits, (2, 1), strict=True)]
    assert cross_entropy(logits, torch.tensor([2, 1])).tolist() == pytest.approx(
        torch.stack(expected).tolist()
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_forward_kl_weighs_by_the_teacher(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 7, dtype=torch.float64)
    p, q = (x.div(temperature).softmax(-1) for x in (teacher, student))
    expected = (p * (p / q).log()).sum(-1) * temperature**2
    assert torch.allclose(forward_kl(student, teacher, temperature), expected)
    assert not torch.allclose(forward_kl(teacher, student, temperature), expected)
    assert forward_kl(teacher, teacher).abs().max() < 1e-12


def test_no_gradient_reaches_the_teacher() -> None:
    student = torch.randn(3, 5, requires_grad=True)
    teacher = torch.randn(3, 5, requires_grad=True)
    forward_kl(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_half_precision_logits_are_widened() -> None:
    logits = torch.randn(3, 5).bfloat16()
    assert cross_entropy(logits, torch.tensor([0, 1, 2])).dtype == torch.float32
    assert forward_kl(logits, logits).dtype == torch.float32
