from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from foveal import FovealError
from foveal.data.batching import LengthSampler, TokenBudgetSampler


def draw(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return (600 + torch.randint(0, 1400, (count,), generator=generator)).tolist()


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=60),
    st.integers(300, 2000),
    st.integers(1, 5),
    st.integers(0, 3),
)
def test_every_sample_once_within_the_budget(
    lengths: list[int], budget: int, processes: int, epoch: int
) -> None:
    sampler = TokenBudgetSampler(lengths, budget, seed=1, processes=processes)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert len(batches) % processes == 0
    assert all(max(lengths[index] for index in batch) * len(batch) <= budget for batch in batches)
    used = sorted(index for batch in batches for index in batch)
    assert set(used) == set(range(len(lengths)))
    if len(used) > len(lengths):  # no batch was left to be split
        assert all(len(batch) == 1 for batch in batches)
        assert len(used) - len(lengths) < processes


def test_little_is_padded_and_batches_are_full() -> None:
    lengths = draw(3000)
    batches = list(TokenBudgetSampler(lengths, 16_000))
    real = sum(lengths)
    padded = sum(max(lengths[index] for index in batch) * len(batch) for batch in batches)
    assert padded < 1.06 * real
    assert len(batches) < 1.2 * real / 16_000
    longest = torch.tensor([max(lengths[index] for index in batch) for batch in batches])
    assert 0.3 < (longest.diff() > 0).float().mean() < 0.7, "batches come in order of length"


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    def batches(seed: int, epoch: int) -> list[list[int]]:
        torch.rand(3)
        sampler = TokenBudgetSampler(draw(300), 16_000, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(0, 1) == batches(0, 1)
    everything = [batches(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    together = [frozenset(map(frozenset, found)) for found in everything]
    assert len(set(together)) == 6, "epochs have to bring others together"


def test_a_sample_beyond_the_budget_is_named() -> None:
    with pytest.raises(FovealError, match="sample 3 has 900 tokens, more than a batch's budget of 800"):
        TokenBudgetSampler([10, 800, 900], 800)
    with pytest.raises(FovealError, match="no samples"):
        TokenBudgetSampler([], 800)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 5, 200])
def test_accelerate_deals_out_as_many_to_each_process(count: int, processes: int, even: bool) -> None:
    sampler: Any = TokenBudgetSampler(draw(count), 8000, processes=processes)
    shards = [
        BatchSamplerShard(sampler, num_processes=processes, process_index=rank, even_batches=even)
        for rank in range(processes)
    ]
    dealt = [list(shard) for shard in shards]
    assert (
        {len(batches) for batches in dealt} == {len(shard) for shard in shards} == {len(sampler) // processes}
    )
    in_turn = [batch for step in zip(*dealt, strict=True) for batch in step]
    assert in_turn == list(sampler)


def test_a_resumed_run_goes_on_with_the_batches_that_are_left() -> None:
    sampler = TokenBudgetSampler(draw(50), 8000)
    sampler.set_epoch(2)
    loader: Any = DataLoader(range(50), batch_sampler=sampler, collate_fn=list)  # type: ignore[arg-type]
    assert list(skip_first_batches(loader, 4)) == list(sampler)[4:]


def test_length_sampler_draws_from_seed_and_epoch() -> None:
    lengths = draw(200)

    def order(seed: int, epoch: int) -> list[int]:
        torch.rand(3)
        sampler = LengthSampler(10, lengths, seed)
        sampler.set_epoch(epoch)
        list(sampler)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert sorted(order(0, 1)) == list(range(200))
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    spread = [
        torch.tensor([lengths[index] for index in order(0, 0)[at : at + 10]]).float().std()
        for at in range(0, 200, 10)
    ]
    assert torch.stack(spread).mean() < 0.3 * torch.tensor(lengths).float().std()
