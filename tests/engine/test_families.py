"""Every family against the masked oracle in float64: prefill and 8 decode steps, and keep = all bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

import foveal
from support import families
from support.families import FIRST_TEXT, PAIRS
from support.oracle import dropped_columns, hidden_columns

pytestmark = pytest.mark.usefixtures("exact_softmax", "inference")

TOLERANCE = 1e-10
STEPS = 8
BATCHES = {"batch 1": ([1], [9]), "ragged": ([1, 2, 0], [9, 4, 12])}
METHODS = [
    foveal.Random(keep=0.3, layer=0, seed=2),
    foveal.FastV(keep=0.3, layer=1),
    foveal.DART(keep=5, layer=1),
    foveal.FastV(keep=3, layer=2),
    foveal.DART(keep=0.3, layer=2),
    foveal.DART(keep=5, layer=4),
    foveal.Random(keep=1, layer=4),
]
STAGES = [foveal.Random(keep=0.6, layer=0), foveal.FastV(keep=0.5, layer=2), foveal.DART(keep=1, layer=4)]


def name_of(method: foveal.Compressor) -> str:
    assert method.card
    return f"{method.card.name}-{method.keep}-layer{method.layer}"


def stages_of(run: foveal.Run, visual: Tensor) -> list[tuple[int, Tensor]]:
    """What the oracle hides: (layer, (batch, rows) bool) of each stage."""
    return [(stage.layer, dropped_columns(visual, stage.kept)) for stage in run.stages]


def oracle(model: Any, inputs: dict[str, Tensor], stages: list[tuple[int, Tensor]]) -> Tensor:
    with hidden_columns(model.get_decoder().layers, stages):
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits


def generate(model: Any, inputs: dict[str, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """Tokens (batch, rows + STEPS) and (batch, STEPS, vocabulary) logits in full precision."""
    steps: list[Tensor] = []  # generate itself rounds the logits it returns to float32
    handle = model.lm_head.register_forward_hook(lambda module, args, out: steps.append(out[:, -1]))
    try:
        tokens = model.generate(**inputs, max_new_tokens=STEPS, **{"do_sample": False, **options})
    finally:
        handle.remove()
    return tokens, torch.stack(steps, dim=1)


def assert_exact(family: str, model: Any, inputs: dict[str, Tensor], methods: Any) -> float:
    """Compare prefill and decode with the oracle; returns the largest difference."""
    visual, alive = families.visual(family, inputs), inputs["attention_mask"].bool()
    with foveal.compress(model, methods) as run:
        logits = model(**inputs).logits
        stages = stages_of(run, visual)
        tokens, steps = generate(model, inputs)
        # Not the same ones: generate gives a padded sample other positions, and DART ranks rotated keys.
        longer = [(layer, pad(hidden, (0, STEPS))) for layer, hidden in stages_of(run, visual)]
    dropped = stages[-1][1]
    assert dropped.any()
    assert not logits[dropped].any()
    alive &= ~dropped
    prefill = (logits - oracle(model, inputs, stages))[alive].abs().max()
    reference = oracle(model, families.extended(family, inputs, tokens), longer)[:, -STEPS - 1 : -1]
    decode = (steps - reference).abs().max()
    assert prefill < TOLERANCE
    assert decode < TOLERANCE
    chosen = reference[..., FIRST_TEXT:].argmax(-1) + FIRST_TEXT
    assert torch.equal(tokens[:, -STEPS:], chosen)
    plain = model(**inputs).logits
    assert (logits - plain)[alive].abs().max() > 1e-5, "dropping tokens changes nothing: this test is blind"
    return float(max(prefill, decode))


@pytest.mark.parametrize("method", METHODS, ids=name_of)
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(("family", "attention"), PAIRS)
def test_prefill_and_decode(
    family: str, attention: str, name: str, method: foveal.Compressor, support: Any
) -> None:
    model = families.model(family, attention=attention)
    inputs = families.batch(family, *BATCHES[name])
    support(family, f"{attention}, {name}", assert_exact(family, model, inputs, method))


@pytest.mark.parametrize(("family", "attention"), PAIRS)
def test_several_stages(family: str, attention: str, support: Any) -> None:
    model = families.model(family, attention=attention)
    inputs = families.batch(family, *BATCHES["ragged"])
    support(family, "three stages", assert_exact(family, model, inputs, STAGES))


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(("family", "attention"), PAIRS)
def test_keeping_all_is_the_plain_model_bit_for_bit(family: str, attention: str, name: str) -> None:
    model = families.model(family, attention=attention)
    inputs = families.batch(family, *BATCHES[name])
    plain, (tokens, steps) = model(**inputs).logits, generate(model, inputs)
    for method in (foveal.Random(keep=1.0, layer=0), foveal.FastV(keep=1.0), foveal.DART(keep=1.0)):
        with foveal.compress(model, method):
            assert torch.equal(model(**inputs).logits, plain)
            again, same = generate(model, inputs)
        assert torch.equal(again, tokens)
        assert torch.equal(same, steps)


@pytest.mark.parametrize(("family", "attention"), PAIRS)
def test_budgets_hold_for_each_image(family: str, attention: str) -> None:
    model = families.model(family, attention=attention)
    images, words = BATCHES["ragged"]
    with foveal.compress(model, foveal.DART(keep=0.5, layer=1)) as run:
        model(**families.batch(family, images, words))
    kept = [len(tokens) for tokens in run.stages[0].kept_in_image]
    lengths = families.image_lengths(family, images)
    assert kept == [max(1, int(length * 0.5 + 0.5)) for length in lengths]
