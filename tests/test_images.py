from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal import FovealError
from foveal.images import open_image


def save(folder: Path, image: Image.Image, name: str = "picture.png", **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    white = Image.new("RGB", (5, 3), "white").convert(mode)
    opened = open_image(save(tmp_path, white, "picture.tiff"))
    assert (opened.mode, opened.size) == ("RGB", (5, 3))
    assert opened.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((1, 0), (0, 0, 0, 255))
    opened = open_image(save(tmp_path, clear.convert(mode)))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 0)]


def test_sixteen_bit_grey_is_scaled(tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    opened = open_image(save(tmp_path, grey))
    assert [opened.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (30, 10), "white")
    exif = picture.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees
    path = save(tmp_path, picture, "picture.jpg", exif=exif)
    assert open_image(path).size == (10, 30)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n1234"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(FovealError, match=r"cannot read .*broken\.png as an image"):
        open_image(tmp_path / "broken.png")


def test_half_a_file_is_broken(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path, Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(FovealError, match="cannot read"):
        open_image(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FovealError, match=r"no such image: .*gone\.png"):
        open_image(tmp_path / "gone.png")
    with pytest.raises(FovealError, match="cannot read"):
        open_image(tmp_path)
