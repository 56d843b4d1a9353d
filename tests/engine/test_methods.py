"""One table: every method against everything that must hold of all of them, in float64 on tiny models."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

import foveal
from foveal.compressors.base import TowerCompressor
from support import families
from support.clip import text_tower
from support.exactness import STEPS, TOLERANCE, generate
from support.families import FAMILIES, PAIRS
from support.stages import Decision, Towers, decided, decisions, projecting, watched

pytestmark = pytest.mark.usefixtures("exact_softmax")

Inputs = dict[str, Tensor]

# Every method twice: at a count that merges and drops hard, and at a fraction.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "cdpruner": [{"keep": 5}, {"keep": 0.4}],
    "dart": [{"keep": 5}, {"keep": 0.4, "layer": 1, "positions": "packed"}],
    "divprune": [{"keep": 5}, {"keep": 0.4, "layer": 3, "positions": "original"}],
    "downsample": [{"keep": 6}, {"keep": 0.4, "positions": "original"}],
    "fastv": [{"keep": 5}, {"keep": 0.4, "layer": 1, "positions": "packed"}],
    "pooling": [{"keep": 6}, {"keep": 0.4, "positions": "original"}],
    "prumerge": [{"keep": 5}, {"keep": "auto", "positions": "original"}],
    "prumerge+": [{"keep": 5}, {"keep": "auto"}],
    "pumer": [{"keep": 5, "layers": (1, 3)}, {"keep": 0.2, "layers": (1, 2, 4), "positions": "packed"}],
    "pyramiddrop": [{"keep": 5, "layers": (1, 3)}, {"keep": 0.2, "layers": (1, 2, 4)}],
    "random": [{"keep": 5, "seed": 3}, {"keep": 0.4, "layer": 0, "positions": "packed"}],
    "sparsevlm": [{"keep": 5, "layers": (1, 3)}, {"keep": 0.3, "layers": (1, 2, 4), "positions": "original"}],
    "tome": [{"keep": 9}, {"keep": 0.4, "proportional": False, "positions": "original"}],
    "trim": [{"keep": 5}, {"keep": "auto", "positions": "original"}],
    "visionzip": [{"keep": 5}, {"keep": 0.4, "positions": "original"}],
}
METHODS = {
    f"{name}-{'-'.join(str(value) for value in options.values())}": foveal.get(name, **options)
    for name, several in OPTIONS.items()
    for options in several
}
BATCHES = {"batch 1": ([1], [9]), "ragged": ([1, 2, 0], [9, 4, 12])}

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def test_the_table_is_complete() -> None:
    assert set(OPTIONS) == set(foveal.available())


def prepared(name: str, images: list[int], texts: list[int]) -> tuple[Any, Inputs]:
    """A model, and inputs with positions that do not depend on padding."""
    model, inputs = families.model(name), families.batch(name, images, texts)
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return model, inputs


def compressed(model: Any, method: Any, family: str = "llava") -> Any:
    first = method[0] if isinstance(method, list) else method
    needs = isinstance(first, TowerCompressor) and first.needs_text
    return foveal.compress(model, method, text_tower=text_tower(model) if needs else None)


def is_projected(method: Any) -> bool:
    return isinstance(method, TowerCompressor) and method.projected


def reference(
    model: Any, inputs: Inputs, found: list[Decision], seen: Towers, method: Any, **extra: Any
) -> Tensor:
    """The oracle's logits."""
    first = method[0] if isinstance(method, list) else method
    tower = (
        projecting(model, seen, is_projected(first)) if isinstance(first, TowerCompressor) else nullcontext()
    )
    with tower, decided(model, inputs["attention_mask"], found):
        logits: Tensor = model(**inputs, use_cache=False, **extra).logits
    return logits


def prefill_difference(family: str, model: Any, inputs: Inputs, method: Any) -> float:
    with compressed(model, method) as run, watched(model) as seen:
        logits = model(**inputs).logits
        found = decisions(run, families.visual(family, inputs))
    oracle = reference(model, inputs, found, seen, method)
    dropped = found[-1].dropped
    assert dropped.any()
    assert not logits[dropped].any()
    alive = inputs["attention_mask"].bool() & ~dropped
    assert (logits - model(**inputs).logits)[alive].abs().max() > 1e-5, "this test is blind"
    return float((logits - oracle)[alive].abs().max())


def decode_difference(family: str, model: Any, inputs: Inputs, method: Any, **options: Any) -> float:
    inputs = {name: value for name, value in inputs.items() if name != "position_ids"}
    with compressed(model, method) as run, watched(model) as seen:
        out, steps = generate(model, inputs, **options)
        found = decisions(run, families.visual(family, inputs))
    whole = families.extended(family, inputs, out.sequences)
    oracle = reference(model, whole, found, seen, method)[:, -STEPS - 1 : -1]
    return float((steps - oracle).abs().max())


@every_method
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("family", ["llava", "llava_mistral"])
def test_prefill_and_decode_equal_the_oracle(family: str, name: str, method: Any, support: Any) -> None:
    model, inputs = prepared(family, *BATCHES[name])
    with torch.inference_mode():
        worst = max(
            prefill_difference(family, model, inputs, method),
            decode_difference(family, model, inputs, method),
        )
    if isinstance(method, TowerCompressor):
        support(family, "pre-LM", worst)
    assert worst < TOLERANCE


EVERYWHERE = {
    "divprune": foveal.DivPrune(keep=0.4),
    "pumer": foveal.PuMer(keep=0.3, layers=(1, 3), positions="packed"),
    "pyramiddrop": foveal.PyramidDrop(keep=0.3, layers=(1, 3)),
    "sparsevlm": foveal.SparseVLM(keep=0.3, layers=(1, 3)),
}


@pytest.mark.parametrize("method", EVERYWHERE.values(), ids=EVERYWHERE)
@pytest.mark.parametrize(("family", "attention"), PAIRS)
def test_every_family_equals_the_oracle(family: str, attention: str, method: Any, support: Any) -> None:
    model, inputs = families.model(family, attention=attention), families.batch(family, *BATCHES["ragged"])
    with torch.inference_mode():
        worst = max(
            prefill_difference(family, model, inputs, method),
            decode_difference(family, model, inputs, method),
        )
    support(family, "merging, packing", worst)
    assert worst < TOLERANCE


BEFORE_THE_DECODER = {
    "cdpruner": foveal.CDPruner(keep=0.4),
    "downsample": foveal.Downsample(keep=4),
    "pooling": foveal.AveragePooling(keep=4),
    "prumerge": foveal.PruMerge(keep=0.4, query="mean"),
    "prumerge+": foveal.PruMergePlus(keep=0.4, query="mean"),
    "tome": foveal.ToMe(keep=0.4),
    "trim": foveal.TRIM(keep=0.4),
    "visionzip": foveal.VisionZip(keep=0.4, query="mean"),
}


@pytest.mark.parametrize("method", BEFORE_THE_DECODER.values(), ids=BEFORE_THE_DECODER)
@pytest.mark.parametrize(
    ("family", "attention"), [pair for pair in PAIRS if pair[0] in ("paligemma", "paligemma2")]
)
def test_pre_lm_methods_equal_the_oracle(family: str, attention: str, method: Any, support: Any) -> None:
    """Towers without a class token, images before all text."""
    model, inputs = families.model(family, attention=attention), families.batch(family, *BATCHES["ragged"])
    with torch.inference_mode():
        worst = max(
            prefill_difference(family, model, inputs, method),
            decode_difference(family, model, inputs, method),
        )
        with compressed(model, method) as run:
            model(**inputs)
            assert {len(kept) for kept in run.stages[0].kept_in_image} == {EXACT_COUNT.get(method.keep, 4)}
    support(family, "pre-LM", worst)
    assert worst < TOLERANCE


EXACT_COUNT = {0.4: 10}  # of 25


@every_method
def test_a_static_cache_decodes_alike(method: Any) -> None:
    model, inputs = prepared("llava", *BATCHES["ragged"])
    with torch.inference_mode():
        assert decode_difference("llava", model, inputs, method, cache_implementation="static") < TOLERANCE


@every_method
def test_a_ragged_batch_equals_each_sample_alone(method: Any) -> None:
    case = FAMILIES["llava"]
    samples = case.samples([1, 2, 0], [9, 4, 12])
    model = families.model("llava")
    with torch.inference_mode():
        together, kept = run_once(model, method, case.collate(samples))
        for row, sample in enumerate(samples):
            if not sample.pictures:
                continue
            alone, kept_alone = run_once(model, method, case.collate([sample]))
            padding = together.shape[1] - alone.shape[1]
            assert torch.equal(kept[row] - padding, kept_alone[0])
            assert (together[row, padding:] - alone[0]).abs().max() < TOLERANCE


def run_once(model: Any, method: Any, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    """Logits, and kept positions of each sample."""
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with compressed(model, method) as run:
        logits = model(**inputs).logits
        return logits * inputs["attention_mask"][..., None], run.kept


@every_method
def test_gradients_flow_as_through_the_oracle(method: Any) -> None:
    model, inputs = prepared("llava", [1, 2, 0], [9, 5, 12])
    labels = text_labels(inputs)
    with compressed(model, method) as run, watched(model) as seen:
        logits = model(**inputs, use_cache=False).logits
        found = decisions(run, families.visual("llava", inputs))
    ours = gradients(model, logits, labels)
    if isinstance(method, foveal.ToMe | foveal.Downsample):
        seen.features = [features.detach() for features in seen.features]  # the unmodified tower makes others
    else:
        with watched(model) as plain:
            model(**inputs)
        seen.features, seen.class_tokens = plain.features, plain.class_tokens
    logits = reference(model, inputs, found, seen, method)
    theirs = gradients(model, logits, labels)
    assert ours.keys() >= theirs.keys()
    for name, gradient in theirs.items():
        assert ours[name].isfinite().all(), name
        assert (ours[name] - gradient).abs().max() < 1e-8 * (1 + gradient.abs().max()), name
    for part in ("multi_modal_projector", "layers.0.", "layers.5.", "lm_head"):
        assert any(part in name and gradient.any() for name, gradient in ours.items()), part


def text_labels(inputs: Inputs) -> Tensor:
    """Labels on the last two words."""
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -2:] = inputs["input_ids"][:, -2:]
    return labels


def gradients(model: Any, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Of the loss in full precision; the library's own rounds to float32."""
    model.zero_grad(set_to_none=True)
    cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_keeping_all_is_the_plain_model_bit_for_bit(name: str) -> None:
    model, inputs = prepared("llava", *BATCHES["ragged"])
    with torch.inference_mode():
        plain = model(**inputs).logits
        for keep in (1.0, 25):
            options = {key: value for key, value in OPTIONS[name][0].items() if key == "layers"}
            with compressed(model, foveal.get(name, keep=keep, **options)) as run:
                assert torch.equal(model(**inputs).logits, plain)
                assert [len(kept) for kept in run.kept] == [25, 50, 0]


@every_method
def test_leaving_the_block_restores_the_model(method: Any) -> None:
    model, inputs = prepared("llava", *BATCHES["ragged"])
    before = fingerprint(model)
    with torch.inference_mode():
        plain = model(**inputs).logits
        with compressed(model, method):
            assert fingerprint(model) != before
            model(**inputs)
        assert fingerprint(model) == before
        assert torch.equal(model(**inputs).logits, plain)
        with pytest.raises(RuntimeError, match="inside"), compressed(model, method):
            raise RuntimeError("inside")
        assert fingerprint(model) == before


def fingerprint(model: Any) -> list[Any]:
    """Everything a hook or a replaced attribute would change."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [
        (
            name,
            sorted(vars(module)),
            [list(getattr(module, hook)) for hook in hooks],
            id(getattr(module, "config", 0)),
        )
        for name, module in model.named_modules()
    ]


@every_method
def test_the_same_seed_chooses_the_same_tokens(method: Any) -> None:
    case, model = FAMILIES["llava"], families.model("llava")
    inputs = case.inputs([1, 2, 0], [9, 4, 12])
    with torch.inference_mode():
        torch.manual_seed(1)
        first, kept = run_once(model, method, dict(inputs))
        torch.manual_seed(2)
        second, again = run_once(model, method, dict(inputs))
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


@every_method
def test_sources_say_what_kept_tokens_stand_for(method: Any) -> None:
    model, inputs = prepared("llava", *BATCHES["ragged"])
    with torch.inference_mode(), compressed(model, method) as run:
        model(**inputs)
        stages = run.stages
    for stage in stages:
        assert stage.sources is not None
        for places, weights in zip(stage.kept_in_image, stage.sources, strict=True):
            assert weights.shape == (len(places), 25)
            assert (places.diff() > 0).all()
            assert weights.isfinite().all()


@pytest.mark.parametrize(
    "methods",
    [
        [foveal.get("visionzip", keep=12), foveal.get("fastv", keep=4, layer=3)],
        [foveal.get("divprune", keep=12), foveal.get("sparsevlm", keep=4, layers=(1, 3))],
        [foveal.get("trim", keep=12), foveal.get("pyramiddrop", keep=4, layers=(1, 3, 4))],
        [foveal.get("dart", keep=12, layer=1), foveal.get("pumer", keep=4, layers=(2, 4))],
    ],
    ids=lambda methods: "+".join(method.card.name for method in methods),
)
def test_methods_compose(methods: list[Any]) -> None:
    model, inputs = prepared("llava", *BATCHES["ragged"])
    with torch.inference_mode():
        assert prefill_difference("llava", model, inputs, methods) < TOLERANCE
        assert decode_difference("llava", model, inputs, methods) < TOLERANCE
    with torch.inference_mode(), compressed(model, methods) as run:
        model(**inputs)
        assert run.stages[-1].sources is not None
        assert [tuple(s.shape) for s in run.stages[-1].sources] == [(4, 25)] * 3


def test_a_packed_cache_goes_on_under_another_method() -> None:
    model, inputs = prepared("llava", *BATCHES["ragged"])
    first = foveal.PyramidDrop(keep=5, layers=(1, 3))
    later = torch.full((3, 3), families.FIRST_TEXT + 4)
    mask = pad(inputs["attention_mask"], (0, 3), value=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        with foveal.compress(model, first) as run:
            cache = model(**inputs, use_cache=True).past_key_values
            found = decisions(run, families.visual("llava", inputs))
        with foveal.compress(model, [foveal.Random(keep=1.0, layer=0), foveal.FastV(keep=1.0, layer=1)]):
            second = model(
                input_ids=later, attention_mask=mask, position_ids=positions[:, -3:], past_key_values=cache
            ).logits
        whole = {
            "input_ids": torch.cat([inputs["input_ids"], later], dim=1),
            "attention_mask": mask,
            "position_ids": positions,
            "pixel_values": inputs["pixel_values"],
        }
        with decided(model, mask, found):
            oracle = model(**whole, use_cache=False).logits[:, -3:]
    assert (second - oracle).abs().max() < TOLERANCE


@every_method
@pytest.mark.parametrize("which", [[0, 1], [1], [2], [0, 1, 2]], ids=str)
def test_images_that_the_mask_hides_whole(method: Any, which: list[int]) -> None:
    """As if they were not there: the others' logits do not change, and nothing is NaN."""
    model, inputs = prepared("llava", [1, 1, 1], [9, 6, 12])
    visual = families.visual("llava", inputs)
    for sample in which:
        inputs["attention_mask"][sample, visual[sample]] = 0
    with torch.inference_mode():
        with compressed(model, method):
            logits = model(**inputs).logits
        plain = model(**inputs).logits
    text = inputs["attention_mask"].bool() & ~visual
    assert logits[text].isfinite().all()
    hidden = torch.zeros(3, dtype=torch.bool)
    hidden[which] = True
    assert (logits - plain)[text & hidden[:, None]].abs().max() < TOLERANCE
    if len(which) < 3:
        assert (logits - plain)[text & ~hidden[:, None]].abs().max() > 1e-5


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(method: Any, dtype: torch.dtype) -> None:
    model = families.FAMILIES["llava"].build(6, "sdpa").to(dtype)
    inputs = families.batch("llava", *BATCHES["ragged"])
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with torch.inference_mode(), compressed(model, method) as run:
        logits = model(**inputs).logits
        assert logits[inputs["attention_mask"].bool()].isfinite().all()
        assert all(len(kept) for kept in run.stages[-1].kept_in_image)


@every_method
def test_autocast(method: Any) -> None:
    model, inputs = prepared("llava", *BATCHES["ragged"])
    model = families.FAMILIES["llava"].build(6, "sdpa").float()
    inputs["pixel_values"] = inputs["pixel_values"].float()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), compressed(model, method) as run:
        logits = model(**inputs).logits
        alive = inputs["attention_mask"].bool()
        assert logits[alive].isfinite().all()
        assert all(len(kept) for kept in run.stages[-1].kept_in_image)


@every_method
def test_a_second_turn_goes_on(method: Any) -> None:
    """Text behind a compressed prompt, several rows at once, against the oracle on the whole."""
    model, inputs = prepared("llava", *BATCHES["ragged"])
    later = torch.randint(
        families.FIRST_TEXT, families.VOCABULARY, (3, 4), generator=torch.Generator().manual_seed(5)
    )
    with torch.inference_mode():
        with compressed(model, method) as run, watched(model) as seen:
            first = model(**inputs, use_cache=True)
            found = decisions(run, families.visual("llava", inputs))
            mask = pad(inputs["attention_mask"], (0, 4), value=1)
            positions = (mask.cumsum(1) - 1)[:, -4:]
            second = model(
                input_ids=later,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=first.past_key_values,
            ).logits
        whole = {
            "input_ids": torch.cat([inputs["input_ids"], later], dim=1),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
            "pixel_values": inputs["pixel_values"],
        }
        oracle = reference(model, whole, found, seen, method)[:, -4:]
    assert (second - oracle).abs().max() < TOLERANCE
