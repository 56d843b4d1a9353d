"""Every family against the masked oracle in float64: prefill and 8 decode steps, and keep = all bit for bit."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import pytest
import torch

import foveal
from foveal.engine.families import FAMILIES as TABLE
from foveal.engine.families import find_parts
from support import families
from support.exactness import TOLERANCE, compare_decode, compare_prefill, generate, hidden_by
from support.families import FAMILIES, PAIRS, VIDEO_PAIRS, Sample, side_by_side

pytestmark = pytest.mark.usefixtures("exact_softmax", "inference")

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


def difference(family: str, model: Any, inputs: Any, methods: Any) -> float:
    """The largest difference from the oracle, in prefill and in 8 steps of greedy decoding."""
    prefill = compare_prefill(family, model, inputs, foveal.attach(model, methods))
    with foveal.compress(model, methods) as run:
        out, steps = generate(model, inputs)
        hidden = hidden_by(run, families.visual(family, inputs))
    return max(prefill, compare_decode(family, model, inputs, hidden, out.sequences, steps))


@pytest.mark.parametrize("method", METHODS, ids=name_of)
@pytest.mark.parametrize(("family", "attention"), PAIRS)
def test_dropping_tokens_changes_the_answer(family: str, attention: str, method: foveal.Compressor) -> None:
    """Or else the tests here would be blind."""
    model, inputs = families.model(family, attention=attention), families.batch(family, *BATCHES["ragged"])
    plain = model(**inputs).logits
    with foveal.compress(model, method) as run:
        logits = model(**inputs).logits
    dropped = hidden_by(run, families.visual(family, inputs))[-1][1]
    assert dropped.any()
    alive = inputs["attention_mask"].bool() & ~dropped
    assert (logits - plain)[alive].abs().max() > 1e-5


@pytest.mark.parametrize("method", METHODS, ids=name_of)
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(("family", "attention"), PAIRS)
def test_prefill_and_decode(
    family: str, attention: str, name: str, method: foveal.Compressor, support: Any
) -> None:
    model = families.model(family, attention=attention)
    worst = difference(family, model, families.batch(family, *BATCHES[name]), method)
    support(family, f"{attention}, {name}", worst)
    assert worst < TOLERANCE


@pytest.mark.parametrize(("family", "attention"), PAIRS)
def test_several_stages(family: str, attention: str, support: Any) -> None:
    model = families.model(family, attention=attention)
    worst = difference(family, model, families.batch(family, *BATCHES["ragged"]), STAGES)
    support(family, "several stages", worst)
    assert worst < TOLERANCE


@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("method", [foveal.Random, foveal.FastV, foveal.DART])
@pytest.mark.parametrize(("family", "attention"), VIDEO_PAIRS)
def test_video(family: str, attention: str, method: Any, per_frame: bool, support: Any) -> None:
    model = families.model(family, attention=attention)
    inputs = families.video_batch(family, [1, 2, 0], [9, 4, 12])
    worst = difference(family, model, inputs, method(keep=0.4, layer=1, per_frame=per_frame))
    support(family, "video", worst)
    assert worst < TOLERANCE


@pytest.mark.parametrize("method", [foveal.FastV, foveal.DART])
@pytest.mark.parametrize(("family", "attention"), VIDEO_PAIRS)
def test_an_image_and_a_video_in_one_sample(family: str, attention: str, method: Any) -> None:
    case, model = FAMILIES[family], families.model(family, attention=attention)
    image, video = case.samples([1], [6])[0], case.samples([1], [7], seed=2, frames=3)[0]
    both = Sample([*image.ids, *video.ids[1:]], [*image.pictures, *video.pictures])
    inputs = case.collate([both, *case.samples([2], [5], seed=4)])
    assert difference(family, model, inputs, method(keep=0.4, layer=1)) < TOLERANCE
    with foveal.compress(model, method(keep=2, per_frame=True)) as run:
        model(**inputs)
        kept = [len(kept) for kept in run.stages[0].kept_in_image]
    assert kept == [2] * 6  # an image, three frames, two images
    with foveal.compress(model, method(keep=2)) as run:
        model(**inputs)
        assert counts(run) == [2] * 4


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(("family", "attention"), PAIRS)
def test_keeping_all_is_the_plain_model_bit_for_bit(family: str, attention: str, name: str) -> None:
    model = families.model(family, attention=attention)
    inputs = families.batch(family, *BATCHES[name])
    plain, (out, steps) = model(**inputs).logits, generate(model, inputs)
    for method in (foveal.Random(keep=1.0, layer=0), foveal.FastV(keep=1.0), foveal.DART(keep=1.0)):
        with foveal.compress(model, method):
            assert torch.equal(model(**inputs).logits, plain)
            again, same = generate(model, inputs)
        assert torch.equal(again.sequences, out.sequences)
        assert torch.equal(same, steps)


@pytest.mark.parametrize(("family", "attention"), PAIRS)
def test_the_budget_holds_for_each_image(family: str, attention: str) -> None:
    model = families.model(family, attention=attention)
    images, words = BATCHES["ragged"]
    with foveal.compress(model, foveal.DART(keep=0.5, layer=1)) as run:
        model(**families.batch(family, images, words))
        assert counts(run) == halves(families.image_lengths(family, images))


@pytest.mark.parametrize(("family", "attention"), VIDEO_PAIRS)
def test_the_budget_holds_for_each_clip_or_each_frame(family: str, attention: str) -> None:
    model = families.model(family, attention=attention)
    videos, words, frames = [1, 2, 0], [9, 4, 12], 3
    inputs = families.video_batch(family, videos, words, frames=frames)
    clips = families.image_lengths(family, videos, frames=frames)
    with foveal.compress(model, foveal.FastV(keep=0.5)) as run:
        model(**inputs)
        assert counts(run) == halves(clips)
    with foveal.compress(model, foveal.FastV(keep=2, per_frame=True)) as run:
        model(**inputs)
        assert counts(run) == [2] * frames * len(clips)
    lengths = [len(scores) for scores in run.stages[0].scores or []]
    assert [sum(lengths[clip * frames :][:frames]) for clip in range(len(clips))] == clips


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision", "paligemma"])
def test_images_side_by_side_are_told_apart(family: str) -> None:
    case, model = FAMILIES[family], families.model(family, attention="eager")
    sample = case.samples([2], [9])[0]
    sample = sample if case.images_first else side_by_side(sample)
    inputs = case.collate([sample, *case.samples([1], [7], seed=3)])
    method = foveal.FastV(keep=0.5)
    assert difference(family, model, inputs, method) < TOLERANCE
    with foveal.compress(model, method) as run:
        model(**inputs)
        assert counts(run) == halves(
            [*families.image_lengths(family, [2]), *families.image_lengths(family, [1])]
        )


def test_pixtral_as_a_llava_reads_rows_as_one_image() -> None:
    case, model = FAMILIES["mistral3"], families.model("mistral3")
    inputs = case.inputs([2], [9])
    model.config.model_type = "llava"
    try:
        with foveal.compress(model, foveal.Random(keep=3)) as run:
            model(**inputs)
    finally:
        del model.config.model_type
    assert counts(run) == [3, 3]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_names_the_parts(family: str) -> None:
    parts = find_parts(families.model(family, attention=FAMILIES[family].attentions[0]))
    assert parts.top.config.model_type in TABLE
    tower, projector, decoder = attrgetter(parts.family.tower, parts.family.projector, parts.family.decoder)(
        parts.base
    )
    assert decoder is parts.decoder
    assert {type(part).__name__ for part in (tower, projector)}.isdisjoint({"NoneType"})
    image = set(map(id, tower.modules())) | set(map(id, projector.modules()))
    assert image.isdisjoint(map(id, decoder.modules()))


def counts(run: foveal.Run) -> list[int]:
    return [len(kept) for kept in run.stages[0].kept_in_image]


def halves(lengths: list[int]) -> list[int]:
    return [max(1, int(length * 0.5 + 0.5)) for length in lengths]
