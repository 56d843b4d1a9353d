from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from foveal.evaluation.runner import encode, generate_answers
from foveal.show import grid_of, heat_map, merge_map, overlay, seen_images, side_by_side, stage_pictures
from support import vlm

RED = Image.new("RGB", (40, 40), (200, 0, 0))


def patch(picture: Image.Image, row: int, column: int, grid: tuple[int, int]) -> tuple[int, ...]:
    """The colour in the middle of a patch."""
    x = round((column + 0.5) * picture.width / grid[1])
    y = round((row + 0.5) * picture.height / grid[0])
    return tuple(int(value) for value in np.asarray(picture)[y, x])


def test_kept_patches_stay_bright_and_the_rest_is_pale_grey() -> None:
    picture = overlay(RED, [1, 6], (2, 4), width=400)
    kept = [(0, 1), (1, 2)]
    for row in range(2):
        for column in range(4):
            color = patch(picture, row, column, (2, 4))
            assert (color == (200, 0, 0)) == ((row, column) in kept)
            if (row, column) not in kept:
                assert len(set(color)) == 1
                assert color[0] > 150


def test_kept_patches_are_framed() -> None:
    picture = overlay(RED, torch.tensor([0]), (2, 2), width=100)
    assert picture.getpixel((0, 20)) == (255, 149, 0)
    assert picture.getpixel((49, 20)) == (255, 149, 0)
    assert picture.getpixel((50, 80)) != (255, 149, 0)


def test_the_picture_keeps_its_shape() -> None:
    assert overlay(Image.new("L", (30, 60)), [0], (2, 1), width=100).size == (100, 200)


def test_positions_outside_the_grid_are_refused() -> None:
    with pytest.raises(foveal.FovealError, match=r"0\.\.3"):
        overlay(RED, [4], (2, 2))


def test_grid() -> None:
    assert grid_of(576) == (24, 24)
    for tokens in (0, 2, 143):
        with pytest.raises(foveal.FovealError, match="no square"):
            grid_of(tokens)


def test_heat_map_orders_by_rank() -> None:
    picture = heat_map(RED, [0.1, 1000.0, float("-inf"), 0.2], (2, 2), width=100)
    brightness = [sum(patch(picture, *divmod(index, 2), (2, 2))[1:2]) for index in range(4)]
    assert np.argsort(brightness).tolist() == [2, 0, 3, 1]
    with pytest.raises(foveal.FovealError, match="3 scores"):
        heat_map(RED, [1, 2, 3], (2, 2))


def test_side_by_side() -> None:
    sheet = side_by_side([RED, Image.new("RGB", (10, 80), "black")])
    assert sheet.size == (40 + 12 + 10, 80)
    assert sheet.getpixel((45, 5)) == (255, 255, 255)
    assert sheet.getpixel((55, 79)) == (0, 0, 0)


def test_the_model_saw_the_picture() -> None:
    picture = vlm.picture(3)
    pixels = encode(vlm.processor(), [picture], ["?"])["pixel_values"]
    seen = seen_images(pixels, vlm.processor())[0]
    assert np.abs(np.asarray(seen, int) - np.asarray(picture, int)).max() <= 1
    with pytest.raises(foveal.FovealError, match="not"):
        seen_images(torch.zeros(1, 5, 3, 8, 8), vlm.processor())


def test_merge_map_gives_patches_of_one_token_one_color() -> None:
    sources = torch.tensor([[0.5, 0.0, 0.5, 0.0, 0.0, 0.0], [0.0, 1.0, 0.1, 0.0, 0.0, 0.0]])
    drawn = merge_map(RED, sources, (2, 3), width=60)
    colors = [patch(drawn, *divmod(index, 3), (2, 3)) for index in range(6)]
    assert colors[0] == colors[2] != colors[1]
    assert colors[3] == colors[4] == colors[5]
    assert colors[3] not in (colors[0], colors[1])
    with pytest.raises(foveal.FovealError, match="6 tokens"):
        merge_map(RED, sources, (2, 2))


@pytest.mark.parametrize(
    ("method", "panels"),
    [
        (foveal.FastV(keep=9), 3),
        (foveal.DART(keep=9), 2),
        (foveal.AveragePooling(keep=9), 3),
        (foveal.PyramidDrop(keep=9, layers=(1, 2, 3)), 5),
        (foveal.VisionZip(keep=9), 4),
    ],
)
def test_pictures_of_a_run(method: foveal.Compressor, panels: int) -> None:
    model, images = vlm.model(), [vlm.picture(0), vlm.picture(1)]
    with foveal.compress(model, method) as run:
        with pytest.raises(foveal.FovealError, match="nothing was compressed yet"):
            stage_pictures(run, images, vlm.TOKENS)
        generate_answers(model, vlm.processor(), images, ["a cat?", "is it a dog?"], 2)
        sheets = stage_pictures(run, images, vlm.TOKENS)
        with pytest.raises(foveal.FovealError, match="1 pictures given"):
            stage_pictures(run, images[:1], vlm.TOKENS)
    assert [sheet.width for sheet in sheets] == [480 * panels + 12 * (panels - 1)] * 2
    kept = run.stages[0].kept_in_image[1].tolist()
    drawn = sheets[1].crop((492, 0, 972, 480))
    original = sheets[1].crop((0, 0, 480, 480))
    bright = [
        index
        for index in range(vlm.TOKENS)
        if patch(drawn, *divmod(index, 12), (12, 12)) == patch(original, *divmod(index, 12), (12, 12))
    ]
    assert bright == kept
