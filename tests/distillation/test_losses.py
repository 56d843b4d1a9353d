"""Losses against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from foveal.distillation import DIVERGENCES, cross_entropy, forward_kl, jensen_shannon, reverse_kl


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


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_reverse_kl_weighs_by_the_student(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 7, dtype=torch.float64)
    p, q = (x.div(temperature).softmax(-1) for x in (teacher, student))
    expected = (q * (q / p).log()).sum(-1) * temperature**2
    assert torch.allclose(reverse_kl(student, teacher, temperature), expected)


def test_jensen_shannon_is_symmetric_and_bounded() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 7, dtype=torch.float64)
    p, q = teacher.softmax(-1), student.softmax(-1)
    m = (p + q) / 2
    expected = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
    assert torch.allclose(jensen_shannon(student, teacher), expected)
    assert torch.allclose(jensen_shannon(teacher, student), expected)
    far = torch.tensor([[50.0, 0.0], [0.0, 50.0]], dtype=torch.float64)
    assert jensen_shannon(far, far.flip(0)).tolist() == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    """And none is left at the teacher's own distribution."""
    student = torch.randn(3, 5, requires_grad=True)
    teacher = torch.randn(3, 5, requires_grad=True)
    DIVERGENCES[name](student, teacher, 2.0).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().max() > 1e-3
    student.grad = None
    DIVERGENCES[name](student, student.detach(), 2.0).sum().backward()
    assert student.grad.abs().max() < 1e-6


def test_half_precision_logits_are_widened() -> None:
    logits = torch.randn(3, 5).bfloat16()
    assert cross_entropy(logits, torch.tensor([0, 1, 2])).dtype == torch.float32
    for divergence in DIVERGENCES.values():
        assert divergence(logits, logits, 1.0).dtype == torch.float32
