"""The pictures that scenes are made of: emoji, their names, and the letters that words are drawn with.

Both come from PNG files shipped beside this module (licences in ``data/LICENSE-ART.md``), so that no font and no
font engine of the machine at hand takes part and a scene has the same pixels everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = [
    "CATEGORIES",
    "CELL",
    "CLASSES",
    "COLORS",
    "GLYPH_SIZE",
    "LETTERS",
    "EmojiClass",
    "class_index",
    "emoji",
    "glyph",
]

CELL = 48
COLUMNS = 7
GLYPH_SIZE = (8, 13)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class EmojiClass:
    """One kind of object: its English name, its Chinese name, its category and the art's code point."""

    name: str
    chinese: str
    category: str
    code: str


CATEGORIES: dict[str, str] = {"animal": "动物", "food": "食物", "vehicle": "车辆", "object": "物品"}

COLORS: dict[str, tuple[tuple[int, int, int], str]] = {
    "red": ((214, 40, 40), "红"),
    "orange": ((250, 140, 20), "橙"),
    "yellow": ((250, 225, 50), "黄"),
    "green": ((40, 160, 60), "绿"),
    "blue": ((35, 90, 215), "蓝"),
    "purple": ((140, 50, 175), "紫"),
    "white": ((250, 250, 250), "白"),
    "black": ((20, 20, 20), "黑"),
}

CLASSES: tuple[EmojiClass, ...] = (
    EmojiClass("cat", "小猫", "animal", "1f431"),
    EmojiClass("fox", "狐狸", "animal", "1f98a"),
    EmojiClass("frog", "青蛙", "animal", "1f438"),
    EmojiClass("panda", "熊猫", "animal", "1f43c"),
    EmojiClass("pig", "小猪", "animal", "1f437"),
    EmojiClass("rabbit", "兔子", "animal", "1f430"),
    EmojiClass("penguin", "企鹅", "animal", "1f427"),
    EmojiClass("owl", "猫头鹰", "animal", "1f989"),
    EmojiClass("fish", "小鱼", "animal", "1f420"),
    EmojiClass("crab", "螃蟹", "animal", "1f980"),
    EmojiClass("butterfly", "蝴蝶", "animal", "1f98b"),
    EmojiClass("bee", "蜜蜂", "animal", "1f41d"),
    EmojiClass("apple", "苹果", "food", "1f34e"),
    EmojiClass("banana", "香蕉", "food", "1f34c"),
    EmojiClass("grape", "葡萄", "food", "1f347"),
    EmojiClass("carrot", "胡萝卜", "food", "1f955"),
    EmojiClass("pizza", "披萨", "food", "1f355"),
    EmojiClass("burger", "汉堡", "food", "1f354"),
    EmojiClass("cake", "蛋糕", "food", "1f370"),
    EmojiClass("donut", "甜甜圈", "food", "1f369"),
    EmojiClass("melon", "西瓜", "food", "1f349"),
    EmojiClass("corn", "玉米", "food", "1f33d"),
    EmojiClass("bus", "公交车", "vehicle", "1f68c"),
    EmojiClass("car", "汽车", "vehicle", "1f697"),
    EmojiClass("tractor", "拖拉机", "vehicle", "1f69c"),
    EmojiClass("rocket", "火箭", "vehicle", "1f680"),
    EmojiClass("helicopter", "直升机", "vehicle", "1f681"),
    EmojiClass("bike", "自行车", "vehicle", "1f6b2"),
    EmojiClass("boat", "帆船", "vehicle", "26f5"),
    EmojiClass("train", "火车", "vehicle", "1f682"),
    EmojiClass("key", "钥匙", "object", "1f511"),
    EmojiClass("umbrella", "雨伞", "object", "2602-fe0f"),
    EmojiClass("guitar", "吉他", "object", "1f3b8"),
    EmojiClass("clock", "闹钟", "object", "23f0"),
    EmojiClass("ball", "足球", "object", "26bd"),
    EmojiClass("book", "书本", "object", "1f4d7"),
    EmojiClass("camera", "相机", "object", "1f4f7"),
    EmojiClass("gift", "礼物", "object", "1f381"),
    EmojiClass("hat", "礼帽", "object", "1f3a9"),
    EmojiClass("bell", "铃铛", "object", "1f514"),
    EmojiClass("crown", "皇冠", "object", "1f451"),
    EmojiClass("balloon", "气球", "object", "1f388"),
)


def class_index(name: str) -> int:
    """The index in `CLASSES` of the class called `name`; KeyError if there is none."""
    return _indices()[name]


@cache
def _indices() -> dict[str, int]:
    return {item.name: index for index, item in enumerate(CLASSES)}


@cache
def _atlas() -> Image.Image:
    with Image.open(DATA / "atlas.png") as picture:
        return picture.convert("RGBA")


@cache
def _glyphs() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(DATA / "glyphs.png") as picture:
        return np.asarray(picture.convert("L"))


@cache
def emoji(index: int, size: int, mirrored: bool = False) -> Image.Image:
    """The picture of class `index` as an RGBA image of `size` x `size` pixels."""
    left, top = index % COLUMNS * CELL, index // COLUMNS * CELL
    picture = _atlas().crop((left, top, left + CELL, top + CELL)).resize((size, size), Image.Resampling.BOX)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture


@cache
def glyph(letter: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The upper-case form of `letter` as coverage 0..255, (13, 8)."""
    width = GLYPH_SIZE[0]
    start = LETTERS.index(letter) * width
    return _glyphs()[:, start : start + width]
