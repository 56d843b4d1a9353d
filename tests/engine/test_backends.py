"""Attention backends that take other masks than sdpa and eager: flash (2-D) and flex (block masks).

Neither kernel runs on a CPU in float64. A twin of flash attention with its rules (padding is cut out by the 2-D mask,
causality counts from the bottom right, sliding windows count keys, jumps in position ids mean packed samples) and flex
attention's own reference implementation stand in for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils
from transformers.integrations import flex_attention as flex_integration
from transformers.masking_utils import flash_attention_mask

import foveal
from support import families
from support.exactness import TOLERANCE, compare_decode, generate, hidden_by
from support.families import FAMILIES, SLIDING

pytestmark = pytest.mark.usefixtures("exact_softmax", "inference")

METHODS = [
    foveal.Random(keep=0.3, layer=0),
    foveal.FastV(keep=0.3, layer=1),
    foveal.DART(keep=5, layer=2),
    [foveal.Random(keep=0.6, layer=0), foveal.FastV(keep=0.5, layer=3)],
]
BATCHES = {"batch 1": ([1], [9]), "ragged": ([1, 2, 0], [9, 4, 12])}
# A prompt that sees all of itself has no 2-D mask.
FLASH = sorted(set(FAMILIES) - SLIDING - {"paligemma"})


def flash_twin(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """(batch, queries, heads, width): flash attention's result by flash attention's rules."""
    rows, keys = query.shape[2], key.shape[2]
    if attention_mask is None and position_ids is not None and len(position_ids) == 1 and rows > 1:
        assert bool((position_ids.diff() == 1).all()), "flash attention would take this for packed samples"
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    exists = (
        torch.ones(len(query), keys, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    )
    assert exists.shape[1] == keys
    place = exists.cumsum(1)  # among the keys that are left without padding
    allowed = (place[:, None] <= place[:, -rows:, None]) & exists[:, None]
    # A query that is padding has no result.
    weights = scores.masked_fill(~allowed[:, None], float("-inf")).softmax(-1).nan_to_num(0)
    return (weights @ value).transpose(1, 2), None


@contextmanager
def backend(model: Any, name: str) -> Iterator[None]:
    """Let the language model attend by another implementation."""
    layers = [layer.self_attn for layer in model.get_decoder().layers]
    configs = {id(module.config): module.config for module in [*layers, model.get_decoder()]}
    before = {key: config._attn_implementation for key, config in configs.items()}
    for config in configs.values():
        config._attn_implementation_internal = name
    try:
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


@pytest.fixture
def flash() -> str:
    AttentionInterface.register("flash_twin", flash_twin)
    AttentionMaskInterface.register("flash_twin", flash_attention_mask)
    return "flash_twin"


@pytest.fixture
def flex(monkeypatch: pytest.MonkeyPatch) -> str:
    """Flex attention without compilation, which takes a minute and knows no float64."""

    def reference(
        query: Tensor, key: Tensor, value: Tensor, training: bool = False, **options: Any
    ) -> Tensor:
        out: Tensor = flex_attention(query, key, value, **options)
        return out

    def uncompiled(*args: Any, _compile: bool = False, **kwargs: Any) -> Any:
        return create_block_mask(*args, **kwargs)

    monkeypatch.setattr(flex_integration, "compile_friendly_flex_attention", reference)
    monkeypatch.setattr(masking_utils, "create_block_mask", uncompiled)
    return "flex_attention"


def worst(family: str, name: str, methods: Any, implementation: str, **options: Any) -> float:
    """The largest difference of prefill and decode from the oracle, which runs on sdpa."""
    model = families.model(family, attention=FAMILIES[family].attentions[0])
    inputs = families.batch(family, *BATCHES[name])
    with backend(model, implementation), foveal.compress(model, methods) as run:
        out, steps = generate(model, inputs, **options)
        hidden = hidden_by(run, families.visual(family, inputs))
    return compare_decode(family, model, inputs, hidden, out.sequences, steps)


@pytest.mark.parametrize("methods", METHODS)
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("family", FLASH)
def test_flash(family: str, name: str, methods: Any, flash: str, support: Any) -> None:
    difference = worst(family, name, methods, flash)
    support(family, "flash (2-D masks)", difference)
    assert difference < TOLERANCE


@pytest.mark.parametrize("positions", ["original", "packed"])
def test_attention_that_reads_positions_keeps_them_under_flash(positions: Any, flash: str) -> None:
    """Ministral 3 scales queries by their positions, whose gaps would mean packed samples without a mask."""
    case = FAMILIES["mistral3"]
    rope = {"rope_theta": 1e4, "llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 8}
    scaled = {"model_type": "ministral3", "rope_parameters": {"rope_type": "default", **rope}}
    config = {**case.config, "text_config": {**case.config["text_config"], **scaled}}
    model = replace(case, config=config).build(4, "sdpa")
    inputs = case.inputs([1], [9])
    method = foveal.DART(keep=5, positions=positions)
    with foveal.compress(model, method):
        expected, steps = generate(model, inputs)
    with backend(model, flash), foveal.compress(model, method):
        found, flash_steps = generate(model, inputs)
    assert torch.equal(found.sequences, expected.sequences)
    assert (flash_steps - steps).abs().max() < TOLERANCE


@pytest.mark.parametrize("family", sorted(SLIDING - {"paligemma2"}))
def test_flash_counts_windows_over_kept_tokens_and_is_refused(family: str, flash: str, support: Any) -> None:
    with pytest.raises(foveal.FovealError, match="flash attention counts a sliding window over the tokens"):
        worst(family, "batch 1", METHODS[0], flash)
    support(family, "flash (2-D masks)", None)


def test_packed_samples_are_refused(flash: str) -> None:
    model, inputs = families.model("llava"), families.batch("llava", [1], [9])
    rows = inputs.pop("attention_mask").shape[1]
    inputs["position_ids"] = torch.cat([torch.arange(rows - 4), torch.arange(4)])[None]
    with (
        backend(model, flash),
        foveal.compress(model, METHODS[0]),
        pytest.raises(foveal.FovealError, match="packed sequences"),
    ):
        model(**inputs)


def test_answers_do_not_choose_the_tokens_under_flash(flash: str) -> None:
    model, inputs = families.model("llava"), families.batch("llava", [1, 1], [12, 9])
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -4:] = 1
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][:, -4:] = other["input_ids"][:, -4:].flip(1)
    kept = []
    with backend(model, flash), foveal.compress(model, foveal.FastV(keep=4)) as run:
        for each in (inputs, other):
            model(**each, labels=labels)
            kept.append(run.stages[0].scores)
    assert all(torch.equal(*pair) for pair in zip(*kept, strict=True))


def test_flash_with_a_static_cache_is_refused(flash: str) -> None:
    model, inputs = families.model("llava"), families.batch("llava", [1], [9])
    with (
        backend(model, flash),
        foveal.compress(model, METHODS[0]),
        pytest.raises(foveal.FovealError, match="no mask for the empty slots of a static cache"),
    ):
        generate(model, inputs, cache_implementation="static")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("methods", [METHODS[1], METHODS[3]])
@pytest.mark.parametrize("family", FAMILIES)
def test_flex(family: str, methods: Any, flex: str, support: Any) -> None:
    difference = worst(family, "ragged", methods, flex, max_new_tokens=2)  # the reference is slow
    support(family, "flex", difference)
    assert difference < TOLERANCE
