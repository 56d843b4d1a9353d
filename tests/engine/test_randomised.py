"""No combination is silently wrong: drawn at random, compared with the masked oracle in float64."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import foveal
from support import families
from support.exactness import (
    TOLERANCE,
    along_beam,
    compare_alone,
    compare_decode,
    compare_prefill,
    generate,
    hidden_by,
)
from support.families import FAMILIES, SLIDING
from support.library import OLD
from support.stages import decided, decisions

pytestmark = pytest.mark.usefixtures("exact_softmax", "inference")

DRAWS = int(os.environ.get("FOVEAL_DRAWS", "60"))
LAYERS = 6
GENERATE: dict[str, dict[str, Any]] = {
    "greedy": {},
    "static cache": {"cache_implementation": "static"},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0},
}


@dataclass(frozen=True)
class Case:
    family: str
    attention: str
    mode: str
    methods: list[foveal.Compressor]
    images: list[int]
    words: list[int]
    frames: int
    side: str
    seed: int


@st.composite
def methods(draw: st.DrawFn, per_frame: bool) -> list[foveal.Compressor]:
    """One stage or several, each keeping a share or a single token."""
    layers = sorted(draw(st.sets(st.integers(0, LAYERS - 1), min_size=1, max_size=3)))
    stages = []
    for layer in layers:
        kinds = [foveal.Random, foveal.FastV, foveal.DART] if layer else [foveal.Random]
        keep = draw(st.one_of(st.just(1), st.floats(0.05, 0.6)))
        stages.append(draw(st.sampled_from(kinds))(keep=keep, layer=layer, per_frame=per_frame))
    return stages


@st.composite
def cases(draw: st.DrawFn) -> Case:
    family = FAMILIES[draw(st.sampled_from(sorted(FAMILIES)))]
    frames = draw(st.integers(0, 3)) if family.video else 0
    images = draw(st.permutations([draw(st.integers(1, 2)), *draw(st.lists(st.integers(0, 2), max_size=2))]))
    modes = ["prefill", "greedy"] if OLD else ["prefill", *GENERATE]
    if family.name == "paligemma2" and not OLD:
        modes.remove("static cache")  # the library's and this family do not go together
    mode = draw(st.sampled_from(modes))
    return Case(
        family=family.name,
        attention=draw(st.sampled_from(family.attentions)),
        mode=mode,
        methods=draw(methods(per_frame=bool(frames) and draw(st.booleans()))),
        images=images,
        words=[draw(st.integers(count + 2, 12)) for count in images],
        frames=frames,
        side=draw(st.sampled_from(["left", "right"])) if mode == "prefill" else "left",
        seed=draw(st.integers(0, 99)),
    )


@st.composite
def mixtures(draw: st.DrawFn) -> Case:
    """Methods that merge, re-pack, look at their own layer or act at several, in the modes of their oracle."""
    family = FAMILIES[draw(st.sampled_from(sorted(FAMILIES)))]
    modes = ["prefill", "greedy"]
    if not OLD and family.name not in SLIDING | {"paligemma2"}:
        modes.append("static cache")
    layers = sorted(draw(st.sets(st.integers(1, LAYERS - 1), min_size=2, max_size=3)))
    positions = st.sampled_from(["original", "packed"])
    keep = draw(st.one_of(st.just(1), st.floats(0.05, 0.6)))
    staged = draw(st.sampled_from([foveal.PyramidDrop, foveal.SparseVLM, foveal.PuMer, None]))
    if staged is None:
        kinds = [foveal.DivPrune, foveal.FastV, foveal.DART]
        methods = [
            draw(st.sampled_from(kinds))(keep=keep, layer=layer, positions=draw(positions))
            for layer in layers
        ]
    else:
        methods = [staged(keep=keep, layers=layers, positions=draw(positions))]
        if draw(st.booleans()):
            methods.insert(0, foveal.DivPrune(keep=draw(st.floats(0.6, 0.9)), positions=draw(positions)))
    return Case(
        family=family.name,
        attention=draw(st.sampled_from(family.attentions)),
        mode=draw(st.sampled_from(modes)),
        methods=methods,
        images=draw(st.permutations([1, draw(st.integers(0, 2)), draw(st.integers(0, 1))])),
        words=[draw(st.integers(4, 12)) for _ in range(3)],
        frames=0,
        side="left",
        seed=draw(st.integers(0, 99)),
    )


@settings(
    max_examples=DRAWS // 2,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=mixtures())
def test_any_mixture_of_methods_is_exact(case: Case) -> None:
    event(case.mode)
    model = families.model(case.family, attention=case.attention)
    inputs = families.batch(case.family, case.images, case.words, seed=case.seed)
    visual = families.visual(case.family, inputs)
    with foveal.compress(model, case.methods) as run:
        if case.mode == "prefill":
            logits = model(**inputs).logits
        else:
            out, steps = generate(model, inputs, max_new_tokens=4, **GENERATE[case.mode])
        found = decisions(run, visual)
    if case.mode != "prefill":
        inputs = families.extended(case.family, inputs, out.sequences)
    with decided(model, inputs["attention_mask"], found):
        oracle = model(**inputs, use_cache=False).logits
    if case.mode == "prefill":
        alive = inputs["attention_mask"].bool() & ~found[-1].dropped
        assert (logits - oracle)[alive].abs().max() < TOLERANCE
    else:
        assert (steps - oracle[:, -5:-1]).abs().max() < TOLERANCE


@settings(
    max_examples=DRAWS, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(case=cases())
def test_any_combination_is_exact_or_refused(case: Case) -> None:
    if case.mode == "static cache" and case.family in SLIDING:
        event("refused")
        with pytest.raises(foveal.FovealError, match="static cache with sliding-window layers"):
            difference_of(case)
    else:
        event(case.mode)
        assert difference_of(case) < TOLERANCE


def budget(case: Case, length: int) -> int:
    """Tokens that the first stage should keep of an image or a clip with so many."""
    keep, frames = case.methods[0].keep, case.frames if case.methods[0].per_frame else 1
    shares = [length // frames] * (frames - 1)
    shares.append(length - sum(shares))  # a newline belongs to the last frame
    return sum(keep if isinstance(keep, int) else max(1, int(keep * share + 0.5)) for share in shares)


def assert_budget(case: Case, stage: foveal.Stage) -> None:
    """The first stage keeps of each image or clip what was asked for."""
    lengths = families.image_lengths(case.family, case.images, case.frames)
    counts = [len(kept) for kept in stage.kept_in_image]
    frames = len(counts) // len(lengths)
    kept = [sum(counts[clip * frames :][:frames]) for clip in range(len(lengths))]
    assert kept == [budget(case, length) for length in lengths]


def difference_of(case: Case) -> float:
    """The largest difference from the oracle; the budget must hold as well."""
    family, model = FAMILIES[case.family], families.model(case.family, attention=case.attention)
    samples = family.samples(case.images, case.words, case.seed, case.frames)
    inputs = family.collate(samples, case.side)
    run = foveal.attach(model, case.methods)
    try:
        if case.mode == "prefill":
            difference = compare_prefill(case.family, model, inputs, run)
            assert_budget(case, run.stages[0])
            return difference
        torch.manual_seed(case.seed)
        out, steps = generate(model, inputs, max_new_tokens=4, **GENERATE[case.mode])
        stages = run.stages
    finally:
        run.detach()
    if case.mode in ("greedy", "static cache"):
        assert_budget(case, stages[0])
        hidden = hidden_by(run, families.visual(case.family, inputs))
        return compare_decode(case.family, model, inputs, hidden, out.sequences, steps)
    worst = 0.0
    for row, tokens in enumerate(out.sequences):
        logits, source = along_beam(out, steps, row) if case.mode == "beams" else (steps[row], row)
        worst = max(worst, compare_alone(family, model, samples[row // 2], tokens, logits, stages, source))
    return worst
