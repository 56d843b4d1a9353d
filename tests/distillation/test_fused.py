"""Liger's fused losses against our own, on a GPU, or anywhere in Triton's interpreter:

pip install liger-kernel triton && TRITON_INTERPRET=1 pytest tests/distillation/test_fused.py
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

import foveal
from foveal.distillation import DIVERGENCES, Objective, distil
from support import families
from support.tiny import batch, llava

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INSTALLED = find_spec("liger_kernel") is not None
RUNS = INSTALLED and (DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")

# The interpreter computes what is masked out.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
needs_liger = pytest.mark.skipif(not RUNS, reason="needs liger-kernel, and a GPU or TRITON_INTERPRET=1")


def labelled() -> tuple[dict[str, Tensor], Tensor]:
    inputs = batch([1, 2, 0], [9, 6, 12])
    inputs["pixel_values"] = inputs["pixel_values"].float()
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -4:] = inputs["input_ids"][:, -4:]
    return {name: value.to(DEVICE) for name, value in inputs.items()}, labels.to(DEVICE)


def outcome(model: Any, objective: Objective, *, taught: bool) -> tuple[list[float], dict[str, Tensor]]:
    inputs, labels = labelled()
    teacher = foveal.DART(keep=12) if taught else None
    model.zero_grad(set_to_none=True)
    losses = distil(model, inputs, labels, foveal.DART(keep=5), teacher, objective=objective)
    found = [loss for loss in losses if loss is not None]
    assert [len(loss) for loss in found] == [12] * len(found)
    sum(weight * loss.sum() for weight, loss in zip((0.3, 0.7), found, strict=False)).backward()
    return [loss.sum().item() for loss in found], {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@needs_liger
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_fused_losses_are_the_same(divergence: str, temperature: float) -> None:
    model = llava(dtype=torch.float32).to(DEVICE).train()
    for taught in (True, False):
        options = {"divergence": DIVERGENCES[divergence], "temperature": temperature}
        (expected, reference), (found, gradients) = (
            outcome(model, Objective(**options, fused=fused), taught=taught) for fused in (False, True)
        )
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert gradients.keys() == reference.keys()
        for name, gradient in reference.items():
            assert torch.allclose(gradients[name], gradient, rtol=1e-4, atol=1e-5), name


@needs_liger
def test_a_batch_without_answers_has_no_losses() -> None:
    model = llava(dtype=torch.float32).to(DEVICE)
    inputs, labels = labelled()
    losses = distil(
        model, inputs, torch.full_like(labels, -100), foveal.DART(keep=5), objective=Objective(fused=True)
    )
    assert losses[0].shape == (0,)


@needs_liger
def test_what_the_kernels_do_not_know() -> None:
    inputs = families.batch("paligemma2", [1], [9])
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    capped = families.model("paligemma2", attention="eager")
    with pytest.raises(foveal.FovealError, match="without bias, cap or adapter"):
        distil(capped, inputs, labels, foveal.DART(keep=1), objective=Objective(fused=True))
    inputs, labels = labelled()
    own = Objective(lambda student, _teacher, _temperature: student[:, 0], fused=True)
    with pytest.raises(foveal.FovealError, match="fused losses know"):
        distil(llava(dtype=torch.float32).to(DEVICE), inputs, labels, foveal.DART(keep=5), objective=own)


@pytest.mark.skipif(INSTALLED, reason="liger-kernel is installed")
def test_without_liger_there_are_none() -> None:
    inputs, labels = labelled()
    with pytest.raises(foveal.FovealError, match="pip install liger-kernel"):
        distil(
            llava(dtype=torch.float32).to(DEVICE),
            inputs,
            labels,
            foveal.DART(keep=5),
            objective=Objective(fused=True),
        )
