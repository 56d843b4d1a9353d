"""Scenes: the same everywhere, disjoint between splits, and drawn where they say."""

from __future__ import annotations

import hashlib
from itertools import combinations

import numpy as np
import pytest

from foveal.mini.atlas import CATEGORIES, CLASSES, COLORS
from foveal.mini.draw import Draw
from foveal.mini.scenes import CELLS, FREQUENCY, GRID, SPLITS, THEMES, make_scene
from foveal.mini.vocabulary import HELD_OUT_WORDS, SIGN_WORDS

PIXELS = {
    ("train", 0): "d252f5cb25eb42d7",
    ("train", 12345): "6fcd277ce460215e",
    ("validation", 7): "925c968de8026ff7",
    ("test", 3): "9918521a7ff14004",
}


@pytest.mark.parametrize(("split", "index"), PIXELS)
def test_pixels_are_the_same_on_every_machine(split: str, index: int) -> None:
    digest = hashlib.sha256(make_scene(split, index).pixels().tobytes()).hexdigest()[:16]
    assert digest == PIXELS[split, index]


def test_splits_have_no_seed_and_no_scene_in_common() -> None:
    for one, two in combinations(SPLITS.values(), 2):
        assert not set(range(max(one.start, two.start), min(one.stop, two.stop)))
    drawn = [make_scene(split, index) for split in SPLITS for index in range(300)]
    assert len({(scene.objects, scene.word, scene.look) for scene in drawn}) == len(drawn)
    with pytest.raises(IndexError):
        make_scene("test", 2**41)


def test_words_of_held_out_scenes_are_never_written_in_training() -> None:
    assert not set(HELD_OUT_WORDS) & set(SIGN_WORDS)
    trained = {scene.word.text for i in range(2000) if (scene := make_scene("train", i)).word}
    tested = {scene.word.text for i in range(500) if (scene := make_scene("test", i)).word}
    assert not trained & set(HELD_OUT_WORDS)
    assert tested <= set(HELD_OUT_WORDS)


def test_objects_keep_to_their_cells_and_to_the_number_asked_for() -> None:
    for index in range(300):
        scene = make_scene("train", index)
        cells = [item.cell for item in scene.objects]
        assert 3 <= len(cells) <= 6
        assert len(set(cells)) == len(cells)
        assert scene.word is None or scene.word.cell not in cells
        for item in scene.objects:
            assert (item.x // 32, item.y // 32) == (item.column, item.row)
            assert min(item.x, item.y) - item.size // 2 >= 0
            assert max(item.x, item.y) + item.size / 2 <= 96


def test_every_object_and_disc_is_drawn_where_the_scene_says() -> None:
    with_all = next(
        scene for i in range(99) if (scene := make_scene("train", i)).word and scene.objects[0].disc
    )
    bare = with_all.pixels()
    labels = with_all.patch_labels()
    item = with_all.objects[0]
    patch = (item.y // 8) * GRID + item.x // 8
    assert labels.kind[patch] == item.kind + 1
    assert labels.disc[patch] == list(COLORS).index(str(item.disc)) + 1
    edge = bare[item.y, max(item.x - item.radius + 1, 0)].astype(int)
    assert np.abs(edge - np.array(COLORS[str(item.disc)][0])).max() <= 15
    assert with_all.word is not None
    assert (labels.letter > 0).sum() == 2 * len(with_all.word.text)


def test_frequent_kinds_are_frequent_and_themes_go_together() -> None:
    assert sorted(name for theme in THEMES for name in theme) == sorted(item.name for item in CLASSES)
    counts, together, apart = np.zeros(len(CLASSES)), 0, 0
    theme_of = {name: number for number, theme in enumerate(THEMES) for name in theme}
    for index in range(3000):
        kinds = {item.kind for item in make_scene("train", index).objects}
        counts[list(kinds)] += 1
        for one, two in combinations(kinds, 2):
            same = theme_of[CLASSES[one].name] == theme_of[CLASSES[two].name]
            together, apart = together + same, apart + (not same)
    weights = np.array(FREQUENCY)
    assert counts[weights == 10].mean() > 1.5 * counts[weights == 4].mean()
    assert together / (together + apart) > 2 * (5 / 41)


def test_classes_are_distinct_and_complete() -> None:
    assert 40 <= len(CLASSES) <= 100
    assert len({item.name for item in CLASSES}) == len({item.chinese for item in CLASSES}) == len(CLASSES)
    assert {item.category for item in CLASSES} == set(CATEGORIES)
    assert len(CELLS) == 9


def test_draw_follows_its_key_alone() -> None:
    assert [Draw("a").below(1000) for _ in range(2)] == [Draw("a").below(1000)] * 2
    assert Draw("a").below(10**9) != Draw("b").below(10**9)
    assert Draw("c").several("abc", 5) in (list("abc"), *map(list, ("acb", "bac", "bca", "cab", "cba")))
    counts = np.bincount([Draw(f"w{i}").weighted((3.0, 0.0, 1.0)) for i in range(2000)], minlength=3)
    assert counts[1] == 0
    assert 2.4 < counts[0] / counts[2] < 3.8
