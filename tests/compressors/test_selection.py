"""The pure selection functions against brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from foveal.compressors import selection
from foveal.compressors.selection import (
    bipartite_match,
    density_peaks,
    farthest_first,
    first_per_row,
    greedy_dpp,
    least_similar_to_pivots,
    split_evenly,
    top_per_row,
    upper_outliers,
)

GOLDEN = Path(__file__).parent.parent / "golden"
SEEDS = st.integers(0, 9999)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    seed=st.integers(0, 999), rows=st.integers(1, 4), columns=st.integers(1, 12), levels=st.integers(1, 20)
)
def test_top_per_row(seed: int, rows: int, columns: int, levels: int) -> None:
    scores = torch.randint(levels, (rows, columns), generator=generator(seed)).double()  # ties on purpose
    broken = torch.rand(rows, columns, generator=generator(seed + 2)) < 0.2
    given_scores, scores = scores.masked_fill(broken, math.nan), scores.masked_fill(broken, -math.inf)
    counts = torch.randint(columns + 1, (rows,), generator=generator(seed + 1))
    chosen = top_per_row(given_scores, counts)
    for row, count in enumerate(counts.tolist()):
        best = sorted(range(columns), key=lambda column: (-scores[row, column].item(), column))[:count]
        assert chosen[row].nonzero()[:, 0].tolist() == sorted(best)


def test_first_per_row() -> None:
    order = torch.tensor([[2, 0, 3, 1], [3, 2, 1, 0], [1, 0, 2, 3]])
    marked = first_per_row(order, torch.tensor([2, 0, 4]))
    assert [row.nonzero()[:, 0].tolist() for row in marked] == [[0, 2], [], [0, 1, 2, 3]]


@given(seed=st.integers(0, 999), rows=st.integers(1, 5), slots=st.integers(1, 8))
def test_split_evenly(seed: int, rows: int, slots: int) -> None:
    total = torch.randint(50, (rows,), generator=generator(seed))
    parts = torch.randint(1, slots + 1, (rows,), generator=generator(seed + 1))
    sizes = split_evenly(total, parts, slots)
    assert torch.equal(sizes.sum(1), total)
    for row, used in enumerate(parts.tolist()):
        shares = sizes[row, :used].tolist()
        assert shares == sorted(shares, reverse=True)
        assert max(shares) - min(shares) <= 1
        assert not sizes[row, used:].any()


def one_by_one(similarity: Tensor, pool: list[int], counts: list[int]) -> list[int]:
    """The rule as a loop over pivots and tokens."""
    taken: list[int] = []
    for pivot, count in enumerate(counts):
        left = sorted(
            (token for token in pool if token not in taken), key=lambda t: similarity[pivot, t].item()
        )
        taken += left[:count]
    return sorted(taken)


@given(seed=st.integers(0, 999), pivots=st.integers(1, 5), columns=st.integers(1, 14))
def test_least_similar_to_pivots(seed: int, pivots: int, columns: int) -> None:
    draw = generator(seed)
    similarity = torch.rand(2, pivots, columns, generator=draw, dtype=torch.float64)
    pool = torch.rand(2, columns, generator=draw) > 0.3
    counts = torch.randint(4, (2, pivots), generator=draw)
    taken = least_similar_to_pivots(similarity, pool, counts)
    for row in range(2):
        expected = one_by_one(similarity[row], pool[row].nonzero()[:, 0].tolist(), counts[row].tolist())
        assert taken[row].nonzero()[:, 0].tolist() == expected


def ragged(draw: torch.Generator, rows: int, columns: int) -> Tensor:
    """(rows, columns) bool with at least one real column a row, wherever it is."""
    valid = torch.rand(rows, columns, generator=draw) < 0.7
    return valid.scatter(1, torch.randint(columns, (rows, 1), generator=draw), True)


def leading(draw: torch.Generator, rows: int, columns: int) -> Tensor:
    """The same with the real columns first."""
    return torch.arange(columns) < torch.randint(1, columns + 1, (rows, 1), generator=draw)


def some_of(draw: torch.Generator, valid: Tensor) -> Tensor:
    """(rows,) from 0 to the row's real columns, both often."""
    share = torch.randint(-1, 6, (len(valid),), generator=draw).clamp(0, 4) / 4
    return (share * valid.sum(1)).long()


def spoil(draw: torch.Generator, values: Tensor, chance: float) -> Tensor:
    """Some tokens' features become NaN or infinite."""
    bad = torch.rand(values.shape[:2], generator=draw) < chance
    kind = torch.tensor([math.nan, math.inf, -math.inf])[torch.randint(3, values.shape[:2], generator=draw)]
    return torch.where(bad[:, :, None], kind[:, :, None].to(values.dtype), values)


def exact_features(draw: torch.Generator, rows: int, columns: int) -> Tensor:
    """(rows, columns, 4) of norm 1, 2 or 4, so that norms, cosines and projections have no rounding; many ties."""
    axes = torch.eye(4, dtype=torch.float64)[torch.randint(4, (rows, columns), generator=draw)]
    return axes * torch.tensor([-4, -2, -1, 1, 2, 4])[torch.randint(6, (rows, columns, 1), generator=draw)]


def tokens_of(valid: Tensor) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in valid]


def assert_picks(order: Tensor, valid: Tensor, counts: Tensor, steps: int) -> None:
    """Exactly the counted number of different real tokens, then -1."""
    assert order.shape == (len(valid), steps)
    assert order.dtype == torch.int64
    for picks, tokens, count in zip(order.tolist(), tokens_of(valid), counts.tolist(), strict=True):
        assert set(picks[:count]) <= set(tokens)
        assert len(set(picks[:count])) == count
        assert picks[count:] == [-1] * (steps - count)


def farthest_by_hand(similarity: np.ndarray, tokens: list[int], count: int) -> list[int]:
    """Max-min diversity as two loops."""

    def distance(one: int, other: int) -> float:
        value = 1 - similarity[one, other]
        return math.inf if math.isnan(value) else value

    def first(token: int) -> tuple[bool, float, int]:
        distances = sorted(distance(other, token) for other in tokens)
        return (not math.isnan(similarity[token, token]), [*distances, math.inf][1], -token)

    def later(token: int) -> tuple[bool, float, int]:
        return (
            not math.isnan(similarity[token, token]),
            min(distance(pick, token) for pick in picks),
            -token,
        )

    picks: list[int] = []
    while len(picks) < count:
        picks.append(max((token for token in tokens if token not in picks), key=later if picks else first))
    return picks


@given(seed=SEEDS, rows=st.integers(1, 4), columns=st.integers(1, 9), levels=st.integers(1, 12))
def test_farthest_first(seed: int, rows: int, columns: int, levels: int) -> None:
    draw = generator(seed)
    valid = ragged(draw, rows, columns)
    counts = some_of(draw, valid)
    upper = torch.randint(-levels, levels + 1, (rows, columns, columns), generator=draw).double() / 16
    similarity = upper.triu(1) + upper.triu(1).transpose(1, 2) + torch.eye(columns)
    bad = torch.rand(rows, columns, generator=draw) < 0.15
    similarity = similarity.masked_fill(bad[:, :, None] | bad[:, None, :], math.nan)
    steps = int(counts.max())
    order = farthest_first(similarity, valid, counts, steps)
    assert_picks(order, valid, counts, steps)
    for row, tokens in enumerate(tokens_of(valid)):
        count = int(counts[row])
        assert order[row, :count].tolist() == farthest_by_hand(similarity[row].numpy(), tokens, count)


def test_farthest_first_is_not_led_by_the_rounding_of_one_side() -> None:
    similarity = torch.tensor([[1, 0.5 + 1e-15, 0.9], [0.5, 1, 0.9], [0.9, 0.9, 1]], dtype=torch.float64)[
        None
    ]
    similarity[:, 2, :2] = similarity[:, :2, 2] = 0.25
    valid = torch.tensor([[True, True, False]])
    for one in (similarity, similarity.transpose(1, 2)):
        assert farthest_first(one, valid, torch.tensor([1]), 1).item() == 0


def dpp_by_hand(kernel: np.ndarray, tokens: list[int], count: int) -> list[int]:
    """Greedy volume from its definition: what is left of the diagonal is a Schur complement."""

    def left(token: int) -> float:
        inverse = np.linalg.inv(kernel[np.ix_(picks, picks)])
        return kernel[token, token] - kernel[token, picks] @ inverse @ kernel[picks, token]

    picks: list[int] = []
    healthy = [token for token in tokens if math.isfinite(kernel[token, token])]
    largest = max((kernel[token, token] for token in healthy), default=0)
    while candidates := [token for token in healthy if token not in picks]:
        best = max(candidates, key=lambda token: (left(token), -token))
        if left(best) <= 1e-10 * largest:
            break
        picks.append(best)
    others = sorted(
        (token for token in tokens if token not in picks),
        key=lambda token: (token not in healthy, -kernel[token, token] if token in healthy else 0, token),
    )
    return (picks + others)[:count]


@given(
    seed=SEEDS, rows=st.integers(1, 4), columns=st.integers(1, 9), width=st.integers(0, 10), bad=st.booleans()
)
def test_greedy_dpp(seed: int, rows: int, columns: int, width: int, bad: bool) -> None:
    draw = generator(seed)
    valid = ragged(draw, rows, columns)
    counts = some_of(draw, valid)
    features = (  # correlated, or full of ties; of low rank or not
        torch.randn(rows, columns, width, generator=draw, dtype=torch.float64)
        if width
        else exact_features(draw, rows, columns)
    )
    features = spoil(draw, features, 0.15 * bad)
    kernel = features @ features.transpose(1, 2)
    steps = int(counts.max())
    order = greedy_dpp(kernel, valid, counts, steps)
    assert_picks(order, valid, counts, steps)
    for row, tokens in enumerate(tokens_of(valid)):
        count = int(counts[row])
        assert order[row, :count].tolist() == dpp_by_hand(kernel[row].numpy(), tokens, count)


@pytest.mark.parametrize("width", [8, 64])
def test_greedy_dpp_past_the_rank_follows_the_diagonal(width: int) -> None:
    features = torch.randn(1, 200, width, generator=generator(0))
    kernel = features @ features.transpose(1, 2)
    order = greedy_dpp(kernel, torch.ones(1, 200, dtype=torch.bool), torch.tensor([200]), 200)[0]
    assert sorted(order.tolist()) == list(range(200))
    rest = kernel[0].diagonal()[order[width:]]
    assert torch.equal(rest, rest.sort(descending=True).values)


@pytest.mark.parametrize(("dtype", "small"), [(torch.float64, 1e-4), (torch.float32, 1e-2)])
def test_greedy_dpp_minds_what_is_small_but_not_rounding(dtype: torch.dtype, small: float) -> None:
    features = torch.tensor([[[1, 0], [0.5, 0], [0, small]]], dtype=dtype)
    order = greedy_dpp(gram(features), torch.ones(1, 3, dtype=torch.bool), torch.tensor([3]), 3)
    assert order.tolist() == [[0, 2, 1]]


def test_greedy_dpp_of_no_kernel_at_all_repeats_nothing() -> None:
    kernel = torch.randn(3, 40, 40, generator=generator(0)) * torch.tensor([1, 1e18, 0])[:, None, None]
    kernel[0] = torch.eye(40).masked_fill_(torch.rand(40, 40, generator=generator(1)) < 0.1, math.nan)
    kernel[0].fill_diagonal_(1)
    valid = torch.ones(3, 40, dtype=torch.bool)
    counts = torch.full((3,), 40)
    assert_picks(greedy_dpp(kernel, valid, counts, 40), valid, counts, 40)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("columns", [1, 144, 145, 300])
def test_gram(columns: int, dtype: torch.dtype) -> None:
    vectors = torch.randn(2, columns, 70, generator=generator(columns), dtype=dtype)
    products = selection.gram(vectors)
    torch.testing.assert_close(products, products.mT)
    torch.testing.assert_close(products, vectors @ vectors.mT)


def peaks_by_hand(points: np.ndarray, clusters: int) -> tuple[list[int], list[int]]:
    """Density peaks as loops: centers, and each point's index into them."""
    count = len(points)
    healthy = [token for token in range(count) if np.isfinite(points[token]).all()]
    distance = {
        (one, other): math.sqrt(sum((points[one] - points[other]) ** 2)) / math.sqrt(points.shape[1])
        for one in healthy
        for other in healthy
    }
    density, score = {}, {}
    for one in healthy:
        nearest = sorted(distance[one, other] for other in healthy)[:clusters]
        squares = sum(value**2 for value in nearest) / max(len(nearest), 1)
        density[one] = math.exp(-squares) + 1e-6 * (1 - one / count)
    for one in healthy:
        denser = [distance[one, other] for other in healthy if density[other] > density[one]]
        score[one] = min(denser, default=max(distance.values())) * density[one]
    centers = sorted(range(count), key=lambda token: (token not in score, -score.get(token, 0), token))
    centers = centers[:clusters]

    def home(token: int) -> int:
        if token in centers:
            return centers.index(token)
        return min(range(clusters), key=lambda index: distance.get((token, centers[index]), math.inf))

    return centers, [home(token) if clusters else -1 for token in range(count)]


@given(
    seed=SEEDS,
    rows=st.integers(1, 4),
    columns=st.integers(1, 30),
    levels=st.integers(1, 4),
    bad=st.booleans(),
)
def test_density_peaks(seed: int, rows: int, columns: int, levels: int, bad: bool) -> None:
    draw = generator(seed)
    valid = leading(draw, rows, columns)
    clusters = some_of(draw, valid) if columns < 10 else some_of(draw, valid[:, :10])
    points = torch.randint(levels, (rows, columns, 3), generator=draw).double()
    points = spoil(draw, points, 0.15 * bad)
    most = max(int(clusters.max()), 1)
    centers, cluster = density_peaks(points, valid, clusters, most)
    assert_picks(centers, valid, clusters, most)
    for row, tokens in enumerate(tokens_of(valid)):
        count = int(clusters[row])
        expected, homes = peaks_by_hand(points[row, : len(tokens)].numpy(), count)
        assert centers[row, :count].tolist() == expected
        assert cluster[row].tolist() == homes + [-1] * (columns - len(tokens))


def test_density_peaks_break_ties_in_float32() -> None:
    # Float32 cannot tell a term of 1e-6 (1 - column / 400) from its neighbour's; all these densities tie.
    points = torch.tensor([5.0 * (token // 2) + token % 2 for token in range(400)]).view(1, 400, 1)
    valid = torch.ones(1, 400, dtype=torch.bool)
    single, double = (
        density_peaks(values, valid, torch.tensor([2]), 2) for values in (points, points.double())
    )
    assert all(torch.equal(one, other) for one, other in zip(single, double, strict=True))


def test_density_peaks_do_not_see_a_point_apart_from_itself() -> None:
    # Far from the origin float32 distances round, a point's distance to itself too. Alone, all are equally dense.
    points = torch.rand(8, 40, 64, generator=generator(0)) + 10
    centers, _ = density_peaks(points, torch.ones(8, 40, dtype=torch.bool), torch.ones(8).long(), 1)
    assert not centers.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_density_peaks_as_the_official_code(dtype: torch.dtype) -> None:
    golden = np.load(GOLDEN / "sparsevlm.npz")
    points = torch.tensor(golden["cluster_fn_in"]).to(dtype)[None]
    valid = torch.ones(points.shape[:2], dtype=torch.bool)
    centers, cluster = density_peaks(points, valid, torch.tensor([9]), 9)
    np.testing.assert_array_equal(centers[0], golden["c0_b192_cluster_center_stage0"])
    np.testing.assert_array_equal(cluster[0], golden["c0_b192_cluster_of_stage0"])
    members = functional.one_hot(cluster[0], 9).to(dtype)
    merged = members.T @ points[0] / (members.sum(0)[:, None] + 1e-6)
    np.testing.assert_allclose(merged, golden["cluster_fn_out"], atol=1e-6, rtol=0)


def match_by_hand(metric: np.ndarray, tokens: list[int], merges: int, protected: list[int]) -> dict[int, int]:
    """Source to destination for each merged token."""

    def cosine(one: int, other: int) -> float:
        if not (np.isfinite(metric[one]).all() and np.isfinite(metric[other]).all()):
            return -math.inf
        norms = math.sqrt(sum(metric[one] ** 2)) * math.sqrt(sum(metric[other] ** 2))
        return sum(metric[one] * metric[other]) / norms

    sources = [token for token in tokens[::2] if token not in protected]
    targets = [token for token in tokens[1::2] if token not in protected]
    if not targets:
        return {}
    partner = {token: max(targets, key=lambda target: (cosine(token, target), -target)) for token in sources}
    ranked = sorted(sources, key=lambda token: (-cosine(token, partner[token]), token))
    return {token: partner[token] for token in ranked[:merges]}


@given(
    seed=SEEDS,
    rows=st.integers(1, 4),
    columns=st.integers(1, 14),
    mode=st.sampled_from("exact smooth bad".split()),
)
def test_bipartite_match(seed: int, rows: int, columns: int, mode: str) -> None:
    draw = generator(seed)
    valid = ragged(draw, rows, columns)
    merges = torch.randint(columns + 1, (rows,), generator=draw)
    metric = exact_features(draw, rows, columns)
    if mode == "smooth":
        metric = torch.randn(rows, columns, 3, generator=draw, dtype=torch.float64)
    metric = spoil(draw, metric, 0.2 * (mode == "bad"))
    protected = torch.rand(rows, columns, generator=draw) < 0.2
    if seed % 2:
        protected = torch.zeros_like(valid)
    destination, merged_away = bipartite_match(metric, valid, merges, protected if seed % 2 == 0 else None)
    for row, tokens in enumerate(tokens_of(valid)):
        held = protected[row].nonzero()[:, 0].tolist()
        expected = match_by_hand(metric[row].numpy(), tokens, int(merges[row]), held)
        assert destination[row].tolist() == [expected.get(token, token) for token in range(columns)]
        assert merged_away[row].nonzero()[:, 0].tolist() == sorted(expected)


@given(
    seed=SEEDS,
    rows=st.integers(1, 4),
    columns=st.integers(1, 20),
    spread=st.integers(1, 4),
    bad=st.booleans(),
)
def test_upper_outliers(seed: int, rows: int, columns: int, spread: int, bad: bool) -> None:
    draw = generator(seed)
    valid = ragged(draw, rows, columns)
    scores = torch.randint(5, (rows, columns), generator=draw).double() ** spread
    scores = scores.masked_fill(torch.rand(rows, columns, generator=draw) < 0.1 * bad, math.nan)
    outliers = upper_outliers(scores, valid)
    for row, tokens in enumerate(tokens_of(valid)):
        values = np.nan_to_num(scores[row, tokens].numpy(), nan=-np.inf)
        with np.errstate(invalid="ignore"):
            first, third = np.percentile(values, [25, 75])
            above = values > third + 1.5 * (third - first)
        assert outliers[row].nonzero()[:, 0].tolist() == np.array(tokens)[above].tolist()


def test_upper_outliers_of_infinite_scores() -> None:
    scores = torch.tensor([[1.0, 0.0, math.inf, 2.0, 4.0], [math.inf] * 5, [-math.inf] * 5])
    outliers = upper_outliers(scores, torch.ones(3, 5, dtype=torch.bool))
    assert outliers.nonzero().tolist() == [[0, 2]]


def gram(features: Tensor) -> Tensor:
    return features @ features.transpose(1, 2)


def cosines(features: Tensor) -> Tensor:
    return gram(functional.normalize(features, dim=-1))


def whole(features: Tensor) -> Tensor:
    return features


def first_of_each(features: Tensor) -> Tensor:
    return features[:, :, 0].exp()


Function = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor, Tensor, int], Any]]

# What a function reads of features; the function of that, valid, counts and the largest count.
FUNCTIONS: dict[str, Function] = {
    "farthest_first": (cosines, farthest_first),
    "greedy_dpp": (gram, greedy_dpp),
    "density_peaks": (whole, density_peaks),
    "bipartite_match": (whole, lambda table, valid, counts, _: bipartite_match(table, valid, counts)),
    "upper_outliers": (first_of_each, lambda table, valid, _, __: upper_outliers(table, valid)),
}
every_function = pytest.mark.parametrize(("read", "function"), FUNCTIONS.values(), ids=FUNCTIONS)


def results(function: Callable[..., Any], *arguments: Any) -> tuple[Tensor, ...]:
    result = function(*arguments)
    return result if isinstance(result, tuple) else (result,)


@every_function
@settings(max_examples=25)
@given(seed=SEEDS)
def test_rows_and_padding_do_not_matter(read: Any, function: Any, seed: int) -> None:
    draw = generator(seed)
    features = torch.randn(3, 24, 6, generator=draw, dtype=torch.float64)
    valid = leading(draw, 3, 24)
    counts = some_of(draw, valid).clamp(min=1)
    together = results(
        function, read(spoil(draw, features, 0.1).where(~valid[:, :, None], features)), valid, counts, 24
    )
    for row, length in enumerate(valid.sum(1).tolist()):
        table, count = read(features[row : row + 1, :length]), int(counts[row])
        alone = results(function, table, valid[row : row + 1, :length], counts[row : row + 1], count)
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one[0], other[row, : one.shape[1]])


@every_function
def test_float32_agrees_with_float64(read: Any, function: Any) -> None:
    features = torch.randn(4, 60, 32, generator=generator(0), dtype=torch.float64)
    valid = leading(generator(1), 4, 60)
    counts = (valid.sum(1) + 1) // 2
    double = results(function, read(features), valid, counts, 30)
    single = results(function, read(features.float()), valid, counts, 30)
    assert all(torch.equal(one, other) for one, other in zip(double, single, strict=True))


@every_function
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(read: Any, function: Any, dtype: torch.dtype) -> None:
    table = read(torch.randn(2, 40, 8, generator=generator(0))).to(dtype)
    valid = leading(generator(1), 2, 40)
    counts = (valid.sum(1) + 1) // 2
    half = results(function, table, valid, counts, 20)
    full = results(function, table.float(), valid, counts, 20)
    assert all(torch.equal(one, other) for one, other in zip(half, full, strict=True))


@every_function
def test_nothing_waits_for_the_device(read: Any, function: Any) -> None:
    # A tensor without data has no value to wait for: it raises instead.
    table = read(torch.randn(2, 40, 8, device="meta"))
    valid = torch.ones(2, 40, dtype=torch.bool, device="meta")
    for result in results(function, table, valid, torch.ones(2, dtype=torch.int64, device="meta"), 7):
        assert result.device.type == "meta"


@pytest.mark.parametrize("name", ["farthest_first", "greedy_dpp", "density_peaks"])
@settings(max_examples=25)
@given(seed=SEEDS, chance=st.sampled_from([0.0, 0.3, 1.0]))
def test_one_all_and_more_than_all(name: str, seed: int, chance: float) -> None:
    read, function = FUNCTIONS[name]
    draw = generator(seed)
    features = torch.randint(-2, 3, (3, 8, 2), generator=draw).double()
    table = read(spoil(draw, features, chance))
    valid = leading(draw, 3, 8)
    every = valid.sum(1)
    assert_picks(results(function, table, valid, torch.ones_like(every), 1)[0], valid, every.clamp(max=1), 1)
    assert_picks(results(function, table, valid, every, 8)[0], valid, every, 8)
    assert_picks(results(function, table, valid, every + 2, 11)[0], valid, every, 11)


@pytest.mark.parametrize("name", ["farthest_first", "greedy_dpp"])
def test_nothing_to_pick(name: str) -> None:
    read, function = FUNCTIONS[name]
    table = read(torch.randn(2, 5, 3))
    assert function(table, torch.ones(2, 5, dtype=torch.bool), torch.zeros(2).long(), 0).shape == (2, 0)
    assert (function(table, torch.zeros(2, 5, dtype=torch.bool), torch.ones(2).long(), 1) == -1).all()


@every_function
def test_autograd_is_left_alone(read: Any, function: Any) -> None:
    table = read(torch.randn(2, 12, 4)).requires_grad_()
    before = table.detach().clone()
    counts = torch.tensor([3, 5])
    for result in results(function, table, torch.ones(2, 12, dtype=torch.bool), counts, 5):
        assert not result.requires_grad
    assert torch.equal(table, before)
