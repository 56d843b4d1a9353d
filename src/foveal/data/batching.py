"""Batches of samples of similar length: by a budget of tokens, or of a fixed size.

Both draw from (seed, epoch) alone, so that a resumed run sees the same batches, and all processes the same list, which
Accelerate then deals out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from foveal.errors import FovealError

__all__ = ["LengthSampler", "TokenBudgetSampler"]


class TokenBudgetSampler(Sampler[list[int]]):
    """Lists of samples whose padded size, longest times count, stays within a budget; a `batch_sampler`.

    Samples are drawn into batches with others of nearly their length (within 6 %), and the batches shuffled. Each
    sample comes once an epoch, and every epoch has as many batches, a multiple of the number of processes.

    Args:
        lengths: tokens of each sample, see `foveal.data.lengths`.
        budget: tokens of a batch, padding included.
        seed: draws other batches.
        processes: how many take a batch each. Batches are split to be enough for all; where each holds one sample,
            some come twice.

    Raises:
        FovealError: a sample is longer than the budget, or there is none.
    """

    # Accelerate takes these for "batches of any size, none dropped".
    batch_size = None
    drop_last = False

    def __init__(self, lengths: Sequence[int], budget: int, seed: int = 0, processes: int = 1) -> None:
        if not len(lengths):
            raise FovealError("no samples to make batches of")
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        if lengths[longest] > budget:
            raise FovealError(
                f"sample {longest + 1} has {lengths[longest]} tokens, more than a batch's budget of {budget}: "
                "raise the budget or leave the sample out"
            )
        self.seed, self.epoch = seed, 0
        # As equal lengths count those up to the next of 16 steps to a power of two: there is something to shuffle.
        self._rounded = torch.tensor([min(budget, _round_up(length)) for length in lengths])
        self._sizes = _sizes(self._rounded.sort(descending=True).values.tolist(), budget, processes)
        self._total = -(-len(self._sizes) // processes) * processes

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(_mixed(self.seed, self.epoch))
        shuffled = torch.randperm(len(self._rounded), generator=generator)
        order = shuffled[self._rounded[shuffled].argsort(descending=True, stable=True)]
        batches = [batch.tolist() for batch in order.split(self._sizes)]
        drawn = torch.randperm(len(batches), generator=generator).tolist()
        return (batches[drawn[place % len(drawn)]] for place in range(self._total))

    def set_epoch(self, epoch: int) -> None:
        """Draw the batches of this epoch from the next iteration on."""
        self.epoch = epoch


class LengthSampler(LengthGroupedSampler):
    """transformers' sampler for batches of a fixed size, drawn from (seed, epoch).

    Args:
        batch_size: samples that are to be of similar length.
        lengths: tokens of each sample.
        seed: draws another order.
    """

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int = 0) -> None:
        super().__init__(batch_size, lengths=list(lengths), generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(_mixed(self.seed, self.epoch))
        order: Iterator[int] = super().__iter__()  # type: ignore[no-untyped-call]
        return order

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch from the next iteration on."""
        self.epoch = epoch


def _mixed(seed: int, epoch: int) -> int:
    """Different for each pair that a training run meets."""
    return seed * 1_000_003 + epoch


def _round_up(length: int) -> int:
    step = 1 << max(0, length.bit_length() - 5)
    return -(-length // step) * step


def _sizes(lengths: list[int], budget: int, processes: int) -> list[int]:
    """How many samples each batch takes of those in order, longest first."""
    sizes, place = [], 0
    while place < len(lengths):
        sizes.append(min(budget // lengths[place], len(lengths) - place))
        place += sizes[-1]
    for _ in range(-len(sizes) % processes):
        largest = max(range(len(sizes)), key=sizes.__getitem__)
        if sizes[largest] > 1:
            half = sizes[largest] // 2
            sizes[largest : largest + 1] = [sizes[largest] - half, half]
    return sizes
