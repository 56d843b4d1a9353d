"""Pure tensor functions that choose tokens. They know no model and never wait for the device.

Rows are padded: where a function takes `valid`, no other column is ever chosen, and a score of NaN ranks below all
others. The earlier column wins a tie.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "bipartite_match",
    "countdown",
    "density_peaks",
    "falling",
    "farthest_first",
    "first_per_row",
    "gram",
    "gram_flops",
    "greedy_dpp",
    "kept_slots",
    "least_similar_to_pivots",
    "match_flops",
    "on_device",
    "split_evenly",
    "top_per_row",
    "upper_outliers",
]

_STRIP = 144  # columns whose products are computed at once


def top_per_row(scores: Tensor, counts: Tensor) -> Tensor:
    """Mark the `counts[i]` largest scores of row i; the earlier column wins a tie.

    Args:
        scores: (rows, columns); -inf keeps a column out of the running.
        counts: (rows,) int64.

    Returns:
        (rows, columns) bool.
    """
    return first_per_row(falling(scores), counts)


def on_device(numbers: Any, device: torch.device) -> Tensor:
    """Numbers that the host knows (a sequence, or a tensor), without waiting for the device.

    `torch.tensor(numbers, device=device)` would return when all that the device still has to do is done.
    """
    return torch.as_tensor(numbers).to(device, non_blocking=device.type == "cuda")


def falling(scores: Tensor) -> Tensor:
    """(rows, columns) int64: the columns of each row by falling score, ties by column; a NaN is the lowest score."""
    if scores.is_floating_point():
        scores = scores.masked_fill(scores.isnan(), float("-inf"))
    return scores.sort(dim=1, descending=True, stable=True).indices


def kept_slots(kept: Tensor, most: int) -> Tensor:
    """(rows, columns) bool -> (rows, most) int64: the columns of the marked ones, ascending, then of some others."""
    return kept.sort(dim=1, descending=True, stable=True).indices[:, :most]


def first_per_row(order: Tensor, counts: Tensor) -> Tensor:
    """Mark the first `counts[i]` columns of row i.

    Args:
        order: (rows, columns) int64, all columns of each row in some order.
        counts: (rows,) int64.

    Returns:
        (rows, columns) bool.
    """
    chosen = torch.arange(order.shape[1], device=order.device) < counts.unsqueeze(1)
    return torch.empty_like(order, dtype=torch.bool).scatter_(1, order, chosen)


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


def upper_outliers(scores: Tensor, valid: Tensor) -> Tensor:
    """Mark the scores above Q3 + 1.5 (Q3 - Q1), the quartiles of the row's valid scores as numpy interpolates them.

    Args:
        scores: (rows, columns).
        valid: (rows, columns) bool.

    Returns:
        (rows, columns) bool.
    """
    scores = _widen(scores)
    scores = scores.masked_fill(scores.isnan(), float("-inf"))
    ascending = scores.masked_fill(~valid, float("inf")).sort(dim=1).values
    quarters = torch.arange(1, 4, 2, device=scores.device) * (valid.sum(dim=1, keepdim=True) - 1).clamp(min=0)
    below = ascending.gather(1, quarters // 4)
    above = ascending.gather(1, (quarters + 3) // 4)
    first, third = below.lerp(above, (quarters % 4).to(scores.dtype) / 4).unbind(dim=1)
    return valid & (scores > (third + 1.5 * (third - first))[:, None])


def farthest_first(similarity: Tensor, valid: Tensor, counts: Tensor, steps: int) -> Tensor:
    """Pick tokens far from each other (max-min diversity, arXiv 2503.02175); the distance is 1 - similarity.

    The first pick is the token whose nearest neighbour is farthest, each next one the token farthest from all picks.
    Tokens whose similarity to themselves is NaN come last.

    Args:
        similarity: (rows, columns, columns) cosine.
        valid: (rows, columns) bool.
        counts: (rows,) int64, how many to pick.
        steps: the largest count.

    Returns:
        (rows, steps) int64, columns in picking order, -1 beyond a row's count.
    """
    rows, columns = valid.shape
    similarity = _widen(similarity)
    limits = torch.finfo(similarity.dtype)
    broken = similarity.diagonal(dim1=1, dim2=2).isnan()
    # Two tokens that are each other's nearest tie for the first pick, if a matrix product rounded both sides alike.
    distance = 1 - torch.maximum(similarity, similarity.transpose(1, 2))
    distance = distance.nan_to_num_(nan=limits.max).masked_fill_(~valid[:, :, None], limits.max)

    def rank(score: Tensor) -> Tensor:
        return score.masked_fill(broken, limits.min).masked_fill_(~valid, float("-inf"))

    # The smallest entry of a column is normally the token itself.
    score = rank(distance.topk(min(2, columns), dim=1, largest=False).values[:, -1])
    nearest = rank(torch.full_like(score, limits.max))
    distance.diagonal(dim1=1, dim2=2).fill_(float("-inf"))  # so a pick takes itself out of the running
    distances, offset = _by_token(distance)
    order = torch.empty(steps, rows, dtype=torch.int64, device=valid.device)
    for pick in order:
        torch.argmax(score, dim=1, out=pick)
        score = torch.minimum(nearest, distances.index_select(0, offset + pick), out=nearest)
    return _cut(order.T, counts, valid)


def countdown(order: Tensor, counts: Tensor, columns: int) -> Tensor:
    """Picking order as scores: a row's count at its first pick, one less at each next one, 0 where nothing was picked.

    Args:
        order: (rows, steps) int64, columns in picking order, -1 beyond a row's count.
        counts: (rows,) int64.
        columns: of the result.

    Returns:
        (rows, columns) float32.
    """
    left = counts[:, None] - torch.arange(order.shape[1], device=order.device)
    scores = torch.zeros(len(order), columns + 1, device=order.device)  # one more, for slots without a pick
    slot = torch.where(order < 0, columns, order)
    return scores.scatter_(1, slot, left.to(scores.dtype))[:, :columns]


def gram(vectors: Tensor) -> Tensor:
    """The products of all pairs, most of them computed once, which is about a third faster; symmetric but for rounding.

    Args:
        vectors: (rows, columns, width).

    Returns:
        (rows, columns, columns).
    """
    rows, columns, _ = vectors.shape
    products = vectors.new_empty(rows, columns, columns)
    for start in range(0, columns, _STRIP):
        stop = start + _STRIP
        strip = vectors[:, start:stop] @ vectors[:, :stop].transpose(1, 2)
        products[:, start:stop, :stop] = strip
        products[:, :start, start:stop] = strip[:, :, :start].transpose(1, 2)
    return products


def gram_flops(rows: int, columns: int, width: int) -> int:
    """FLOPs of `gram`."""
    starts = range(0, columns, _STRIP)
    pairs = sum((stop - start) * stop for start in starts for stop in [min(start + _STRIP, columns)])
    return 2 * rows * width * pairs


def greedy_dpp(kernel: Tensor, valid: Tensor, counts: Tensor, steps: int) -> Tensor:
    """Pick tokens that span a large volume: greedy MAP of a determinantal point process (as in CDPruner).

    Each pick has the largest diagonal left after projecting out the picks before it. Beyond the numerical rank of the
    kernel the rest follows by falling diagonal of the kernel itself; tokens whose diagonal is not finite come last.

    Args:
        kernel: (rows, columns, columns), symmetric, positive semi-definite.
        valid: (rows, columns) bool.
        counts: (rows,) int64, how many to pick.
        steps: the largest count.

    Returns:
        (rows, steps) int64, columns in picking order, -1 beyond a row's count.
    """
    rows, columns = valid.shape
    kernel = _widen(kernel)
    diagonal = kernel.diagonal(dim1=1, dim2=2)
    diagonal = diagonal.masked_fill(~diagonal.isfinite(), torch.finfo(kernel.dtype).min)
    diagonal = diagonal.masked_fill_(~valid, float("-inf"))
    kernels, offset = _by_token(kernel[..., None])
    factors = kernel.new_zeros(rows, columns, steps)  # of every token by the picks
    factors_by_token, _ = _by_token(factors[..., None])

    # All in the shape (rows, columns, 1): with tensors this small, every view would cost as much as a product.
    left = diagonal.clone()[..., None]  # of the diagonal, once the picks are projected out
    gains = kernel.new_empty(steps, rows, 1, 1)
    order = torch.empty(steps, rows, dtype=torch.int64, device=valid.device)
    places = order[:, :, None, None]
    for gain, place, pick, column in zip(gains, places, order, factors[..., None].unbind(dim=2), strict=True):
        torch.max(left, dim=1, keepdim=True, out=(gain, place))
        at_pick = offset + pick
        factor = torch.baddbmm(
            kernels.index_select(0, at_pick),
            factors,
            factors_by_token.index_select(0, at_pick),
            alpha=-1,
        ).div_(gain.sqrt())
        column.copy_(factor)
        # A NaN, of a broken token or past the rank, changes nothing; max would take it for the largest.
        torch.fmin(left, left.addcmul(factor, factor, value=-1), out=left)
        left.scatter_(1, place, float("-inf"))
    gains, order = gains[..., 0, 0], order.T

    # Past the rank only rounding is left: measured up to 5e-6 (float32) and 1e-14 (float64) of the largest diagonal at
    # rank 256, where the last true gain was above 1e-4.
    tolerance = 1e-10 if kernel.dtype == torch.float64 else 1e-5
    full_rank = (gains > tolerance * diagonal.amax(dim=1).clamp(min=0)).sum(dim=0)
    return _cut(_continue(order, full_rank, diagonal), counts, valid)


def density_peaks(points: Tensor, valid: Tensor, clusters: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Cluster around dense points that are far from any denser one (DPC-KNN, as SparseVLM v1 merges tokens).

    D is the L2 distance / sqrt(width); density is exp(-mean of the k smallest D^2, the point's own 0 included), with
    k = `clusters[row]`, plus 1e-6 (1 - column / number of points), which breaks ties; delta is D to the nearest denser
    point, or the row's largest D for the densest. The k largest delta * density are centers; every point joins the
    nearest. Points that are not finite are the last to be centers, and join the first.

    Args:
        points: (rows, columns, width).
        valid: (rows, columns) bool, true for the first columns of each row.
        clusters: (rows,) int64, not more than the row's points.
        most: the largest number of clusters, at least 1.

    Returns:
        centers (rows, most) int64, columns by falling score, -1 beyond a row's clusters; cluster (rows, columns) int64,
        each point's index into its row's centers, -1 where not valid.
    """
    distance, usable = _distances(_widen(points), valid)
    points_in_row = valid.sum(dim=1, keepdim=True)
    density = _density(distance, points_in_row, usable, clusters, most)
    # Ranks, because float32 does not resolve the term that breaks ties.
    rank = density.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    denser = rank.unsqueeze(1) < rank.unsqueeze(2)
    # Infinity does for the largest D: either makes the densest the first. What is not usable has -inf.
    score = torch.where(denser, distance, float("inf")).amin(dim=2).mul_(density)
    centers = score.sort(dim=1, descending=True, stable=True).indices[:, :most]

    distance.diagonal(dim1=1, dim2=2).fill_(-1)  # so centers join themselves
    to_center = distance.gather(1, centers.unsqueeze(2).expand(-1, -1, distance.shape[2]))
    count = torch.minimum(clusters.unsqueeze(1), points_in_row)
    beyond = torch.arange(centers.shape[1], device=valid.device) >= count
    cluster = to_center.masked_fill_(beyond.unsqueeze(2), float("inf")).argmin(dim=1)
    cluster.masked_fill_(~valid | (count < 1), -1)
    centers = centers.masked_fill(beyond, -1)
    return functional.pad(centers, (0, most - centers.shape[1]), value=-1), cluster


def bipartite_match(
    metric: Tensor, valid: Tensor, merges: Tensor, protected: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Match tokens for merging, one round of bipartite soft matching (ToMe, arXiv 2210.09461).

    Of a row's valid tokens the first, third, ... are sources, the others destinations. The sources most cosine-similar
    to their best destination are merged into it.

    Args:
        metric: (rows, columns, width), not necessarily normalised.
        valid: (rows, columns) bool.
        merges: (rows,) int64, how many sources to merge; fewer when there are not enough.
        protected: (rows, columns) bool, tokens neither merged away nor merged into.

    Returns:
        destination (rows, columns) int64, the column a token goes to: its own, or its partner's if merged;
        merged_away (rows, columns) bool.
    """
    rows, columns = valid.shape
    own = torch.arange(columns, device=valid.device).expand(rows, columns)
    if columns < 2:
        return own.clone(), torch.zeros_like(valid)
    packed = (~valid).sort(dim=1, stable=True).indices
    sources, targets = packed[:, ::2], packed[:, 1::2]
    free = valid if protected is None else valid & ~protected
    can_go, can_take = free.gather(1, sources), free.gather(1, targets)

    metric = functional.normalize(_widen(metric), dim=-1)
    cosine = _take(metric, sources) @ _take(metric, targets).transpose(1, 2)
    cosine = cosine.masked_fill_(cosine.isnan(), -2)  # below every cosine, yet above what is ruled out
    best, partner = cosine.masked_fill_(~can_take[:, None], float("-inf")).max(dim=2)
    can_go = can_go & (best > float("-inf"))
    chosen = top_per_row(best.masked_fill(~can_go, float("-inf")), torch.minimum(merges, can_go.sum(dim=1)))
    goal = torch.where(chosen, targets.gather(1, partner), sources)
    return own.scatter(1, sources, goal), torch.zeros_like(valid).scatter(1, sources, chosen)


def match_flops(rows: int, columns: int, width: int) -> int:
    """FLOPs of `bipartite_match`."""
    return 2 * rows * ((columns + 1) // 2) * (columns // 2) * width


def _widen(values: Tensor) -> Tensor:
    """The values apart from autograd, in float32 at least."""
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))


def _take(values: Tensor, columns: Tensor) -> Tensor:
    """(rows, columns, width) at (rows, taken) columns."""
    return values.gather(1, columns[:, :, None].expand(-1, -1, values.shape[2]))


def _by_token(square: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns, ...) as (rows * columns, ...), and (rows,) where each row starts in it."""
    rows, columns = square.shape[:2]
    return square.flatten(0, 1), torch.arange(rows, device=square.device) * columns


def _cut(order: Tensor, counts: Tensor, valid: Tensor) -> Tensor:
    """(rows, steps) int64 with -1 beyond the row's count or its valid tokens."""
    slot = torch.arange(order.shape[1], device=order.device)
    return torch.where(slot < torch.minimum(counts, valid.sum(dim=1))[:, None], order, -1)


def _continue(order: Tensor, good: Tensor, scores: Tensor) -> Tensor:
    """Keep the first `good[i]` of each (rows, steps) order; the others follow by falling score."""
    slot = torch.arange(order.shape[1], device=order.device)
    keep = slot < good[:, None]
    spare = scores.shape[1]  # a column more, for what is not kept
    taken = torch.zeros_like(functional.pad(scores, (0, 1)), dtype=torch.bool)
    taken = taken.scatter_(1, torch.where(keep, order, spare), True)[:, :spare]
    rest = scores.masked_fill(taken, float("-inf")).sort(dim=1, descending=True, stable=True).indices
    return torch.where(keep, order, rest.gather(1, (slot - good[:, None]).clamp(min=0, max=spare - 1)))


def _distances(points: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns, columns) L2 / sqrt(width), inf where a point is no number or not valid; usable points."""
    distance = torch.cdist(points, points).div_(points.shape[2] ** 0.5)
    itself = distance.diagonal(dim1=1, dim2=2)
    usable = valid & (itself < float("inf"))
    itself.fill_(0)  # exactly, where cdist rounds
    apart = (usable.unsqueeze(2) & usable.unsqueeze(1)).logical_not_()
    return distance.masked_fill_(apart, float("inf")), usable


def _density(distance: Tensor, points: Tensor, usable: Tensor, clusters: Tensor, most: int) -> Tensor:
    """(rows, columns) exp(-mean of the `clusters[row]` smallest squared distances), ties broken; -inf if not usable.

    `points` (rows, 1) counts the valid ones.
    """
    columns, device = usable.shape[1], usable.device
    nearest = distance.topk(min(most, columns), dim=2, largest=False).values.square_()
    neighbours = torch.minimum(clusters, usable.sum(dim=1)).clamp_(min=1).unsqueeze(1)
    beyond = torch.arange(nearest.shape[2], device=device) >= neighbours
    mean = nearest.masked_fill_(beyond.unsqueeze(1), 0).sum(dim=2).div_(neighbours)
    place = torch.arange(columns, dtype=mean.dtype, device=device) / points.clamp(min=1)
    return mean.neg_().exp_().add_(1e-6 * (1 - place)).masked_fill_(~usable, float("-inf"))
