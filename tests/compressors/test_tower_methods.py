"""What is true of the clean rules of TRIM, PruMerge, PruMerge+ and VisionZip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from foveal import FovealError
from foveal.compressors import prumerge, towers
from foveal.compressors.base import TowerCompressor
from foveal.compressors.context import AttentionInputs, Selection, TowerContext
from foveal.compressors.prumerge import PruMerge, PruMergePlus
from foveal.compressors.selection import upper_outliers
from foveal.compressors.trim import TRIM
from foveal.compressors.visionzip import VisionZip

pytestmark = pytest.mark.usefixtures("inference")

HEADS, WIDTH, SHARED = 2, 8, 6
GRID = (6, 7)
TOKENS = GRID[0] * GRID[1]
Made = Callable[..., TowerCompressor]


def mean_prumerge(**options: Any) -> PruMerge:
    return PruMerge(query="mean", **options)


def mean_visionzip(**options: Any) -> VisionZip:
    return VisionZip(query="mean", **options)


METHODS = [TRIM, PruMerge, PruMergePlus, VisionZip, mean_prumerge, mean_visionzip]
BUDGETED = [TRIM, PruMerge, PruMergePlus, mean_prumerge]
every_method = pytest.mark.parametrize("made", METHODS)
every_budget = pytest.mark.parametrize("made", BUDGETED)


def context(
    images: int = 3,
    grid: tuple[int, int] = GRID,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    class_token: bool = True,
) -> TowerContext:
    """Random features, and attention of which each image has another number of outliers."""
    draw = torch.Generator().manual_seed(seed)
    tokens = grid[0] * grid[1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    query, key = (normal(images, HEADS, tokens + class_token, WIDTH // HEADS) for _ in range(2))
    spread = torch.arange(1, images + 1, dtype=torch.float64)
    features, text = normal(images, tokens, WIDTH), normal(images, SHARED)
    made = TowerContext(
        features=features,
        grid=grid,
        class_token=normal(images, WIDTH) if class_token else None,
        attention=AttentionInputs(
            query=query * spread[:, None, None, None], key=key, mask=None, scaling=0.5, causal=False
        ),
        image_embeds=normal(images, tokens, SHARED),
        text_embeds=text * spread[:, None] / 2,
    )
    return cast(made, dtype)


def cast(made: TowerContext, dtype: torch.dtype) -> TowerContext:
    assert made.attention is not None
    attention = replace(
        made.attention, query=made.attention.query.to(dtype), key=made.attention.key.to(dtype)
    )
    fields = {name: value.to(dtype) for name, value in vars(made).items() if isinstance(value, Tensor)}
    return replace(made, attention=attention, **fields)


def alone(made: TowerContext, image: int) -> TowerContext:
    assert made.attention is not None
    one = slice(image, image + 1)
    attention = replace(made.attention, query=made.attention.query[one], key=made.attention.key[one])
    fields = {name: value[one] for name, value in vars(made).items() if isinstance(value, Tensor)}
    return replace(made, attention=attention, **fields)


def check_shape(selection: Selection, tokens: int) -> None:
    """Slots, counts and rows of the mix agree; nothing stands beyond an image's count."""
    assert selection.counts is not None
    assert selection.kept.sum(dim=1).tolist() == list(selection.counts)
    assert selection.scores is not None
    assert selection.scores.shape == selection.kept.shape
    if selection.mix is None:
        assert selection.kept.all()
        return
    assert selection.mix.shape[:2] == (len(selection.counts), max(selection.counts))
    assert selection.mix.shape[2] in (tokens, tokens + 1)
    assert selection.mix.isfinite().all()
    for row, count in zip(selection.mix, selection.counts, strict=True):
        assert row[:count].any(dim=1).all()
        assert not row[count:].any()


@every_method
@pytest.mark.parametrize(
    ("keep", "count"),
    [(1, 1), (2, 2), (5, 5), (12, 12), (TOKENS - 1, 41), (0.25, 11), (0.001, 1), (0.97, 41)],
)
def test_exactly_keep_tokens(made: Made, keep: int | float, count: int) -> None:
    selection = made(keep=keep).choose(context())
    assert selection.counts == (count,) * 3
    assert selection.mix is not None
    check_shape(selection, TOKENS)


@every_method
@pytest.mark.parametrize("keep", [TOKENS, 1.0])
def test_keeping_all_changes_nothing(made: Made, keep: int | float) -> None:
    selection = made(keep=keep).choose(context())
    assert selection.kept.all()
    assert selection.counts == (TOKENS,) * 3
    assert selection.mix is None


@every_method
def test_more_than_all_is_refused(made: Made) -> None:
    with pytest.raises(FovealError, match="keep=43"):
        made(keep=43).choose(context())


@settings(max_examples=60)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    images=st.integers(1, 3),
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_any_grid_and_any_count(rows: int, columns: int, images: int, data: st.DataObject, seed: int) -> None:
    tokens = rows * columns
    made = data.draw(st.sampled_from(METHODS))
    keep = data.draw(st.integers(1, tokens))
    selection = made(keep=keep).choose(context(images, (rows, columns), seed))
    assert selection.counts == (keep,) * images
    check_shape(selection, tokens)
    if made in BUDGETED:
        check_shape(made(keep="auto").choose(context(images, (rows, columns), seed)), tokens)


@every_method
@pytest.mark.parametrize("keep", [1, 12, "auto"])
def test_an_image_does_not_depend_on_its_batch(made: Made, keep: Any) -> None:
    if keep == "auto" and made not in BUDGETED:
        with pytest.raises(FovealError, match="auto"):
            made(keep="auto")
        return
    whole = made(keep=keep).choose(context())
    assert whole.counts is not None
    assert whole.mix is not None
    for image, count in enumerate(whole.counts):
        single = made(keep=keep).choose(alone(context(), image))
        assert single.counts == (count,)
        assert single.mix is not None
        torch.testing.assert_close(whole.mix[image, :count], single.mix[0], rtol=0, atol=1e-12)
        assert torch.equal(whole.kept[image], single.kept[0])


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_float32_in_half_precision(made: Made, dtype: torch.dtype) -> None:
    selection = made(keep=12).choose(context(dtype=dtype))
    check_shape(selection, TOKENS)
    assert selection.mix is not None
    assert selection.mix.dtype == torch.float32


@every_method
def test_a_blank_image_is_no_special_case(made: Made) -> None:
    blank = context()
    assert blank.attention is not None
    fields = {
        name: torch.zeros_like(value) for name, value in vars(blank).items() if isinstance(value, Tensor)
    }
    key = torch.zeros_like(blank.attention.key)
    blank = replace(blank, attention=replace(blank.attention, key=key), **fields)
    check_shape(made(keep=12).choose(blank), TOKENS)
    if made in BUDGETED:
        selection = made(keep="auto").choose(blank)
        check_shape(selection, TOKENS)
        assert selection.counts == ((5,) if made is PruMergePlus else (2,)) * 3


@every_method
def test_nothing_waits_for_the_device_except_an_automatic_budget(made: Made) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        real = context()
        assert real.attention is not None
        attention = replace(
            real.attention,
            **{name: mode.from_tensor(getattr(real.attention, name)) for name in ("query", "key")},
        )
        fields = {
            name: mode.from_tensor(value) for name, value in vars(real).items() if isinstance(value, Tensor)
        }
        fake = replace(real, attention=attention, **fields)
        made(keep=12).choose(fake)
        if made in BUDGETED:
            with pytest.raises(DataDependentOutputException):
                made(keep="auto").choose(fake)


@pytest.mark.parametrize("made", [TRIM, PruMerge, PruMergePlus])
def test_kept_patches_stand_in_raster_order_and_the_extra_token_is_last(made: Made) -> None:
    selection = made(keep=12).choose(context())
    assert selection.mix is not None
    for mix in selection.mix:
        own = mix[:-1].argmax(dim=1).tolist()
        assert own == sorted(set(own))
        rest = set(range(TOKENS)) - set(own)
        assert set(mix[-1].nonzero()[:, 0].tolist()) == rest


@every_budget
def test_an_automatic_budget_is_the_outliers_of_each_image(made: Made) -> None:
    whole = context(seed=3)
    selection = made(keep="auto").choose(whole)
    assert selection.scores is not None
    assert selection.mix is not None
    assert selection.counts is not None
    assert len(set(selection.counts)) > 1  # or the test says little
    outliers = upper_outliers(selection.scores, torch.ones_like(selection.kept))
    each = 4 if made is PruMergePlus else 1
    for image, count in enumerate(selection.counts):
        found = set(outliers[image].nonzero()[:, 0].tolist())
        own = set(selection.mix[image, : count - 1].argmax(dim=1).tolist())
        assert count == each * max(1, len(found)) + 1
        assert found <= own


def test_trim_by_hand() -> None:
    """Four patches whose cosine and dot product rank them differently."""
    embeds = torch.tensor([[[1.0, 0.0], [4.0, 4.0], [-1.0, 0.0], [0.5, 3.0]]])
    made = TowerContext(
        features=torch.eye(4)[None], grid=(2, 2), image_embeds=embeds, text_embeds=torch.tensor([[2.0, 0.0]])
    )
    released = TRIM(keep=2).choose(made)  # dot products 2, 8, -2, 1
    assert released.mix is not None
    torch.testing.assert_close(
        released.mix[0], torch.tensor([[0, 0, 1, 0], [1, 1, 0, 1]]) / torch.tensor([[1], [3]])
    )
    assert released.kept[0].tolist() == [False, False, True, True]
    paper = TRIM(keep=2, ranking="paper").choose(made)  # cosines 1, 0.71, -1, 0.16
    assert paper.mix is not None
    torch.testing.assert_close(
        paper.mix[0], torch.tensor([[1, 0, 0, 0], [0, 1, 1, 1]]) / torch.tensor([[1], [3]])
    )
    assert TRIM(keep=1).choose(made).mix.tolist() == [[[0.25] * 4]]  # type: ignore[union-attr]


def test_trim_ranks_where_the_soft_max_underflows() -> None:
    embeds = torch.tensor([[[-900.0], [-1.0], [-300.0], [-200.0]]])
    made = TowerContext(
        features=torch.eye(4)[None], grid=(2, 2), image_embeds=embeds, text_embeds=torch.ones(1, 1)
    )
    selection = TRIM(keep=3).choose(made)
    assert selection.mix is not None
    assert selection.mix[0, :2].argmax(dim=1).tolist() == [0, 2]


def test_trim_parity_shares_one_budget_and_needs_an_outlier() -> None:
    whole = context(seed=3)
    counts = TRIM(keep="auto", parity=True).choose(whole).counts
    assert counts is not None
    assert len(set(counts)) == 1
    assert TRIM(keep=5, parity=True).choose(whole).counts == (6,) * 3
    for keep in (1.0, TOKENS, 0.01):
        with pytest.raises(FovealError, match="released code fails"):
            TRIM(keep=keep, parity=True).choose(whole)


def full_width_attention(made: TowerContext) -> Tensor:
    """(images, keys, keys) probabilities with heads concatenated."""
    assert made.attention is not None
    query, key = (heads.transpose(1, 2).flatten(2) for heads in (made.attention.query, made.attention.key))
    return (query @ key.transpose(1, 2) / WIDTH**0.5).softmax(dim=2)


def test_prumerge_keep_1_is_the_sum_by_attention() -> None:
    whole = context()
    selection = PruMerge(keep=1).choose(whole)
    torch.testing.assert_close(selection.mix, full_width_attention(whole)[:, :1, 1:])


def test_prumerge_merges_by_key_and_weighs_by_attention() -> None:
    whole = context(images=1)
    assert whole.attention is not None
    attention = full_width_attention(whole)[0, 0, 1:]
    key = whole.attention.key.transpose(1, 2).flatten(2)[0, 1:]
    likeness = torch.nn.functional.cosine_similarity(key[:, None], key[None], dim=2)
    selection = PruMerge(keep=6, neighbours=3).choose(whole)
    assert selection.mix is not None
    own = attention.topk(5).indices.sort().values
    for row, token in zip(selection.mix[0], own, strict=False):
        near = likeness[token].topk(4).indices  # itself the first
        assert near[0] == token
        expected = torch.zeros(TOKENS, dtype=torch.float64)
        expected[near] = attention[near]
        expected[token] = 1
        torch.testing.assert_close(row, expected)
    plain = PruMerge(keep=6, neighbours=0).choose(whole)
    assert plain.mix is not None
    assert torch.equal(plain.mix[0, :5], torch.eye(TOKENS, dtype=torch.float64)[own])


def test_prumerge_takes_all_others_where_there_are_few() -> None:
    selection = PruMerge(keep=3).choose(context(grid=(2, 3)))
    assert selection.mix is not None
    assert (selection.mix[:, :2] > 0).all()
    assert torch.equal(selection.mix[:, :2].amax(dim=2), torch.ones(3, 2, dtype=torch.float64))


def test_prumerge_survives_products_beyond_half_precision() -> None:
    whole = context(dtype=torch.float16)
    assert whole.attention is not None
    large = {name: torch.full_like(getattr(whole.attention, name), 150) for name in ("query", "key")}
    selection = PruMerge(keep=5).choose(replace(whole, attention=replace(whole.attention, **large)))
    check_shape(selection, TOKENS)


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("block", [256, 5])
def test_mean_query_averages_what_patches_receive(
    class_token: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(towers, "BLOCK", block)
    whole = context(class_token=class_token)
    assert whole.attention is not None
    patches = slice(1, None) if class_token else slice(None)
    expected = full_width_attention(whole)[:, patches, patches].mean(dim=1)
    torch.testing.assert_close(PruMerge(keep=5, query="mean").choose(whole).scores, expected)
    by_head = (whole.attention.query @ whole.attention.key.transpose(2, 3) * 0.5).softmax(dim=3)
    selection = VisionZip(keep=5, query="mean").choose(whole)
    torch.testing.assert_close(selection.scores, by_head[:, :, patches, patches].mean(dim=2).sum(dim=1))
    assert selection.mix is not None
    assert selection.mix.shape[2] == TOKENS


@pytest.mark.parametrize("made", [PruMerge, PruMergePlus, VisionZip])
def test_class_query_needs_a_class_token(made: Any) -> None:
    assert made(keep=5).wants_class_token()
    assert not made(keep=5, query="mean").wants_class_token()
    with pytest.raises(FovealError, match='query="mean"'):
        made(keep=5).choose(context(class_token=False))
    made(keep=5, query="mean").choose(context(class_token=False))


@pytest.mark.parametrize(("keep", "salient"), [(2, 1), (5, 1), (6, 2), (17, 4), (18, 5)])
def test_prumerge_plus_chooses_a_quarter_by_attention(keep: int, salient: int) -> None:
    whole = context()
    attention = full_width_attention(whole)[:, 0, 1:]
    selection = PruMergePlus(keep=keep).choose(whole)
    assert selection.mix is not None
    rank = attention.argsort(dim=1, descending=True)
    for image, mix in enumerate(selection.mix):
        own = set(mix[:-1].argmax(dim=1).tolist())
        assert len(own) == keep - 1
        assert set(rank[image, :salient].tolist()) <= own


@pytest.mark.parametrize("grid", [(24, 24), (16, 16), (7, 40), (27, 27)])
def test_prumerge_plus_samples_the_whole_image_evenly(grid: tuple[int, int]) -> None:
    """The patch farthest from any sample, in radii of a disc as large as one sample's share of the image.

    Ideal lattices reach 1.1 to 1.25, a stride in raster order up to 5.9, farthest-first sampling 2.3.
    """
    tokens = grid[0] * grid[1]
    order = prumerge._spread(grid, torch.device("cpu"))[0].argsort(descending=True)
    place = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).double()
    for share in (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.13, 0.16, 0.19, 0.25, 0.3, 0.4, 0.5):
        count = round(share * tokens)
        reach = torch.cdist(place, place[order[:count]]).amin(dim=1).max()
        assert reach < 2.3 * (tokens / count / torch.pi) ** 0.5


def test_prumerge_plus_parity_refuses_what_the_released_code_cannot_do() -> None:
    two = context(images=2, grid=(24, 24))
    with pytest.raises(FovealError, match="one image"):
        PruMergePlus(keep="auto", parity=True).choose(two)
    with pytest.raises(FovealError, match="as many samples"):
        PruMergePlus(keep=0.3, parity=True).choose(two)
    with pytest.raises(FovealError, match="575 patches"):
        PruMergePlus(keep=0.125, parity=True).choose(context())
    one = alone(two, 0)
    assert one.attention is not None
    blank = replace(one, attention=replace(one.attention, key=torch.zeros_like(one.attention.key)))
    with pytest.raises(FovealError, match="needs a patch to keep"):
        PruMergePlus(keep="auto", parity=True).choose(blank)
    assert PruMergePlus(keep=0.125, parity=True).choose(two).counts == (145, 145)
    with pytest.raises(FovealError, match="no patch for the extra token"):
        PruMerge(keep=1.0, parity=True).choose(two)


def test_prumerge_parity_shares_one_budget() -> None:
    whole = context(seed=3)
    counts = PruMerge(keep="auto", parity=True).choose(whole).counts
    assert counts is not None
    assert len(set(counts)) == 1
    assert counts != PruMerge(keep="auto").choose(whole).counts


@pytest.mark.parametrize(
    ("options", "contextual"),
    [
        ({}, 2),
        ({"contextual": 0.5}, 6),
        ({"contextual": 5}, 5),
        ({"contextual": 0}, 0),
        ({"contextual": 0.99}, 11),
    ],
)
@pytest.mark.parametrize("query", ["class", "mean"])
def test_visionzip_shares_its_budget(options: dict[str, Any], contextual: int, query: Any) -> None:
    selection = VisionZip(keep=12, query=query, **options).choose(context())
    assert selection.mix is not None
    assert selection.counts == (12,) * 3
    weights = selection.mix.sum(dim=2)
    dominant = 12 - contextual
    assert torch.equal(weights[:, :dominant], torch.ones_like(weights[:, :dominant]))
    assert ((weights[:, dominant:] - 1).abs().minimum((weights[:, dominant:] - 2).abs()) < 1e-12).all()
    stands_for = (selection.mix > 0).sum(dim=1)
    dropped = stands_for[:, :TOKENS] == 0
    assert not dropped.any() or contextual == 0  # every patch is in exactly one token
    assert stands_for.max() == 1
    assert (selection.mix.shape[2] == TOKENS + 1) == (query == "class")


def test_visionzip_keep_1_is_the_class_token() -> None:
    mix = VisionZip(keep=1).choose(context()).mix
    assert mix is not None
    assert mix[:, 0].nonzero()[:, 1].tolist() == [TOKENS] * 3


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (lambda: TRIM(keep=4, ranking="best"), "ranking="),  # type: ignore[arg-type]
        (lambda: TRIM(keep=4, ranking="paper", parity=True), "parity=True"),
        (lambda: TRIM(keep=0.0, parity=True), "keep=0.0"),
        (lambda: PruMerge(keep=4, neighbours=-1), "neighbours=-1"),
        (lambda: PruMerge(keep=4, neighbours=True), "neighbours=True"),
        (lambda: PruMergePlus(keep=4, query="all"), "query="),  # type: ignore[arg-type]
        (lambda: VisionZip(keep=4, query="all"), "query="),  # type: ignore[arg-type]
        (lambda: VisionZip(keep=4, contextual=4), "contextual=4"),
        (lambda: VisionZip(keep=4, contextual=1.0), "contextual=1.0"),
        (lambda: VisionZip(keep=4, contextual=-1), "contextual=-1"),
        (lambda: VisionZip(keep=4, contextual=True), "contextual=True"),
        (lambda: VisionZip(keep=4, positions="kept"), "positions="),  # type: ignore[arg-type]
        (lambda: VisionZip(keep=0.05, contextual=2).choose(context()), "contextual=2"),
    ],
)
def test_bad_options_name_the_culprit(make: Callable[[], Any], culprit: str) -> None:
    with pytest.raises(FovealError, match=culprit):
        make()


@pytest.mark.parametrize("made", [TRIM, PruMerge, PruMergePlus, VisionZip])
def test_cards_and_options(made: Any) -> None:
    method = made(keep=5)
    assert method.card.stage == "pre-LM"
    assert len(method.card.rule.split("\n")) == 3
    assert method.positions == "packed"
    assert method.layer == 0
    assert made(**method.options()) == method
