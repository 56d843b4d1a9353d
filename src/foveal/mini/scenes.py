"""Procedural scenes: three to six emoji on a textured background, discs behind some of them, perhaps a word.

A scene is drawn from its split and index alone. The splits are disjoint ranges of seeds, so a held-out scene is never
trained on, and the words written in held-out scenes are never written in training ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveal.mini.atlas import CLASSES, COLORS, GLYPH_SIZE, LETTERS, class_index, emoji, glyph
from foveal.mini.draw import Draw
from foveal.mini.vocabulary import HELD_OUT_WORDS, SIGN_WORDS, spellable

__all__ = [
    "CELLS",
    "FREQUENCY",
    "GRID",
    "PATCH",
    "SIDE",
    "SPLITS",
    "THEMES",
    "PatchLabels",
    "Scene",
    "SceneObject",
    "Word",
    "cell_of_patch",
    "make_page",
    "make_scene",
]

SIDE = 96
PATCH = 8
GRID = SIDE // PATCH
CELL_SIDE = SIDE // 3
CELLS: tuple[str, ...] = tuple(
    f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "center", "right")
)

SPLITS: dict[str, range] = {
    "train": range(2**40),
    "validation": range(2**40, 2**41),
    "test": range(2**41, 2**42),
}

# Kinds that are seen together, the most frequent first: POPE's popular and adversarial negatives need both.
THEMES: tuple[tuple[str, ...], ...] = (
    ("pig", "rabbit", "bee", "tractor", "corn", "carrot"),
    ("cake", "donut", "gift", "crown", "hat", "guitar"),
    ("bus", "car", "bike", "burger", "pizza", "train"),
    ("fish", "crab", "boat", "penguin", "umbrella", "ball"),
    ("fox", "owl", "frog", "butterfly", "panda", "helicopter"),
    ("book", "clock", "key", "balloon", "camera", "bell"),
    ("apple", "banana", "grape", "melon", "cat", "rocket"),
)
_RANK_WEIGHTS = (10.0, 8.0, 7.0, 6.0, 5.0, 4.0)
_THEMES = tuple(tuple(class_index(name) for name in theme) for theme in THEMES)
FREQUENCY: tuple[float, ...] = tuple(
    weight
    for _, weight in sorted(
        (index, weight) for theme in _THEMES for index, weight in zip(theme, _RANK_WEIGHTS, strict=True)
    )
)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class SceneObject:
    """One emoji: its class, its cell 0..8, its centre and size in pixels, and the colour of the disc behind it."""

    kind: int
    cell: int
    x: int
    y: int
    size: int
    mirrored: bool
    disc: str | None

    @property
    def name(self) -> str:
        """Its English name."""
        return CLASSES[self.kind].name

    @property
    def row(self) -> int:
        """0 top, 1 middle, 2 bottom."""
        return self.cell // 3

    @property
    def column(self) -> int:
        """0 left, 1 centre, 2 right."""
        return self.cell % 3

    @property
    def radius(self) -> int:
        """The radius of its disc in pixels."""
        return self.size // 2 + 3


@dataclass(frozen=True)
class Word:
    """A word on a plate: its text, its cell 0..8, and the left and top of its first letter in pixels."""

    text: str
    cell: int
    x: int
    y: int

    @property
    def patches(self) -> tuple[int, ...]:
        """For each letter the upper of the two patches that mostly show it."""
        width, height = GLYPH_SIZE
        top = max(round((self.y + height / 2) / PATCH) - 1, 0)
        centres = (self.x + position * width + width // 2 for position in range(len(self.text)))
        return tuple(top * GRID + min(centre // PATCH, GRID - 1) for centre in centres)


@dataclass(frozen=True)
class PatchLabels:
    """What each of the 144 patches shows, 0 for nothing: kind of object + 1, colour of disc + 1, letter + 1."""

    kind: NDArray[np.int64]
    disc: NDArray[np.int64]
    letter: NDArray[np.int64]


@dataclass(frozen=True)
class Scene:
    """All that is in one picture; `render` draws it."""

    split: str
    index: int
    objects: tuple[SceneObject, ...]
    word: Word | None
    look: str
    page: tuple[Word, ...] = ()

    @property
    def id(self) -> str:
        """Unique name of the scene."""
        return f"{self.split}-{self.index}"

    @property
    def words(self) -> tuple[Word, ...]:
        """All that is written in it."""
        return self.page if self.word is None else (self.word, *self.page)

    def count(self, kind: int) -> int:
        """How many objects of class `kind` there are."""
        return sum(item.kind == kind for item in self.objects)

    def at(self, cell: int) -> SceneObject | None:
        """The object in a cell, if any."""
        return next((item for item in self.objects if item.cell == cell), None)

    def singles(self) -> list[SceneObject]:
        """The objects that are the only ones of their kind: those a question can name."""
        return [item for item in self.objects if self.count(item.kind) == 1]

    def absent(self) -> list[int]:
        """The classes that are not in the scene."""
        present = {item.kind for item in self.objects}
        return [kind for kind in range(len(CLASSES)) if kind not in present]

    def pixels(self) -> Pixels:
        """The picture as uint8 (96, 96, 3)."""
        draw = Draw(f"look/{self.look}")
        canvas = _background(draw)
        for _ in range(draw.between(2, 5)):
            _clutter(canvas, draw)
        for item in self.objects:
            if item.disc is not None:
                _disc(canvas, item.x, item.y, item.radius, _shade(COLORS[item.disc][0], draw))
        for word in self.words:
            _write(canvas, word, draw)
        return _paste(canvas, self.objects)

    def render(self) -> Image.Image:
        """The picture as an RGB image of 96 x 96 pixels."""
        return Image.fromarray(self.pixels())

    def patch_labels(self) -> PatchLabels:
        """What each patch shows, three int64 arrays of shape (144,), in raster order."""
        labels = PatchLabels(*(np.zeros((GRID, GRID), np.int64) for _ in range(3)))
        for item in self.objects:
            labels.kind[_near(item.x, item.y, item.size // 2)] = item.kind + 1
            if item.disc is not None:
                labels.disc[_near(item.x, item.y, item.radius)] = list(COLORS).index(item.disc) + 1
        for word in self.words:
            _label_letters(labels.letter, word)
        return PatchLabels(labels.kind.reshape(-1), labels.disc.reshape(-1), labels.letter.reshape(-1))


def make_scene(split: str, index: int, objects: tuple[int, int] = (3, 6), word: float = 0.5) -> Scene:
    """Draw scene `index` of a split; equal arguments give equal scenes.

    Args:
        split: "train", "validation" or "test"; KeyError otherwise.
        index: from 0; IndexError beyond the split's range.
        objects: least and greatest number of objects.
        word: probability that a word is written in it.
    """
    seed = SPLITS[split][index]
    draw = Draw(f"scene/{seed}/{objects[0]}-{objects[1]}/{word}")
    total = draw.between(*objects)
    cells = draw.several(range(9), total + 1)
    kinds = _draw_kinds(draw, total)
    items = tuple(_place(draw, kind, cell) for kind, cell in zip(kinds, cells, strict=False))
    sign = _draw_word(draw, split, cells[total]) if draw.chance(word) else None
    return Scene(split, index, items, sign, f"{seed}/{draw.below(1 << 30)}")


def make_page(index: int) -> Scene:
    """A training picture with a word in each of the nine cells and nothing else: reading practice."""
    seed = SPLITS["train"][index]
    draw = Draw(f"page/{seed}")
    words = tuple(_draw_word(draw, "train", cell) for cell in range(9))
    return Scene("train", index, (), None, f"page/{seed}", words)


def _draw_kinds(draw: Draw, total: int) -> list[int]:
    theme = draw.one(_THEMES)
    themed = draw.chance(0.8)
    kinds: list[int] = []
    while len(kinds) < total:
        if kinds and draw.chance(0.22):
            kinds.append(draw.one(kinds))
            continue
        in_theme = themed and draw.chance(0.6)
        kind = theme[draw.weighted(_RANK_WEIGHTS)] if in_theme else draw.weighted(FREQUENCY)
        if kind not in kinds:
            kinds.append(kind)
    return draw.several(kinds, total)


def _place(draw: Draw, kind: int, cell: int) -> SceneObject:
    size = draw.between(22, 28)
    slack = (CELL_SIDE - size) // 2
    x = cell % 3 * CELL_SIDE + CELL_SIDE // 2 + draw.between(-slack, slack)
    y = cell // 3 * CELL_SIDE + CELL_SIDE // 2 + draw.between(-slack, slack)
    disc = draw.one(tuple(COLORS)) if draw.chance(0.55) else None
    return SceneObject(kind, cell, x, y, size, draw.chance(0.5), disc)


def _draw_word(draw: Draw, split: str, cell: int) -> Word:
    text = _random_word(draw) if split == "train" else draw.one(HELD_OUT_WORDS)
    width = len(text) * GLYPH_SIZE[0]
    x = cell % 3 * CELL_SIDE + (CELL_SIDE - width) // 2 + draw.between(-1, 1)
    y = cell // 3 * CELL_SIDE + (CELL_SIDE - GLYPH_SIZE[1]) // 2 + draw.between(-6, 6)
    return Word(text, cell, min(max(x, 0), SIDE - width), y)


def _random_word(draw: Draw) -> str:
    """A word for training: three in ten are English, the rest any letters at all; never a held-out word."""
    if draw.chance(0.3):
        return draw.one(SIGN_WORDS)
    while True:
        text = "".join(draw.one(LETTERS) for _ in range(draw.between(3, 4)))
        if spellable(text) and text not in HELD_OUT_WORDS:
            return text


@lru_cache(maxsize=1)
def _noise() -> NDArray[np.int16]:
    """White noise of -16..15 by an integer hash of the position, (192, 192)."""
    y, x = np.indices((2 * SIDE, 2 * SIDE)).astype(np.uint32)
    value = (x * np.uint32(374761393) + y * np.uint32(668265263)) ^ np.uint32(0x9E3779B9)
    value = (value ^ (value >> np.uint32(13))) * np.uint32(1274126177)
    return ((value >> np.uint32(16)) % np.uint32(32)).astype(np.int16) - 16


@lru_cache(maxsize=1)
def _patterns() -> tuple[NDArray[np.int16], ...]:
    """Patterns of 0..255, (96, 96) each: slopes, stripes, checks, rings."""
    y, x = np.indices((SIDE, SIDE)).astype(np.int32)
    ramps = [x * 255 // 95, y * 255 // 95, (x + y) * 255 // 190, (x + 95 - y) * 255 // 190]
    stripes = [(a // width % 2) * 255 for a in (x, y, x + y, x - y + SIDE) for width in (5, 9, 14)]
    checks = [((x // width + y // width) % 2) * 255 for width in (6, 11, 16)]
    rings = [(((x - a) ** 2 + (y - b) ** 2) // 400 % 2) * 255 for a, b in ((48, 48), (0, 0), (95, 20))]
    return tuple(pattern.astype(np.int16) for pattern in (*ramps, *stripes, *checks, *rings))


def _background(draw: Draw) -> Pixels:
    base = np.array([draw.between(70, 200) for _ in range(3)], np.int16)
    step = np.array([draw.between(-40, 40) for _ in range(3)], np.int16)
    pattern = draw.one(_patterns())
    left, top = draw.below(SIDE), draw.below(SIDE)
    grain = _noise()[top : top + SIDE, left : left + SIDE]
    tinted = base + (pattern[..., None].astype(np.int32) * step // 255) + grain[..., None]
    return np.clip(tinted, 0, 255).astype(np.uint8)


def _clutter(canvas: Pixels, draw: Draw) -> None:
    left, top = draw.below(SIDE - 8), draw.below(SIDE - 8)
    width, height = draw.between(2, 8), draw.between(2, 8)
    canvas[top : top + height, left : left + width] = [draw.below(256) for _ in range(3)]


def _shade(color: tuple[int, int, int], draw: Draw) -> list[int]:
    return [min(max(part + draw.between(-14, 14), 0), 255) for part in color]


def _disc(canvas: Pixels, x: int, y: int, radius: int, color: list[int]) -> None:
    left, top = max(x - radius, 0), max(y - radius, 0)
    region = canvas[top : y + radius + 1, left : x + radius + 1]
    rows, columns = np.indices(region.shape[:2])
    region[(rows + top - y) ** 2 + (columns + left - x) ** 2 <= radius * radius] = color


def _write(canvas: Pixels, word: Word, draw: Draw) -> None:
    ink, paper = draw.between(0, 50), draw.between(215, 255)
    if draw.chance(0.3):
        ink, paper = paper, ink
    width, height = GLYPH_SIZE
    top, bottom = max(word.y - 1, 0), min(word.y + height + 1, SIDE)
    canvas[top:bottom, max(word.x - 1, 0) : min(word.x + width * len(word.text) + 1, SIDE)] = paper
    for position, letter in enumerate(word.text):
        cover = glyph(letter).astype(np.int32)
        left = word.x + position * width
        shade = paper + (ink - paper) * cover // 255
        canvas[word.y : word.y + height, left : left + width] = shade[..., None].astype(np.uint8)


def _paste(canvas: Pixels, items: tuple[SceneObject, ...]) -> Pixels:
    picture = Image.fromarray(canvas).convert("RGBA")
    for item in items:
        corner = (item.x - item.size // 2, item.y - item.size // 2)
        picture.alpha_composite(emoji(item.kind, item.size, item.mirrored), corner)
    return np.asarray(picture.convert("RGB"))


def cell_of_patch() -> NDArray[np.int64]:
    """The cell 0..8 that each patch's centre is in, int64 (144,)."""
    rows, columns = (np.indices((GRID, GRID)) * PATCH + PATCH // 2) // CELL_SIDE
    return np.asarray(rows * 3 + columns, np.int64).reshape(-1)


def _near(x: int, y: int, radius: int) -> NDArray[np.bool_]:
    """The patches whose centre is within `radius` of a point, bool (12, 12)."""
    rows, columns = np.indices((GRID, GRID)) * PATCH + PATCH // 2
    return np.asarray((rows - y) ** 2 + (columns - x) ** 2 <= radius * radius)


def _label_letters(labels: NDArray[np.int64], word: Word) -> None:
    """Name each patch of the two rows that the word mostly covers by the letter under its centre."""
    for patch, letter in zip(word.patches, word.text, strict=True):
        row, column = divmod(patch, GRID)
        labels[row : row + 2, column] = LETTERS.index(letter) + 1
