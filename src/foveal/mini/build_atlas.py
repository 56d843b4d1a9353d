"""Rebuild ``data/atlas.png`` and ``data/glyphs.png``: only needed when the list of classes changes.

    python -m foveal.mini.build_atlas EMOJI_FOLDER FONT_FILE

EMOJI_FOLDER is ``package/img/google/64`` of the npm package emoji-datasource-google 16.0.0; FONT_FILE is
``DejaVuSansMono-Bold.ttf``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from foveal.mini import atlas

__all__ = ["build_atlas", "build_glyphs"]


def build_atlas(folder: Path) -> Image.Image:
    """All classes on one RGBA sheet, seven a row, 48 pixels each."""
    rows = -(-len(atlas.CLASSES) // atlas.COLUMNS)
    sheet = Image.new("RGBA", (atlas.COLUMNS * atlas.CELL, rows * atlas.CELL))
    for index, item in enumerate(atlas.CLASSES):
        with Image.open(folder / f"{item.code}.png") as source:
            small = source.convert("RGBA").resize((atlas.CELL, atlas.CELL), Image.Resampling.LANCZOS)
        sheet.paste(small, (index % atlas.COLUMNS * atlas.CELL, index // atlas.COLUMNS * atlas.CELL))
    return sheet


def build_glyphs(font_file: Path) -> Image.Image:
    """The letters A to Z side by side, 8 x 13 pixels of coverage each."""
    width, height = atlas.GLYPH_SIZE
    font = ImageFont.truetype(str(font_file), 13)
    sheet = Image.new("L", (width * len(atlas.LETTERS), height))
    pen = ImageDraw.Draw(sheet)
    for index, letter in enumerate(atlas.LETTERS.upper()):
        pen.text((index * width + width // 2, height - 2), letter, fill=255, font=font, anchor="ms")
    return sheet


if __name__ == "__main__":
    build_atlas(Path(sys.argv[1])).save(atlas.DATA / "atlas.png", optimize=True)
    build_glyphs(Path(sys.argv[2])).save(atlas.DATA / "glyphs.png", optimize=True)
