"""Pure tensor functions that choose tokens. They know no model and never wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["least_similar_to_pivots", "split_evenly", "top_per_row"]


def top_per_row(scores: Tensor, counts: Tensor) -> Tensor:
    """Mark the `counts[i]` largest scores of row i; the earlier column wins a tie.

    Args:
        scores: (rows, columns); -inf keeps a column out of the running.
        counts: (rows,) int64.

    Returns:
        (rows, columns) bool.
    """
    order = scores.sort(dim=1, descending=True, stable=True).indices
    chosen = torch.arange(scores.shape[1], device=scores.device) < counts[:, None]
    return torch.zeros_like(chosen.expand(scores.shape)).scatter(1, order, chosen)


def split_evenly(total: Tensor, parts: Tensor, slots: int) -> Tensor:
    """Split `total[i]` over the first `parts[i]` of `slots` slots, sizes differing by at most one, larger first.

    Args:
        total: (rows,) int64, not negative.
        parts: (rows,) int64, at least 1 and at most `slots`.
        slots: columns of the result.

    Returns:
        (rows, slots) int64 with row sums `total`.
    """
    slot = torch.arange(slots, device=total.device)
    share = total // parts
    sizes = share[:, None] + (slot < (total % parts)[:, None])
    return torch.where(slot < parts[:, None], sizes, 0)


def least_similar_to_pivots(similarity: Tensor, pool: Tensor, counts: Tensor) -> Tensor:
    """Each pivot in turn takes the tokens of the shared pool least similar to it.

    Args:
        similarity: (rows, pivots, columns).
        pool: (rows, columns) bool, the tokens that may be taken.
        counts: (rows, pivots) int64, how many each pivot takes; fewer when the pool runs dry.

    Returns:
        (rows, columns) bool, all tokens taken.
    """
    taken = torch.zeros_like(pool)
    for pivot in range(similarity.shape[1]):
        available = pool & ~taken
        distance = (-similarity[:, pivot]).masked_fill(~available, float("-inf"))
        taken = taken | (top_per_row(distance, counts[:, pivot]) & available)
    return taken
