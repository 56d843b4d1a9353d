"""No mask where none is needed: backends then take their causal kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

import foveal
from support import families
from support.exactness import generate

pytestmark = pytest.mark.usefixtures("inference")

METHODS = {
    "dart": foveal.DART(keep=5),
    "dart, packed": foveal.DART(keep=5, positions="packed"),
    "pyramiddrop": foveal.PyramidDrop(keep=5, layers=(1, 3)),
    "visionzip": foveal.VisionZip(keep=5),
}
ONE, FOUR, RAGGED = ([1], [9]), ([1] * 4, [9] * 4), ([1, 2, 0], [9, 4, 12])
LAYERS = 6


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Any, bool]]:
    """Of each causal attention: queries, mask, and whether the kernel itself is causal."""
    seen: list[tuple[int, Any, bool]] = []
    original = functional.scaled_dot_product_attention

    def noting(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        if query.shape[1] == 4:  # the decoder's heads
            seen.append((query.shape[2], kwargs.get("attn_mask"), kwargs.get("is_causal", False)))
        return original(query, key, value, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", noting)
    return seen


@pytest.mark.parametrize("batch", [ONE, FOUR], ids=["batch 1", "batch 4"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_equal_samples_need_none(method: Any, batch: Any, calls: Any) -> None:
    model, inputs = families.model("llava", LAYERS), families.batch("llava", *batch)
    with foveal.compress(model, method):
        generate(model, inputs, max_new_tokens=3)
    assert len(calls) == 3 * LAYERS
    assert all(mask is None for _, mask, _ in calls)
    assert [causal for _, _, causal in calls] == [True] * LAYERS + [False] * 2 * LAYERS
    assert calls[LAYERS - 1][0] < inputs["input_ids"].shape[1]


def test_ragged_samples_need_one(calls: Any) -> None:
    model, inputs = families.model("llava", LAYERS), families.batch("llava", *RAGGED)
    with foveal.compress(model, METHODS["dart"]):
        model(**inputs)
    assert all(mask is not None and not causal for _, mask, causal in calls)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_flash_is_told_neither_mask_nor_positions(method: Any) -> None:
    """It would read either on the host, in every layer."""
    told: list[tuple[Any, Any]] = []

    def noting(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        told.append((mask, kwargs.get("position_ids")))
        return torch.zeros_like(query).transpose(1, 2), None

    AttentionInterface.register("flash_noting", noting)
    AttentionMaskInterface.register("flash_noting", flash_attention_mask)
    model, inputs = families.FAMILIES["llava"].build(LAYERS, "sdpa"), families.batch("llava", *ONE)
    model.get_decoder().config._attn_implementation_internal = "flash_noting"
    with foveal.compress(model, method) as run:
        model(**inputs, use_cache=True)
        first = run.stages[0].layer
    assert all(mask is None for mask, _ in told)
    assert [positions is None for _, positions in told] == [layer >= first for layer in range(LAYERS)]
