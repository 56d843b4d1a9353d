"""DART and FastV against what the official implementations kept and computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import foveal
from support import golden
from support.golden import IMAGE

RATIOS = {"r889": 0.889, "r778": 0.778, "r667": 0.667, "r500": 0.5}


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return golden.load("dart", "fastv_orig", "inputs")


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def model(request: pytest.FixtureRequest) -> Any:
    return golden.llama(request.param)


def run(model: Any, embeds: np.ndarray, method: foveal.Compressor) -> tuple[np.ndarray, torch.Tensor, Any]:
    """Kept positions of sample 0 (text and image), logits, and the run."""
    logits, record = golden.compressed(model, embeds, method)
    text = [*range(IMAGE.start), *range(IMAGE.stop, embeds.shape[1])]
    kept = torch.cat([torch.tensor(text), record.kept[0]]).sort().values
    return kept.numpy(), logits, record


def assert_logits(logits: torch.Tensor, kept: np.ndarray, rows: np.ndarray, expected: np.ndarray) -> None:
    tolerance = 1e-6 if logits.dtype == torch.float64 else 1e-4
    np.testing.assert_allclose(logits[kept[rows]].double().numpy(), expected, atol=tolerance, rtol=0)


def test_the_plain_backbone_matches(model: Any, data: dict[str, Any]) -> None:
    with torch.no_grad():
        logits = model(inputs_embeds=torch.tensor(data["inputs"]["c0"]).to(model.dtype)).logits[0, -16:]
    tolerance = 1e-6 if model.dtype == torch.float64 else 1e-4
    np.testing.assert_allclose(
        logits.double().numpy(), data["dart"]["c0_dense_logits_last16"], atol=tolerance
    )


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("case", ["c0", "c1"])
def test_dart_parity(model: Any, data: dict[str, Any], case: str, ratio: str) -> None:
    golden, name = data["dart"], f"{case}_{ratio}"
    method = foveal.DART(keep=1 - RATIOS[ratio], layer=2, parity=True)
    kept, logits, _ = run(model, data["inputs"][case], method)
    np.testing.assert_array_equal(kept, golden[f"{name}_kept"])
    assert_logits(logits, kept, golden[f"{name}_logit_rows"], golden[f"{name}_logits"])


@pytest.mark.parametrize("case", ["c0", "c1"])
def test_dart_parity_by_count_as_upstream(model: Any, data: dict[str, Any], case: str) -> None:
    kept, _, _ = run(model, data["inputs"][case], foveal.DART(keep=128, layer=2, parity=True))
    image = kept[(kept >= IMAGE.start) & (kept < IMAGE.stop)]
    np.testing.assert_array_equal(image, data["dart"][f"{case}_upstream_trunc128_kept_image"])


def test_dart_clean_keeps_the_exact_count_and_the_same_image_pivots(model: Any, data: dict[str, Any]) -> None:
    kept, _, _ = run(model, data["inputs"]["c0"], foveal.DART(keep=64, layer=2))
    assert len(kept) - (635 - 576) == 64
    assert set(data["dart"]["c0_r889_pivot_image"].tolist()) <= set(kept.tolist())
    official = set(data["dart"]["c0_r889_kept_image"].tolist())
    assert len(official & set(kept.tolist())) / len(official) > 0.85


@pytest.mark.parametrize("rounding", ["round", "int"])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("case", ["c0", "c1"])
def test_fastv(model: Any, data: dict[str, Any], case: str, ratio: str, rounding: str) -> None:
    golden, name = data["fastv_orig"], f"{case}_{ratio}_{rounding}"
    share = 576 * (1 - RATIOS[ratio])
    keep = round(share) if rounding == "round" else int(share)
    kept, logits, record = run(model, data["inputs"][case], foveal.FastV(keep=keep, layer=2))
    np.testing.assert_array_equal(kept, golden[f"{name}_kept"])
    assert_logits(logits, kept, golden[f"{name}_logit_rows"], golden[f"{name}_logits"])
    tolerance = 1e-9 if model.dtype == torch.float64 else 1e-4
    np.testing.assert_allclose(record.stages[0].scores[0], golden[f"{case}_scores"], atol=tolerance * 1e-2)
