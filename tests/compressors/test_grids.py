"""Coarser grids, average pooling and downsampling."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import foveal
from foveal.compressors.context import TowerContext
from foveal.compressors.downsample import Downsample
from foveal.compressors.grids import cell_centres, cell_shares, coarse_grid
from foveal.compressors.pooling import AveragePooling

pytestmark = pytest.mark.usefixtures("inference")

GRIDS = [(rows, columns) for rows in range(1, 9) for columns in range(1, 9)] + [(12, 12), (3, 17), (14, 10)]
KNOWN = [
    ((12, 12), 48, (6, 8)),
    ((12, 12), 47, (5, 9)),
    ((12, 12), 32, (4, 8)),
    ((12, 12), 9, (3, 3)),
    ((12, 12), 3, (1, 2)),
    ((12, 12), 1, (1, 1)),
    ((12, 12), 143, (11, 12)),
    ((12, 12), 144, (12, 12)),
    ((24, 24), 64, (8, 8)),
    ((24, 24), 128, (8, 16)),
    ((24, 24), 192, (12, 16)),
    ((12, 24), 32, (4, 8)),  # squarest cells, not the squarest shape
    ((24, 12), 32, (8, 4)),
    ((2, 20), 4, (1, 4)),  # nothing within a factor 2 is this small
    ((20, 2), 4, (4, 1)),
]


def narrow(shape: tuple[int, int], grid: tuple[int, int]) -> Fraction:
    aspect = Fraction(shape[1], shape[0]) / Fraction(grid[1], grid[0])
    return max(aspect, 1 / aspect)


@pytest.mark.parametrize(("grid", "keep", "expected"), KNOWN)
def test_known_grids(grid: tuple[int, int], keep: int, expected: tuple[int, int]) -> None:
    assert coarse_grid(keep, grid) == expected


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_better_grid_exists(grid: tuple[int, int]) -> None:
    shapes = [(h, w) for h in range(1, grid[0] + 1) for w in range(1, grid[1] + 1)]
    previous = 0
    for keep in range(1, grid[0] * grid[1] + 1):
        found = coarse_grid(keep, grid)
        assert found in shapes
        assert previous <= found[0] * found[1] <= keep
        previous = found[0] * found[1]
        fitting = [shape for shape in shapes if shape[0] * shape[1] <= keep]
        allowed = [shape for shape in fitting if narrow(shape, grid) <= 2]
        assert not allowed or found in allowed
        for other in allowed or fitting:
            assert other[0] * other[1] <= previous
            if other[0] * other[1] == previous:
                assert (narrow(found, grid), -found[1]) <= (narrow(other, grid), -other[1])
    assert coarse_grid(grid[0] * grid[1], grid) == grid


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (5, 7), (12, 12), (8, 3)], ids=str)
def test_cells_are_those_of_adaptive_average_pooling(grid: tuple[int, int]) -> None:
    patches = torch.randn(3, *grid, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for h in range(1, grid[0] + 1):
        for w in range(1, grid[1] + 1):
            shares = cell_shares((h, w), grid, patches)
            pooled = functional.adaptive_avg_pool2d(patches, (h, w)).flatten(1)
            torch.testing.assert_close(patches.flatten(1) @ shares.T, pooled, rtol=1e-12, atol=1e-14)
            centres = cell_centres((h, w), grid, patches.device).nonzero()[:, 0]
            assert len(centres) == h * w
            assert (shares[torch.arange(h * w), centres] > 0).all()  # a cell's centre is in the cell


def test_centres_lie_in_the_middle() -> None:
    centres = cell_centres((2, 4), (6, 12), torch.device("cpu")).nonzero()[:, 0]
    assert centres.tolist() == [row * 12 + column for row in (1, 4) for column in (1, 4, 7, 10)]
    assert cell_centres((5, 7), (5, 7), torch.device("cpu")).all()


def context(grid: tuple[int, int], images: int = 2, dtype: torch.dtype = torch.float64) -> TowerContext:
    draw = torch.Generator().manual_seed(1)
    return TowerContext(
        features=torch.randn(images, grid[0] * grid[1], 6, dtype=torch.float64, generator=draw).to(dtype),
        grid=grid,
    )


def pooled(features: Tensor, grid: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """torch's own pooling of (images, tokens, width)."""
    image = features.transpose(1, 2).unflatten(2, grid)
    return functional.adaptive_avg_pool2d(image, shape).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("grid", "keep", "shape"), KNOWN)
def test_pooling(grid: tuple[int, int], keep: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
    given = context(grid, dtype=dtype)
    selection = AveragePooling(keep=keep).choose(given)
    count = shape[0] * shape[1]
    assert selection.counts == (count, count)
    assert selection.kept.sum(dim=1).tolist() == [count, count]
    assert selection.kept.shape == given.features.shape[:2]
    if shape == grid:
        assert selection.kept.all()
        assert selection.mix is None
        return
    assert selection.mix is not None
    assert selection.mix.shape == (2, count, grid[0] * grid[1])
    assert selection.mix.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(
        selection.mix @ given.features, pooled(given.features, grid, shape), rtol=tolerance, atol=tolerance
    )


def test_pooling_by_a_fraction_and_in_half_precision() -> None:
    given = context((12, 12), images=3, dtype=torch.float16)
    selection = AveragePooling(keep=0.25).choose(given)
    assert selection.counts == (36, 36, 36)
    assert selection.mix is not None
    assert selection.mix.dtype == torch.float32
    assert AveragePooling(keep=0.001).choose(given).counts == (1, 1, 1)
    whole = AveragePooling(keep=1.0).choose(given)
    assert whole.kept.all()
    assert whole.mix is None


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_count_of_small_grids(grid: tuple[int, int]) -> None:
    given = context(grid, images=1)
    for keep in range(1, given.tokens + 1):
        shape = coarse_grid(keep, grid)
        selection = AveragePooling(keep=keep).choose(given)
        assert selection.counts == (shape[0] * shape[1],)
        merged = given.features if selection.mix is None else selection.mix @ given.features
        torch.testing.assert_close(merged, pooled(given.features, grid, shape))


@pytest.mark.parametrize(("grid", "keep", "shape"), KNOWN)
def test_downsample(grid: tuple[int, int], keep: int, shape: tuple[int, int]) -> None:
    method = Downsample(keep=keep)
    assert method.resized(grid) == shape
    small = context(shape)
    given = TowerContext(features=small.features, grid=grid)
    selection = method.choose(given)
    count = shape[0] * shape[1]
    assert selection.counts == (count, count)
    assert selection.kept.shape == (2, grid[0] * grid[1])
    assert selection.kept.sum(dim=1).tolist() == [count, count]
    assert selection.mix is None
    if shape == grid:
        assert selection.kept.all()
        assert selection.sources is None
        return
    assert selection.sources is not None
    assert selection.sources.shape == (2, count, grid[0] * grid[1])
    patches = torch.arange(grid[0] * grid[1], dtype=torch.float64)[None, :, None]
    torch.testing.assert_close(selection.sources[:1] @ patches, pooled(patches, grid, shape))


def test_downsample_by_a_fraction() -> None:
    assert Downsample(keep=0.25).resized((24, 24)) == (12, 12)
    assert Downsample(keep=1.0).resized((24, 24)) == (24, 24)


def test_other_methods_see_the_whole_image() -> None:
    assert AveragePooling(keep=4).resized((7, 9)) == (7, 9)


@pytest.mark.parametrize("method", [AveragePooling, Downsample])
def test_more_than_there_is_is_refused(method: type[foveal.TowerCompressor]) -> None:
    with pytest.raises(foveal.FovealError, match="keep=145 is more than the 144 visual tokens"):
        method(keep=145).choose(context((12, 12)))
    with pytest.raises(foveal.FovealError, match="at least 1 visual token"):
        method(keep=0)
    assert method(keep=4).positions == "packed"
