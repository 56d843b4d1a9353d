"""Every way to generate, for every family, against the masked oracle in float64."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor
from transformers import DynamicCache, StaticCache

import foveal
from support import families
from support.exactness import (
    TOLERANCE,
    along_beam,
    compare_alone,
    compare_decode,
    generate,
    hidden_by,
    longer,
    oracle,
)
from support.families import FAMILIES, SLIDING, VOCABULARY, FamilyCase, Sample, side_by_side
from support.library import OLD, VERSION, since_5_23
from support.oracle import dropped_columns, hidden_columns

pytestmark = pytest.mark.usefixtures("exact_softmax", "inference")

METHODS = {
    "random": foveal.Random(keep=0.3, layer=0),
    "fastv": foveal.FastV(keep=0.3, layer=1),
    "dart": foveal.DART(keep=5, layer=2),
}
EVERY_METHOD = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
# What the plain model cannot do either, see the last test.
NOT_IN_LIBRARY = {
    # Drafts in the first forward count as prompt, which sees all of itself.
    "prompt lookup": {"paligemma", "paligemma2"},
    "assistant": {"paligemma", "paligemma2"},
    "static cache": {"paligemma2"},
    "chunked prefill": {"paligemma", "paligemma2"},  # the prompt sees all of itself
    # generate wants the grids of all images, but the pixels of the new ones only
    "second turn, image": {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"},
}
RAGGED = ([1, 2], [9, 4])
FEW_WORDS = [token for token in range(VOCABULARY) if token not in range(30, 34)]


def every_family(mode: str = "") -> pytest.MarkDecorator:
    """All families whose plain model knows this mode."""
    cases = [case for case in FAMILIES.values() if case.name not in NOT_IN_LIBRARY.get(mode, ())]
    pairs = [pytest.param(case.name, case.attentions[0], id=case.name) for case in cases]
    return pytest.mark.parametrize(("family", "attention"), pairs)


def check(mode: str, difference: Any, family: str, attention: str, method: Any, support: Any) -> None:
    """Compare with the oracle, and note the cell."""
    case = FAMILIES[family]
    if missing_before(mode, family) and plain_fails(difference, family, attention):
        pytest.skip("the plain model cannot in this version of the library")
    worst = difference(case, attention, method)
    support(family, mode, worst)
    assert worst < TOLERANCE


def missing_before(mode: str, family: str) -> bool:
    """Where the plain model may fail in this version of the library; anywhere else a failure is ours."""
    if mode == "chunked prefill":  # images never reach the forward
        return OLD
    # Images of one sample are mixed up; masks of sliding windows have the wrong size.
    return Version("5.19") > VERSION and (mode in ("sampling", "beams") or family in SLIDING)


@cache
def plain_fails(difference: Any, family: str, attention: str) -> bool:
    """Whether the uncompressed model does not reach its own forward without cache."""
    try:
        return bool(difference(FAMILIES[family], attention, None) > TOLERANCE)
    except (AssertionError, AttributeError, IndexError, RuntimeError, StopIteration, ValueError):
        return True


@EVERY_METHOD
@every_family()
def test_sampling_with_return_sequences(
    family: str, attention: str, method: foveal.Compressor, support: Any
) -> None:
    check("sampling", sampling, family, attention, method, support)


def sampling(case: FamilyCase, attention: str, method: foveal.Compressor | None) -> float:
    model, samples = families.model(case.name, attention=attention), case.samples(*RAGGED)
    torch.manual_seed(1)
    with maybe_compress(model, method) as run:
        out, steps = generate(model, case.collate(samples), do_sample=True, num_return_sequences=2)
    assert not torch.equal(out.sequences[0], out.sequences[1])
    stages = run.stages if run else []
    return max(
        compare_alone(case, model, samples[row // 2], out.sequences[row], steps[row], stages, row)
        for row in range(4)
    )


@EVERY_METHOD
@every_family()
def test_beams(family: str, attention: str, method: foveal.Compressor, support: Any) -> None:
    check("beams", beams, family, attention, method, support)


def beams(case: FamilyCase, attention: str, method: foveal.Compressor | None) -> float:
    model, samples = families.model(case.name, attention=attention), case.samples(*RAGGED)
    options = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0, "output_scores": True}
    with maybe_compress(model, method) as run:
        out, steps = generate(model, case.collate(samples), **options)
    worst, stages = 0.0, run.stages if run else []
    for row, tokens in enumerate(out.sequences):
        logits, source = along_beam(out, steps, row)
        worst = max(worst, compare_alone(case, model, samples[row // 2], tokens, logits, stages, source))
    return worst


def drafted(model: Any, inputs: dict[str, Tensor], **options: Any) -> tuple[Tensor, list[Any]]:
    """Generated tokens, and of each forward the tokens it was given, where they stood, and its logits."""
    forwards: list[Any] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        end = int(out.past_key_values.get_seq_length())
        forwards.append((kwargs["input_ids"][0], end, out.logits[0]))

    handle = model.register_forward_hook(note, with_kwargs=True)
    try:
        tokens = model.generate(**inputs, **options)
    finally:
        handle.remove()
    return tokens, forwards


@cache
def assistant(family: str, attention: str) -> Any:
    """A model of the same weights that sees all tokens: it is often right."""
    return FAMILIES[family].build(6, attention)


@EVERY_METHOD
@every_family("prompt lookup")
def test_prompt_lookup(family: str, attention: str, method: foveal.Compressor, support: Any) -> None:
    check("prompt lookup", prompt_lookup, family, attention, method, support)


@EVERY_METHOD
@every_family("assistant")
def test_an_assistant(family: str, attention: str, method: foveal.Compressor, support: Any) -> None:
    check("assistant", assisted, family, attention, method, support)


def prompt_lookup(case: FamilyCase, attention: str, method: foveal.Compressor | None) -> float:
    return speculation(case, attention, method, prompt_lookup_num_tokens=3)


def assisted(case: FamilyCase, attention: str, method: foveal.Compressor | None) -> float:
    return speculation(case, attention, method, assistant_model=assistant(case.name, attention))


def speculation(case: FamilyCase, attention: str, method: foveal.Compressor | None, **drafts: Any) -> float:
    """The tokens must be those of greedy decoding; the largest difference of the logits behind accepted ones."""
    model = families.model(case.name, attention=attention)
    inputs = case.collate(case.samples([1], [9]))
    common = {"do_sample": False, "max_new_tokens": 24, "suppress_tokens": FEW_WORDS}
    with maybe_compress(model, method) as run:
        greedy = model.generate(**inputs, **common)
        kept = run.kept[0] if run else None
        tokens, forwards = drafted(model, inputs, **common, **drafts)
        hidden = hidden_by(run, families.visual(case.name, inputs)) if run else []
    assert kept is None or torch.equal(run.kept[0], kept), "drafts must not choose the tokens"
    assert torch.equal(tokens, greedy)
    assert len(forwards) < 24, "no draft was ever accepted: this test is blind"
    whole = families.extended(case.name, inputs, tokens)
    reference = oracle(model, whole, longer(hidden, tokens.shape[1]))[0]
    return max(accepted_difference(*forward, tokens[0], reference) for forward in forwards)


def accepted_difference(given: Tensor, end: int, logits: Tensor, tokens: Tensor, reference: Tensor) -> float:
    """Compare the logits behind those tokens of a forward that became part of the answer."""
    start, first = end - len(given), end - len(logits)
    said = tokens[start:end]
    agreed = start + int((given[: len(said)] == said).int().cumprod(0).sum())
    logits = logits[: max(agreed - first, 0)]
    return float((logits - reference[first:agreed]).abs().max()) if len(logits) else 0.0


@EVERY_METHOD
@every_family("static cache")
def test_static_cache(family: str, attention: str, method: foveal.Compressor, support: Any) -> None:
    gap = missing_before("static cache", family) and plain_fails(static_cache, family, attention)
    if family in SLIDING and not gap:
        support(family, "static cache", None)
        with pytest.raises(foveal.FovealError, match="static cache with sliding-window layers"):
            static_cache(FAMILIES[family], attention, method)
        return
    check("static cache", static_cache, family, attention, method, support)


def static_cache(case: FamilyCase, attention: str, method: foveal.Compressor | None) -> float:
    model = families.model(case.name, attention=attention)
    inputs = case.inputs([1, 2, 0], [9, 4, 12])
    with maybe_compress(model, method) as run:
        out, steps = generate(model, inputs, cache_implementation="static")
        hidden = hidden_by(run, families.visual(case.name, inputs)) if run else []
    return compare_decode(case.name, model, inputs, hidden, out.sequences, steps)


@EVERY_METHOD
@every_family()
def test_a_second_turn_on_one_cache(
    family: str, attention: str, method: foveal.Compressor, support: Any
) -> None:
    check("second turn", word_turn, family, attention, method, support)


@EVERY_METHOD
@every_family("second turn, image")
def test_an_image_in_the_second_turn(
    family: str, attention: str, method: foveal.Compressor, support: Any
) -> None:
    check("second turn, image", image_turn, family, attention, method, support)


def second_turn(case: FamilyCase, attention: str, method: foveal.Compressor | None, images: int) -> float:
    """Generate, add words and images, generate on the same cache; the largest difference in the second turn."""
    model = families.model(case.name, attention=attention)
    first, more = case.samples([1], [9])[0], case.samples([images], [5], seed=3)[0]

    def turn(sample: Sample, new: Sample, **options: Any) -> tuple[Any, Tensor, Sample]:
        """Add a sample behind what was said; pixels of the new one only."""
        whole = Sample([*sample.ids, *new.ids], [*sample.pictures, *new.pictures])
        out, steps = generate(model, case.collate([replace(whole, pictures=new.pictures)]), **options)
        return out, steps, replace(whole, ids=out.sequences[0].tolist())

    def hidden(kept: Tensor, whole: Sample) -> Any:
        visual = families.visual(case.name, case.collate([whole]))
        return [(method.layer, dropped_columns(visual, [kept]))] if method else []

    nothing, kept = Sample([], []), [torch.tensor([], dtype=torch.long)] * 2
    with maybe_compress(model, method) as run:
        out, _, said = turn(nothing, first)
        if run:
            kept = [run.kept[0]] * 2
        out, steps, whole = turn(said, more, past_key_values=out.past_key_values)
        if run and images:
            kept[1] = torch.cat([kept[0], run.kept[0]])
    layers = model.get_decoder().layers
    with hidden_columns(layers, hidden(kept[0], first)):
        plain, _, said = turn(nothing, first)
    with hidden_columns(layers, hidden(kept[1], whole)):
        plain, reference, _ = turn(said, more, past_key_values=plain.past_key_values)
    assert torch.equal(out.sequences, plain.sequences)
    return float((steps - reference).abs().max())


def word_turn(case: FamilyCase, attention: str, method: foveal.Compressor | None) -> float:
    return second_turn(case, attention, method, images=0)


def image_turn(case: FamilyCase, attention: str, method: foveal.Compressor | None) -> float:
    return second_turn(case, attention, method, images=1)


@EVERY_METHOD
@every_family("chunked prefill")
def test_chunked_prefill(family: str, attention: str, method: foveal.Compressor, support: Any) -> None:
    case = FAMILIES[family]
    check("chunked prefill", chunked_prefill, family, attention, method, support)
    model, inputs = families.model(family, attention=attention), case.inputs([1], [12])
    cut = int(families.visual(family, inputs)[0].nonzero().max()) - 2
    refusal = pytest.raises(foveal.FovealError, match="prefill_chunk_size that cuts no image")
    with foveal.compress(model, method), refusal:
        generate(model, inputs, prefill_chunk_size=cut)


STAGES = [foveal.Random(keep=0.5, layer=0), foveal.Random(keep=0.93, layer=2)]


@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
@pytest.mark.parametrize(
    ("first", "second"),
    [(STAGES, STAGES), (foveal.Random(keep=0.3, layer=4), foveal.Random(keep=0.3, layer=1))],
)
def test_a_layer_keeps_its_own_view_of_the_cache(first: Any, second: Any, cache_class: Any) -> None:
    """In turn two, one stream of rows meets layers that dropped different keys in turn one."""
    case, model = FAMILIES["internvl"], families.model("internvl")
    one, two = case.samples([1], [9])[0], case.samples([1], [7], seed=3)[0]
    both = Sample([*one.ids, *two.ids], [*one.pictures, *two.pictures])
    prompt, whole = case.collate([one]), case.collate([both])
    visual = families.visual(case.name, whole)
    config = model.config.get_text_config()
    cache: Any = (
        cache_class(config=config, max_cache_len=96) if cache_class is StaticCache else DynamicCache()
    )
    with foveal.compress(model, first) as run:
        model(**prompt, past_key_values=cache)
        kept = {stage.layer: stage.kept[0] for stage in run.stages}
    rows = len(one.ids)
    new = {**case.collate([replace(both, pictures=two.pictures)]), "past_key_values": cache}
    new["input_ids"] = whole["input_ids"][:, rows:]
    new["position_ids"] = torch.arange(rows, whole["input_ids"].shape[1])[None]
    with foveal.compress(model, second) as run:
        logits = model(**new).logits[:, -3:]
    hidden = []
    for layer in range(6):  # what each layer may see: both turns by their own stages
        seen = [
            max((at for at in turn if at <= layer), default=None)
            for turn in (kept, {s.layer for s in run.stages})
        ]
        tokens = visual[0].nonzero()[:, 0]
        turn_one = tokens[tokens < rows] if seen[0] is None else kept[seen[0]]
        later = [stage.kept[0] for stage in run.stages if stage.layer == seen[1]]
        turn_two = later[0] if later else tokens[tokens >= rows]
        hidden.append((layer, layer + 1, dropped_columns(visual, [torch.cat([turn_one, turn_two])])))
    layers = model.get_decoder().layers
    with ExitStack() as stack:
        for layer, stop, columns in hidden:
            stack.enter_context(hidden_columns(layers[:stop], [(layer, columns)]))
        reference = model(**whole, use_cache=False).logits[:, -3:]
    assert (logits - reference).abs().max() < TOLERANCE


@since_5_23  # images are encoded before the prompt is cut into chunks
@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision"])
def test_chunked_prefill_of_images_side_by_side(family: str) -> None:
    case, model = FAMILIES[family], families.model(family)
    sample = side_by_side(case.samples([2], [12])[0])
    inputs = case.collate([sample])
    with foveal.compress(model, foveal.Random(keep=3)) as run:
        model.generate(**inputs, max_new_tokens=2)
        assert [len(kept) for kept in run.stages[0].kept_in_image] == [3, 3]
        with pytest.raises(foveal.FovealError, match="does not tell where one image ends"):
            model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=len(sample.ids) - 2)


@since_5_23  # images are encoded before the prompt is cut into chunks
@pytest.mark.parametrize("family", ["mistral3", "qwen3_vl"])
def test_chunked_prefill_that_hides_where_images_end(family: str) -> None:
    case, model = FAMILIES[family], families.model(family)
    inputs = case.inputs([2], [12], frames=3 if case.video else 0)
    with foveal.compress(model, foveal.Random(keep=0.5)) as run:
        model.generate(**inputs, max_new_tokens=2)
        assert len(run.stages[0].kept_in_image) == 2
        with pytest.raises(foveal.FovealError, match=r"does not tell where one .* ends"):
            model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=inputs["input_ids"].shape[1] - 2)


def chunked_prefill(case: FamilyCase, attention: str, method: foveal.Compressor | None) -> float:
    """The image in the first chunk, most of the text in the second."""
    model, inputs = families.model(case.name, attention=attention), case.inputs([1], [12])
    chunk = int(families.visual(case.name, inputs)[0].nonzero().max()) + 3
    with maybe_compress(model, method) as run:
        out, steps = generate(model, inputs, prefill_chunk_size=chunk)
        hidden = hidden_by(run, families.visual(case.name, inputs)) if run else []
    return compare_decode(case.name, model, inputs, hidden, out.sequences, steps)


def maybe_compress(model: Any, method: foveal.Compressor | None) -> Any:
    return foveal.compress(model, method) if method else nullcontext()


@since_5_23
@pytest.mark.parametrize(
    ("mode", "difference", "failure", "family"),
    [
        pytest.param(mode, difference, failure, family, id=f"{mode}-{family}")
        for mode, difference, failure in (
            ("assistant", assisted, AssertionError),  # other tokens than greedy decoding
            ("static cache", static_cache, AttributeError),
            ("chunked prefill", chunked_prefill, AssertionError),
            ("second turn, image", image_turn, StopIteration),
        )
        for family in sorted(NOT_IN_LIBRARY[mode])
    ],
)
def test_what_the_plain_model_cannot_do_either(
    mode: str, difference: Any, failure: type[Exception], family: str, support: Any
) -> None:
    support(family, mode, "plain")
    case = FAMILIES[family]
    try:
        worst = difference(case, case.attentions[0], None)
    except failure:
        return
    assert worst > TOLERANCE
