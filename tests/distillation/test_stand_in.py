"""A blank picture joins a batch of text alone: nothing is learnt from it, and no parameter is left out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import foveal
from foveal.data import VisionCollator
from foveal.distillation import distil
from foveal.distillation.stand_in import StandIn
from foveal.engine.families import find_parts
from support import families, processors
from support.training import conversations, model, processor
from support.wrappers import labels_of

PAIRS = [(name, side) for name in processors.BUILDERS for side in ("left", "right")]


def same(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs


def text_only(name: str, side: str) -> tuple[dict[str, Tensor], Tensor]:
    """Three texts, as a family's processor returns them."""
    found = processors.processor(name, side)
    texts = ["one", "a longer one", "x"]
    inputs = dict(found(text=texts, padding=True, return_tensors="pt"))
    return inputs, inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)


@pytest.mark.parametrize(("name", "side"), PAIRS)
def test_one_sample_with_an_image_and_no_answer_joins(name: str, side: str) -> None:
    inputs, labels = text_only(name, side)
    known = processors.processor(name, side)
    joined, answers = StandIn(known, same).join(inputs, labels)
    image = known.tokenizer.convert_tokens_to_ids(known.image_token)
    assert joined["input_ids"].shape == joined["attention_mask"].shape == answers.shape
    assert len(answers) == len(labels) + 1
    assert (joined["input_ids"][-1] == image).any()
    assert "pixel_values" in joined
    length = labels.shape[1]
    for key, value in inputs.items():
        assert torch.equal(joined[key][:-1, :length], value)
    assert torch.equal(answers[:-1, :length], labels)
    assert (answers[:-1, length:] == -100).all()
    assert (answers[-1] == -100).all()
    assert not joined["attention_mask"][:-1, length:].any()


def test_a_batch_with_an_image_stays_as_it_is() -> None:
    inputs, labels = {"pixel_values": torch.zeros(1)}, torch.zeros(1, 2)
    joined, answers = StandIn(None, same).join(inputs, labels)
    assert joined is inputs
    assert answers is labels


def test_without_a_processor_it_says_what_to_pass() -> None:
    with pytest.raises(foveal.FovealError, match=r"text alone: pass processing_class="):
        StandIn(None, same).join(*text_only("llava", "left"))


def losses_and_gradients(learner: Any, inputs: Any, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    learner.zero_grad(set_to_none=True)
    student, teacher = foveal.DART(keep=0.3, layer=2), foveal.DART(keep=0.6, layer=2)
    supervised, distilled = distil(learner, inputs, labels, student, teacher)
    (supervised.sum() + distilled.sum()).backward()
    found = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    return torch.stack([supervised, distilled]).detach(), found


@pytest.mark.parametrize("longer", [False, True], ids=["longer text", "longer stand-in"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_it_changes_no_loss_and_no_gradient(family: str, longer: bool) -> None:
    case = families.FAMILIES[family]
    learner = case.build(6, case.attentions[0]).train()
    inputs = families.batch(family, [0, 0], [9, 7] if longer else [80, 70], side="right")
    stand_in = StandIn(SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0)), same)
    stand_in._batch = families.batch(family, [1], [4])
    text = {name: value for name, value in inputs.items() if value.shape == inputs["input_ids"].shape}
    labels = labels_of(text).masked_fill(text["attention_mask"] == 0, -100)
    expected, gradients = losses_and_gradients(learner, text, labels)
    found, joined = losses_and_gradients(learner, *stand_in.join(text, labels))
    assert (found - expected).abs().max() < 1e-7
    for name, gradient in gradients.items():
        assert (joined[name] - gradient).abs().max() < 1e-6, name
    projectors = [p for module in find_parts(learner).projectors for p in module.parameters()]
    assert projectors
    assert all(p.grad is not None and not p.grad.any() for p in projectors)


def test_the_tiny_llava_takes_what_its_processor_makes() -> None:
    samples = [sample for sample in conversations() if not sample["images"]]
    batch = VisionCollator(processor())(samples)
    labels = batch.pop("labels")
    joined, answers = StandIn(processor(), same).join(batch, labels)
    found, gradients = losses_and_gradients(model(), joined, answers)
    expected, _ = losses_and_gradients(model(), batch, labels)
    assert (found - expected).abs().max() < 1e-7
    assert "model.multi_modal_projector.linear_1.weight" in gradients
