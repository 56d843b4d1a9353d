"""What the hints point at."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveal.mini.architecture import build_llava
from foveal.mini.atlas import CLASSES, COLORS, LETTERS
from foveal.mini.learner import Batch, Learner, make_batch
from foveal.mini.packing import Codec
from foveal.mini.scenes import CELLS, cell_of_patch, make_page, make_scene
from foveal.mini.stages import Lesson
from foveal.mini.tokenizer import build_tokenizer

START = 2


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(build_tokenizer())


@pytest.fixture(scope="module")
def learner(codec: Codec) -> Learner:
    return Learner(build_llava(build_tokenizer()), codec)


def hints(learner: Learner, batch: Batch) -> list[list[tuple[int, set[int]]]]:
    """Per guide, the (column, target columns) of every hint."""
    assert batch.pack is not None
    looking, answering = learner.hints.guides(batch.pack, batch.patches)
    return [
        [
            (int(column), set(target.nonzero()[:, 0].tolist()))
            for column, target in zip(g.columns, g.targets, strict=True)
        ]
        for g in (*looking, *answering)
    ]


def test_phrases_point_at_what_they_name_in_both_languages(codec: Codec, learner: Learner) -> None:
    scene = next(s for i in range(50) for s in [make_scene("train", i)] if s.objects[0].disc and s.singles())
    item = scene.singles()[0]
    labels = scene.patch_labels()
    shown = set((np.flatnonzero(labels.kind == item.kind + 1) + START).tolist())
    place = set((np.flatnonzero(cell_of_patch() == item.cell) + START).tolist())
    for question in (
        f"is there a {item.name} in the {CELLS[item.cell]}?",
        f"{CLASSES[item.kind].chinese}在哪里？",
    ):
        segment = codec.segment([(question, "yes")])
        batch = make_batch([Lesson(scene.render(), scene, [segment])], codec.prefix, 200)
        objects, _, cells, _, _, letters, first, last, options = hints(learner, batch)
        assert [target for _, target in objects] == [shown]
        assert [target for _, target in cells] == ([place] if "in the" in question else [])
        assert first == last == [(first[0][0], {objects[0][0]})]
        assert letters == options == []


def test_letters_point_at_their_patches(codec: Codec, learner: Learner) -> None:
    page = make_page(3)
    word = page.words[4]
    segment = codec.segment([("what word is in the middle center?", word.text)], word.patches)
    batch = make_batch([Lesson(page.render(), page, [segment])], codec.prefix, 200)
    letters = hints(learner, batch)[5]
    labels = page.patch_labels().letter
    assert len(letters) == len(word.text)
    for letter, (_, target) in zip(word.text, letters, strict=True):
        assert {int(labels[patch - START]) for patch in target} == {LETTERS.index(letter) + 1}


def test_an_options_letter_points_at_the_option(codec: Codec, learner: Learner) -> None:
    scene = make_scene("train", 0)
    segment = codec.segment([("what is in the top left? A. bee B. tractor C. cat D. top left", "B")])
    batch = make_batch([Lesson(scene.render(), scene, [segment])], codec.prefix, 200)
    assert batch.pack is not None
    ((column, target),) = hints(learner, batch)[8]
    tokens = batch.pack.ids[0]
    assert build_tokenizer().decode(tokens[sorted(target)]) == "B. tractor"
    assert build_tokenizer().decode(tokens[[column]]) == "ASSISTANT:"


def test_easy_vqa_has_no_patch_labels_and_still_a_finite_loss(codec: Codec, learner: Learner) -> None:
    image = make_scene("train", 1).render().resize((64, 64))
    batch = make_batch(
        [Lesson(image, None, [codec.segment([("what shape is in the image?", "circle")])])], codec.prefix, 180
    )
    assert (batch.patches == -100).all()
    losses = learner(batch, 1.0, 0.1)
    assert torch.isfinite(losses["loss"])


def test_each_word_of_an_answer_points_at_the_names_asked_about(codec: Codec, learner: Learner) -> None:
    scene = make_scene("train", 0)
    segment = codec.segment([("is the fox left or right of the key?", "left")])
    longer = codec.segment([("where is the fox?", "top left")])
    batch = make_batch([Lesson(scene.render(), scene, [segment, longer])], codec.prefix, 200)
    assert batch.pack is not None
    words = build_tokenizer().convert_ids_to_tokens(batch.pack.ids[0].tolist())
    *_, first, last, _ = hints(learner, batch)
    assert [words[column] for column, _ in first] == ["ASSISTANT:", "ASSISTANT:", "top"]
    assert [[words[token] for token in target] for _, target in first] == [["fox"], ["fox"], ["fox"]]
    assert [[words[token] for token in target] for _, target in last] == [["key"], ["fox"], ["fox"]]


def test_colors_and_categories_point_at_all_that_have_them(codec: Codec, learner: Learner) -> None:
    scene = next(s for i in range(50) for s in [make_scene("train", i)] if s.objects[0].disc)
    item = scene.objects[0]
    category = CLASSES[item.kind].category
    asked = [f"what object is on the {item.disc} disc?", f"how many {category} pictures are there?"]
    segments = [codec.segment([(question, "no")]) for question in asked]
    batch = make_batch([Lesson(scene.render(), scene, segments)], codec.prefix, 200)
    _, ((_, colored),), _, ((_, alike),), *_ = hints(learner, batch)
    labels = scene.patch_labels()
    assert {str(list(COLORS)[labels.disc[patch - START] - 1]) for patch in colored} == {item.disc}
    kinds = {other.kind + 1 for other in scene.objects if CLASSES[other.kind].category == category}
    assert {int(labels.kind[patch - START]) for patch in alike} == kinds
