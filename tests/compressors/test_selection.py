"""The pure selection functions against brute force."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foveal.compressors.selection import least_similar_to_pivots, split_evenly, top_per_row


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    seed=st.integers(0, 999), rows=st.integers(1, 4), columns=st.integers(1, 12), levels=st.integers(1, 20)
)
def test_top_per_row(seed: int, rows: int, columns: int, levels: int) -> None:
    scores = torch.randint(levels, (rows, columns), generator=generator(seed)).double()  # ties on purpose
    counts = torch.randint(columns + 1, (rows,), generator=generator(seed + 1))
    chosen = top_per_row(scores, counts)
    for row, count in enumerate(counts.tolist()):
        best = sorted(range(columns), key=lambda column: (-scores[row, column].item(), column))[:count]
        assert chosen[row].nonzero()[:, 0].tolist() == sorted(best)


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
