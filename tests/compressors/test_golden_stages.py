"""PyramidDrop and SparseVLM against what the official implementations kept, merged and computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import foveal
from foveal.compressors.context import TokenContext, VisualLayout
from foveal.compressors.pyramiddrop import PyramidDrop
from foveal.compressors.sparsevlm import SparseVLM, rater_affinity
from support import golden
from support.golden import IMAGE

PYRAMIDS = {
    "A": PyramidDrop(keep=72, layers=[2, 4, 5]),
    "A by fractions": PyramidDrop(keep=0.125, layers=[2, 4, 5], budgets=[0.5, 0.25]),
    "B": PyramidDrop(keep=57, layers=[2, 4, 5], budgets=[0.4, 0.2]),
}
SPARSE = {"b192": (300, 200, 110), "b128": (303, 110, 36), "b64": (66, 30, 17)}


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return golden.load("pyramiddrop", "sparsevlm", "inputs")


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def model(request: pytest.FixtureRequest) -> Any:
    return golden.llama(request.param)


def run(model: Any, embeds: np.ndarray, method: foveal.Compressor) -> tuple[Tensor, Any]:
    """The logits of sample 0 and the stages."""
    logits, record = golden.compressed(model, embeds, method)
    return logits, record._hooks.last_frame.stages  # what was merged is not public


def assert_close(found: Tensor, expected: np.ndarray, double: float, single: float) -> None:
    tolerance = double if found.dtype == torch.float64 else single
    np.testing.assert_allclose(found.double().numpy(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", PYRAMIDS)
@pytest.mark.parametrize("case", ["c0", "c1"])
def test_pyramiddrop(model: Any, data: dict[str, Any], case: str, name: str) -> None:
    golden, prefix = data["pyramiddrop"], f"{case}_{name[0]}"
    logits, stages = run(model, data["inputs"][case], PYRAMIDS[name])
    alive = np.arange(576)
    for number, stage in enumerate(stages):
        scores = golden[f"{prefix}_scores_stage{number}"]
        np.testing.assert_array_equal(np.flatnonzero(~np.isnan(scores)), alive)
        assert_close(stage.selection.scores[0], scores[alive], 1e-8, 1e-6)
        alive = alive[stage.selection.kept[0].numpy()]
        np.testing.assert_array_equal(alive + IMAGE.start, golden[f"{prefix}_kept_image_stage{number}"])
    tail = golden[f"{prefix}_logits_tail"]
    behind = logits[IMAGE.stop :]
    assert_close(behind, tail[-len(behind) :], 1e-6, 1e-4)
    assert_close(logits[IMAGE][alive[-8:]], tail[:8], 1e-6, 1e-4)


@pytest.mark.parametrize("case", ["c0", "c1"])
def test_sparsevlm_raters(model: Any, data: dict[str, Any], case: str) -> None:
    golden, embeds = data["sparsevlm"], torch.tensor(data["inputs"][case]).to(model.dtype)
    visual = torch.zeros(embeds.shape[:2], dtype=torch.bool)
    visual[:, IMAGE] = True
    context = TokenContext(
        hidden=embeds,
        layout=VisualLayout.of(visual.long() - 1, (576,)),
        visual=visual,
        prompt=torch.ones_like(visual),
        observed=None,
        final_norm=torch.nn.Identity(),
        whole_lengths=(576,),
    )
    affinity, words = rater_affinity(context)
    assert words[0].nonzero()[:, 0].tolist() == list(range(IMAGE.stop, embeds.shape[1]))
    assert_close(affinity[0, IMAGE.stop :], golden[f"{case}_rater_score"], 1e-14, 1e-6)
    weights = SparseVLM(keep=64).read(context)[0]
    raters = golden[f"{case}_raters"] + IMAGE.stop
    np.testing.assert_array_equal(weights.nonzero()[:, 0].numpy(), raters)
    assert_close(weights[raters].to(model.dtype), np.full(len(raters), 1 / len(raters)), 1e-15, 1e-7)


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("case", ["c0", "c1"])
def test_sparsevlm_parity(model: Any, data: dict[str, Any], case: str, name: str) -> None:
    golden, prefix = data["sparsevlm"], f"{case}_{name}"
    *budgets, keep = SPARSE[name]
    method = SparseVLM(keep=keep, budgets=budgets, layers=[2, 3, 5], parity=True)
    logits, stages = run(model, data["inputs"][case], method)
    for number, stage in enumerate(stages):
        suffix = f"stage{number}"
        mix, scores = stage.selection.mix[0], stage.selection.scores[0]
        kept = golden[f"{prefix}_kept_{suffix}"]
        assert_close(scores, golden[f"{prefix}_scores_{suffix}"], 1e-8, 1e-6)
        np.testing.assert_array_equal(mix[: len(kept)].argmax(dim=1).numpy(), kept)
        np.testing.assert_array_equal(mix[: len(kept)].sum(dim=1).numpy(), 1)
        assert mix.shape[0] == len(kept) + golden[f"{prefix}_n_clusters_{suffix}"]

        # The official list of what is merged: the best of the dropped tokens, best first.
        dropped = np.setdiff1d(np.arange(mix.shape[1]), kept)
        pool = dropped[np.argsort(-golden[f"{prefix}_scores_{suffix}"][dropped], kind="stable")]
        pool = pool[: golden[f"{prefix}_n_merge_in_{suffix}"]]
        cluster = golden[f"{prefix}_cluster_of_{suffix}"]
        expected = np.zeros((mix.shape[0] - len(kept), mix.shape[1]))
        expected[cluster, pool] = 1 / (np.bincount(cluster)[cluster] + 1e-6)
        assert_close(mix[len(kept) :], expected, 1e-12, 1e-7)
        centers = pool[golden[f"{prefix}_cluster_center_{suffix}"]]
        slots = stage.selection.kept[0].nonzero()[:, 0].numpy()
        np.testing.assert_array_equal(slots, np.sort(np.append(kept, centers)))
    assert len(logits) - 576 + stages[-1].selection.counts[0] == golden[f"{prefix}_final_len"]
    assert_close(logits[IMAGE.stop :], golden[f"{prefix}_logits_tail"], 1e-6, 1e-4)


def test_sparsevlm_clean_counts_clusters(model: Any, data: dict[str, Any]) -> None:
    _, stages = run(model, data["inputs"]["c0"], SparseVLM(keep=64, layers=[2, 3, 5]))
    assert [stage.selection.counts for stage in stages] == [(277,), (133,), (64,)]
    # Near the official setting of the same totals, 277 = 267 + 10 for one.
    mix = stages[0].selection.mix[0]
    assert ((mix > 0).sum(dim=1) == 1).sum() >= 267
    members = (mix > 0).sum(dim=0)
    assert members.max() == 1
    assert members.sum() == 267 + int(0.3 * (576 - 267)) + 1
    torch.testing.assert_close(mix.sum(dim=1), torch.ones(277, dtype=mix.dtype))
