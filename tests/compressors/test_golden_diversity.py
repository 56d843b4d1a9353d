"""DivPrune and CDPruner against what the official implementations picked, and what the clean rules promise."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import foveal
from foveal.compressors.cdpruner import CDPruner
from foveal.compressors.context import TokenContext, TowerContext, VisualLayout
from foveal.compressors.divprune import DivPrune

pytestmark = pytest.mark.usefixtures("inference")

GOLDEN = Path(__file__).parent.parent / "golden"
DIVPRUNE = [("n64", 125), ("n64", 250), ("n64", 500), ("n25", 100), ("n25", 300), ("n25", 500), ("n25", 900)]
CDPRUNER = [("n64b2", 8), ("n64b2", 16), ("n64b2", 32), ("n576lowrank", 16)]


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return {name: np.load(GOLDEN / f"{name}.npz") for name in ("divprune", "cdpruner")}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def token_context(samples: Sequence[Sequence[Tensor]]) -> TokenContext:
    """Samples of some images each, two rows of text around every image, padded on the right with rows of text."""
    images = [image for sample in samples for image in sample]
    width = images[0].shape[1]
    row_count = max(sum(len(image) + 2 for image in sample) for sample in samples) + 2
    hidden = draw(99, len(samples), row_count, width).to(images[0]) * 10
    numbers = torch.full(hidden.shape[:2], -1)
    number = 0
    for index, sample in enumerate(samples):
        row = 2
        for image in sample:
            hidden[index, row : row + len(image)] = image
            numbers[index, row : row + len(image)] = number
            number, row = number + 1, row + len(image) + 2
    return TokenContext(
        hidden=hidden,
        layout=VisualLayout.of(numbers, tuple(len(image) for image in images)),
        visual=numbers >= 0,
        prompt=torch.ones_like(numbers, dtype=torch.bool),
        observed=None,
        final_norm=torch.nn.Identity(),
        whole_lengths=tuple(len(image) for image in images),
    )


def picks(selection: foveal.Selection) -> list[list[int]]:
    """The picking order of every image, read from the scores."""
    assert selection.scores is not None
    assert selection.counts == tuple(selection.kept.sum(dim=1).tolist())
    order = selection.scores.argsort(dim=1, descending=True, stable=True)
    orders = [row[:count].tolist() for row, count in zip(order, selection.counts, strict=True)]
    assert [sorted(row) for row in orders] == [row.nonzero()[:, 0].tolist() for row in selection.kept]
    return orders


# DivPrune


@pytest.mark.parametrize(("name", "ratio"), DIVPRUNE)
def test_divprune_parity(golden: dict[str, Any], dtype: torch.dtype, name: str, ratio: int) -> None:
    tokens = torch.tensor(golden["divprune"][f"{name}_x"]).to(dtype)
    selection = DivPrune(keep=ratio / 1000, parity=True).select(token_context([[tokens]]))
    assert picks(selection) == [golden["divprune"][f"{name}_r{ratio}_order"].tolist()]


def test_divprune_rounds_a_half_up_unless_parity_is_asked(golden: dict[str, Any]) -> None:
    context = token_context([[torch.tensor(golden["divprune"]["n25_x"])]])  # 2.5 tokens, 12.5 tokens
    for keep, official, clean in ((0.1, 2, 3), (0.5, 12, 13), (0.01, 1, 1)):
        assert DivPrune(keep=keep, parity=True).select(context).counts == (official,)
        assert DivPrune(keep=keep).select(context).counts == (clean,)
    order = golden["divprune"]["n25_r300_order"].tolist()
    assert picks(DivPrune(keep=0.1).select(context)) == [order[:3]]
    assert picks(DivPrune(keep=7, parity=True).select(context)) == [order[:7]]


def test_divprune_treats_every_image_of_a_batch_alone(golden: dict[str, Any], dtype: torch.dtype) -> None:
    data = golden["divprune"]
    wide = torch.tensor(data["n64_x"]).to(dtype)
    narrow = torch.cat([torch.tensor(data["n25_x"]), torch.zeros(25, 4)], dim=1).to(dtype)
    context = token_context([[wide], [narrow, wide.flip(0)], [draw(3, 9, 16).to(dtype)]])
    orders = picks(DivPrune(keep=8).select(context))
    assert orders[0] == data["n64_r125_order"].tolist()
    assert orders[1] == data["n25_r300_order"].tolist()
    assert orders[2] == [63 - token for token in orders[0]]
    fractions = picks(DivPrune(keep=0.5).select(context))
    assert fractions[0] == data["n64_r500_order"].tolist()
    assert [len(order) for order in fractions] == [32, 13, 32, 5]


def test_divprune_keeps_exactly_the_count_down_to_one_and_up_to_all() -> None:
    context = token_context([[draw(0, 12, 5)], [draw(1, 20, 5)]])
    for keep in (1, 2, 11, 12):
        assert [len(order) for order in picks(DivPrune(keep=keep).select(context))] == [keep, keep]
    everything = DivPrune(keep=1.0).select(context)
    assert everything.counts == (12, 20)
    assert torch.equal(everything.kept, context.layout.valid)
    assert everything.mix is None
    with pytest.raises(foveal.FovealError, match="keep=13 is more than the 12 visual tokens of image 0"):
        DivPrune(keep=13).select(context)


def test_divprune_survives_equal_zero_and_half_precision_tokens() -> None:
    for image in (torch.ones(10, 4), torch.zeros(10, 4), draw(0, 10, 4).half() * 3e4):
        selection = DivPrune(keep=6).select(token_context([[image]]))
        assert [len(order) for order in picks(selection)] == [6]
        assert selection.scores is not None
        assert selection.scores.isfinite().all()


def test_divprune_compares_half_precision_tokens_in_float32(golden: dict[str, Any]) -> None:
    tokens = torch.tensor(golden["divprune"]["n64_x"]).bfloat16()
    short, wide = (picks(DivPrune(keep=40).select(token_context([[x]]))) for x in (tokens, tokens.float()))
    assert short == wide


def test_divprune_covers_every_cluster_before_it_takes_a_second_of_one() -> None:
    centres = torch.eye(6, dtype=torch.float64)
    image = centres.repeat_interleave(4, dim=0) + 0.01 * draw(2, 24, 6)
    order = picks(DivPrune(keep=6).select(token_context([[image]])))[0]
    assert sorted(token // 4 for token in order) == [0, 1, 2, 3, 4, 5]


def test_divprune_stands_in_front_of_the_decoder_unless_told_otherwise() -> None:
    method = DivPrune(keep=4)
    assert (method.layer, method.positions) == (0, "packed")
    assert (DivPrune(keep=4, layer=3).layer, DivPrune(keep=4, positions="original").positions) == (
        3,
        "original",
    )


# CDPruner


def cdpruner_data(golden: dict[str, Any], name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features, image embeds, and (images, texts, shared) text embeds."""
    features, image, text = (
        torch.tensor(golden["cdpruner"][f"{name}_{part}"]).to(dtype)
        for part in ("features", "image_embeds", "text_embeds")
    )
    return features, image, text.expand(len(features), -1, -1)


@pytest.mark.parametrize(("name", "count"), CDPRUNER)
def test_cdpruner_parity(golden: dict[str, Any], dtype: torch.dtype, name: str, count: int) -> None:
    features, image, text = cdpruner_data(golden, name, dtype)
    method = CDPruner(keep=count, parity=True)
    relevance = method.relevance(image, text)
    tolerance = {"rtol": 1e-12} if dtype == torch.float64 else {"atol": 1e-5}
    np.testing.assert_allclose(relevance, golden["cdpruner"][f"{name}_relevance"], **tolerance)
    selection = method.pick(features, relevance)
    assert picks(selection) == golden["cdpruner"][f"{name}_T{count}_order"].tolist()
    kept = [row.nonzero()[:, 0].tolist() for row in selection.kept]
    assert kept == golden["cdpruner"][f"{name}_T{count}_kept"].tolist()


def test_cdpruner_of_one_image_is_the_official_one(golden: dict[str, Any], dtype: torch.dtype) -> None:
    features, image, text = cdpruner_data(golden, "n576lowrank", dtype)
    method = CDPruner(keep=16)
    selection = method.pick(features, method.relevance(image, text))
    assert picks(selection) == golden["cdpruner"]["n576lowrank_T16_order"].tolist()


def tower_context(features: Tensor, image: Tensor, text: Tensor, images: slice = slice(None)) -> TowerContext:
    side = int(features.shape[1] ** 0.5)
    return TowerContext(
        features=features[images],
        grid=(side, features.shape[1] // side),
        image_embeds=image[images],
        text_embeds=text[images],
    )


def test_cdpruner_chooses_by_each_images_own_question(golden: dict[str, Any], dtype: torch.dtype) -> None:
    features, image, texts = cdpruner_data(golden, "n64b2", dtype)
    text = texts[0, :2]  # another question for the second image
    method = CDPruner(keep=20)
    chosen = method.choose(tower_context(features, image, text))
    assert picks(chosen) == picks(method.pick(features, method.relevance(image, text[:, None])))
    swapped = method.choose(tower_context(features, image, text.flip(0)))
    assert picks(swapped)[0] != picks(chosen)[0]
    # Not normalised, as the tower hands them over: lengths do not matter.
    longer = method.choose(tower_context(features * 3, image * 8, text / 7))
    assert torch.equal(longer.kept, chosen.kept)


def test_cdpruner_treats_every_image_alone_unless_parity_is_asked(golden: dict[str, Any]) -> None:
    features, image, texts = cdpruner_data(golden, "n64b2", torch.float64)
    image = image.clone()
    image[1] = image[1] * 0.05 + texts[0, 0]  # an image far more like the question than the other
    everything = (features, image, texts[:, 0])
    for keep in (1, 20, 0.25):
        clean = picks(CDPruner(keep=keep).choose(tower_context(*everything)))
        alone = [
            picks(CDPruner(keep=keep).choose(tower_context(*everything, slice(i, i + 1))))[0] for i in (0, 1)
        ]
        assert clean == alone
    official = CDPruner(keep=20, parity=True)
    whole = picks(official.choose(tower_context(*everything)))
    assert whole != [picks(official.choose(tower_context(*everything, slice(i, i + 1))))[0] for i in (0, 1)]


def test_cdpruner_keeps_exactly_the_count_beyond_the_rank(golden: dict[str, Any], dtype: torch.dtype) -> None:
    features, image, text = cdpruner_data(golden, "n576lowrank", dtype)
    context = tower_context(features, image, text[:, 0])  # rank 24
    for keep in (1, 24, 25, 64, 300, 576):
        selection = CDPruner(keep=keep).choose(context)
        assert [len(order) for order in picks(selection)] == [keep]
        assert selection.scores is not None
        assert selection.scores.isfinite().all()
    method = CDPruner(keep=64)
    relevance = method.relevance(image, text[:, :1])[0]
    rest = picks(method.choose(context))[0][24:]
    assert all(relevance[a] >= relevance[b] for a, b in pairwise(rest))
    everything = CDPruner(keep=1.0).choose(context)
    assert everything.kept.all()
    assert everything.mix is None
    with pytest.raises(foveal.FovealError, match="keep=577 is more than the 576 visual tokens"):
        CDPruner(keep=577).choose(context)


def test_cdpruner_ranking_says_which_sign(golden: dict[str, Any]) -> None:
    text = torch.tensor([[1.0, 0, 0]])
    image = torch.tensor([[[1.0, 0, 0], [0.6, 0.8, 0], [0, 1, 0], [-1, 0, 0]]])
    expected = torch.tensor([[1.0, 0.8, 0.5, 0]])
    paper = CDPruner(keep=1, ranking="paper").relevance(image, text[:, None])
    torch.testing.assert_close(paper, expected, atol=1e-6, rtol=0)
    released = CDPruner(keep=1).relevance(image, text[:, None])
    torch.testing.assert_close(released, 1 - expected, atol=1e-6, rtol=0)
    with pytest.raises(foveal.FovealError, match="ranking='best' is neither \"released\""):
        CDPruner(keep=1, ranking="best")  # type: ignore[arg-type]


def test_cdpruner_survives_patches_that_are_all_alike() -> None:
    features = draw(0, 2, 16, 8)
    for image in (torch.ones(2, 16, 4), torch.zeros(2, 16, 4), draw(1, 1, 1, 4).float().expand(2, 16, 4)):
        for method in (CDPruner(keep=10), CDPruner(keep=10, parity=True)):
            assert method.relevance(image, image[:, :1]).isfinite().all()
            context = tower_context(features.half(), image.half(), image[:, 0].half())
            assert [len(order) for order in picks(method.choose(context))] == [10, 10]


def test_cdpruner_compares_half_precision_features_in_float32(golden: dict[str, Any]) -> None:
    half = [part.bfloat16() for part in cdpruner_data(golden, "n64b2", torch.float32)]
    wide = [part.float() for part in half]
    method = CDPruner(keep=40)
    assert torch.equal(method.relevance(half[1], half[2]), method.relevance(wide[1], wide[2]))
    relevance = method.relevance(wide[1], wide[2])
    assert picks(method.pick(half[0], relevance)) == picks(method.pick(wide[0], relevance))
