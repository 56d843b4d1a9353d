"""The tiny families are fit for comparisons at 1e-10: padding, cache and `extended` change nothing, images matter."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from support.families import (
    ALL,
    FAMILIES,
    FIRST_TEXT,
    UNUSUAL,
    FamilyCase,
    Inputs,
    Sample,
    batch,
    extended,
    image_lengths,
    model,
    video_batch,
    visual,
)

pytestmark = pytest.mark.usefixtures("exact_softmax", "inference")

TOLERANCE = 1e-10
RAGGED = ([1, 2, 0], [9, 4, 12])
FRAMES = 3
# Every family and attention with images, and with videos where it takes them.
SEEN = [
    pytest.param(case.name, attention, frames, id=f"{case.name}-{attention}-{'video' if frames else 'image'}")
    for case in ALL.values()
    if case.plain_ragged_exact
    for attention in case.attentions
    for frames in ((0, FRAMES) if case.video else (0,))
]


def logits(name: str, attention: str, inputs: Inputs) -> Tensor:
    """Of the plain model in one forward without cache, in generate's positions."""
    tiny = model(name, attention=attention)
    full: Tensor = tiny(**extended(name, inputs, inputs["input_ids"]), use_cache=False).logits
    return full


@pytest.mark.parametrize("images", [RAGGED[0], [0, 0, 0]])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("name", "attention", "frames"), SEEN)
def test_a_sample_among_others_is_what_it_is_alone(
    name: str, attention: str, frames: int, side: str, images: list[int]
) -> None:
    family = ALL[name]
    samples = family.samples(images, RAGGED[1], frames=frames)
    inputs = family.collate(samples, side)
    together = logits(name, attention, inputs)
    for index, sample in enumerate(samples):
        real = inputs["attention_mask"][index].bool()
        alone = logits(name, attention, family.collate([sample]))[0]
        assert (together[index, real] - alone).abs().max() < TOLERANCE


@pytest.mark.parametrize(("name", "attention", "frames"), SEEN)
def test_generate_is_one_forward_over_the_extended_prompt(name: str, attention: str, frames: int) -> None:
    tiny, inputs = model(name, attention=attention), ALL[name].inputs(*RAGGED, frames=frames)
    sequences, steps = generate(tiny, inputs, 4)
    assert (sequences[:, -4:] >= FIRST_TEXT).all()
    whole = tiny(**extended(name, inputs, sequences), use_cache=False).logits
    assert (steps - whole[:, -5:-1]).abs().max() < TOLERANCE


def generate(tiny: Any, inputs: Inputs, steps: int) -> tuple[Tensor, Tensor]:
    """Sequences, and the logits of each step in full precision (generate rounds those it returns to float32)."""
    seen: list[Tensor] = []
    handle = tiny.register_forward_hook(lambda module, args, out: seen.append(out.logits[:, -1]))
    sequences = tiny.generate(**inputs, max_new_tokens=steps, do_sample=False)
    handle.remove()
    return sequences, torch.stack(seen, dim=1)


@pytest.mark.parametrize(("name", "attention", "frames"), SEEN)
def test_every_image_matters_to_its_own_sample_only(name: str, attention: str, frames: int) -> None:
    family = ALL[name]
    samples = family.samples(*RAGGED, frames=frames)
    before = logits(name, attention, family.collate(samples))[:, -1]
    for index, sample in enumerate(samples):
        for picture in range(len(sample.pictures)):
            changed = [*samples[:index], negative(sample, picture), *samples[index + 1 :]]
            difference = (logits(name, attention, family.collate(changed))[:, -1] - before).abs().amax(1)
            assert difference[index] > 1e-4
            assert difference[torch.arange(len(samples)) != index].max() < TOLERANCE


def negative(sample: Sample, index: int) -> Sample:
    """The sample with one of its pictures negated."""
    pictures = [
        replace(picture, pixels=-picture.pixels) if place == index else picture
        for place, picture in enumerate(sample.pictures)
    ]
    return replace(sample, pictures=pictures)


@pytest.mark.parametrize(("name", "attention", "frames"), SEEN)
def test_lengths_of_images_agree_with_placeholders_and_features(
    name: str, attention: str, frames: int
) -> None:
    inputs = video_batch(name, *RAGGED, frames) if frames else batch(name, *RAGGED)
    lengths = image_lengths(name, RAGGED[0], frames)
    assert sum(lengths) == visual(name, inputs).sum()
    base = model(name, attention=attention).base_model
    encode = base.get_video_features if frames else base.get_image_features
    taken = {key: inputs[key] for key in inspect.signature(encode).parameters if key in inputs}
    features = encode(**taken, return_dict=True).pooler_output
    assert sum(rows[..., 0].numel() for rows in features) == sum(lengths)


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_is_far_from_uniform(name: str) -> None:
    tiny, inputs = model(name, attention="eager"), batch(name, [1], [9])
    last = torch.stack([rows[0, :, -1] for rows in tiny(**inputs, output_attentions=True).attentions])
    assert last.amax(-1).mean() > 2 / last.shape[-1]


@pytest.mark.parametrize("case", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_families_generate(case: FamilyCase) -> None:
    inputs = case.inputs([1], [9])
    sequences, steps = generate(model(case.name), inputs, 2)
    assert sequences.shape[1] == inputs["input_ids"].shape[1] + 2
    assert steps.isfinite().all()
