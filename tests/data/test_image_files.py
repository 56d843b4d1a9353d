from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal import FovealError
from foveal.data.image_files import check_image, image_size

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_size_and_wholeness_of_files_and_bytes(tmp_path: Path, form: str) -> None:
    path = tmp_path / "picture"
    NOISE.save(path, form)
    content = path.read_bytes()
    assert image_size(path) == image_size(content) == image_size(NOISE) == (60, 90)
    assert check_image(path) == check_image(content) == check_image(NOISE) == (60, 90)
    path.write_bytes(content[: len(content) * 2 // 3])
    for broken, name in ((path, "picture"), (path.read_bytes(), "an image of")):
        with pytest.raises(FovealError, match=f"cannot read .*{name}"):
            check_image(broken)


def test_a_flipped_bit_of_a_png_is_found(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    NOISE.save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(FovealError, match="cannot read"):
        check_image(path)


def test_a_jpeg_with_something_behind_it_is_whole() -> None:
    file = BytesIO()
    NOISE.save(file, "JPEG")
    assert check_image(file.getvalue() + bytes(200_000)) == (60, 90)


def test_a_turned_picture_has_the_size_that_is_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    NOISE.save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(tmp_path / "turned.jpg") == (90, 60)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FovealError, match=r"no such image: .*gone\.png"):
        check_image(tmp_path / "gone.png")
    with pytest.raises(FovealError, match="cannot read"):
        image_size(tmp_path)
