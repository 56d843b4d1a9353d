"""Answers must be true of the scene: each is worked out here again from the question's words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest

from foveal.mini.atlas import CATEGORIES, CLASSES, COLORS, class_index
from foveal.mini.questions import POPE_SUBSETS, TYPES, Question, ask, ask_all, caption, negatives
from foveal.mini.scenes import CELLS, FREQUENCY, THEMES, Scene, SceneObject, make_scene

SCENES = [make_scene(split, index) for split in ("train", "test") for index in range(150)]
CHINESE = {item.chinese: item.name for item in CLASSES}
CELLS_CN = dict(
    zip(("左上", "中上", "右上", "左边", "正中", "右边", "左下", "中下", "右下"), CELLS, strict=True)
)
COLORS_CN = {chinese: name for name, (_, chinese) in COLORS.items()}


def named(scene: Scene, name: str) -> list[SceneObject]:
    return [item for item in scene.objects if item.name == name]


def yes(value: bool) -> str:
    return "yes" if value else "no"


def match(pattern: str, text: str) -> list[str] | None:
    found = re.search(pattern, text)
    return list(found.groups()) if found else None


def solve(scene: Scene, text: str) -> str:
    """Answer a question without options, from its words and the scene graph."""
    for pattern, answer in SOLVERS:
        if (groups := match(pattern, text)) is not None:
            return answer(scene, *groups)
    raise AssertionError(f"no way to solve {text!r}")


def relation(scene: Scene, one: str, how: str, two: str) -> bool:
    (a,), (b,) = named(scene, one), named(scene, two)
    return {
        "left of": a.column < b.column,
        "right of": a.column > b.column,
        "above": a.row < b.row,
        "below": a.row > b.row,
    }[how]


def where(scene: Scene, name: str) -> str:
    items = named(scene, name)
    return CELLS[items[0].cell] if len(items) == 1 else "unanswerable"


def disc(scene: Scene, name: str) -> str:
    items = named(scene, name)
    return str(items[0].disc) if len(items) == 1 else "unanswerable"


def on_disc(scene: Scene, color: str) -> str:
    (item,) = [item for item in scene.objects if item.disc == color]
    return item.name


def how_many(scene: Scene, what: str) -> str:
    if what in CATEGORIES:
        return str(sum(CLASSES[item.kind].category == what for item in scene.objects))
    return str(len(named(scene, what)))


def at(scene: Scene, cell: str) -> str:
    item = scene.at(CELLS.index(cell))
    assert item is not None
    return item.name


def word(scene: Scene) -> str:
    assert scene.word is not None
    return scene.word.text


SOLVERS: list[tuple[str, Callable[..., str]]] = [
    (r"is there an? (\w+) in th(?:e|is) image\?", lambda s, n: yes(bool(named(s, n)))),
    (
        r"is there an? (\w+) in the (\w+ \w+)\?",
        lambda s, n, c: yes(any(CELLS[item.cell] == c for item in named(s, n))),
    ),
    (r"is the number of (\w+) pictures (\d)\?", lambda s, n, k: yes(len(named(s, n)) == int(k))),
    (r"is the disc behind the (\w+) (\w+)\?", lambda s, n, c: yes(disc(s, n) == c)),
    (r'is the word "(\w+)" written', lambda s, w: yes(word(s) == w)),
    (r"how many (\w+) pictures", how_many),
    (
        r"is the (\w+) left or right of the (\w+)",
        lambda s, a, b: "left" if relation(s, a, "left of", b) else "right",
    ),
    (
        r"is the (\w+) above or below the (\w+)",
        lambda s, a, b: "above" if relation(s, a, "above", b) else "below",
    ),
    (r"is the (\w+) (left of|right of|above|below) the (\w+)", lambda s, a, h, b: yes(relation(s, a, h, b))),
    (r"what is in the (\w+ \w+)\?", at),
    (r"where is the (\w+)\?", where),
    (r"what color is the disc behind the (\w+)\?", disc),
    (r"what object is on the (\w+) disc\?", on_disc),
    (r"what word is written|what does the sign say", word),
    (r"^(..)是什么？", lambda s, c: at(s, CELLS_CN[c])),
    (r"^(.+)在哪里？", lambda s, n: where(s, CHINESE[n])),
    (r"^(.+)后面是什么颜色？", lambda s, n: disc(s, CHINESE[n])),
]


def english(text: str) -> str:
    return CHINESE.get(text) or CELLS_CN.get(text) or COLORS_CN.get(text) or text


def check(scene: Scene, question: Question) -> None:
    if not question.choices:
        assert question.answer == solve(scene, question.question), question
        return
    choices = [english(choice) for choice in question.choices]
    assert len(set(choices)) == 4
    chosen = choices["ABCD".index(question.answer)]
    if question.subset == "present":
        assert [choice for choice in choices if named(scene, choice)] == [chosen]
    else:
        assert chosen == solve(scene, question.question)
    listed = " ".join(f"{letter}. {text}" for letter, text in zip("ABCD", question.choices, strict=True))
    assert question.question.endswith(listed)


@pytest.mark.parametrize("kind", TYPES)
def test_answers_are_true_of_the_scene(kind: str) -> None:
    asked = 0
    for scene in SCENES:
        for question in ask_all(scene, [kind], per_type=3):
            assert question.type == kind
            check(scene, question)
            asked += 1
    assert asked > 300


def test_ids_are_unique_and_every_benchmark_has_its_format() -> None:
    questions = [question for scene in SCENES for question in ask_all(scene, per_type=2)]
    assert len({question.id for question in questions}) == len(questions)
    assert {question.benchmark for question in questions} == {
        *(
            "vqav2",
            "gqa",
            "vizwiz",
            "scienceqa",
            "textvqa",
            "pope",
            "mme",
            "mmbench_en",
            "mmbench_cn",
            "ocrbench",
        ),
    }
    for question in questions:
        assert question.answer in question.answers
        assert len(question.answers) == (10 if question.metric == "vqa" else 1)
        assert (question.metric == "choice") == bool(question.choices)


@pytest.mark.parametrize(
    "kind", ["existence", "verify", "relation", "choice_en", "choice_cn", "unanswerable"]
)
def test_no_answer_can_be_guessed(kind: str) -> None:
    answers = Counter(question.answer for scene in SCENES for question in ask_all(scene, [kind], per_type=4))
    ceiling = {"choice_en": 0.31, "choice_cn": 0.31}.get(kind, 0.57)
    assert max(answers.values()) / answers.total() < ceiling


def test_the_negatives_of_pope_are_what_their_names_say() -> None:
    themes = {class_index(name): number for number, theme in enumerate(THEMES) for name in theme}
    for scene in SCENES:
        present = {item.kind for item in scene.objects}
        for subset in POPE_SUBSETS:
            assert not present & set(negatives(scene, subset))
        rest = set(range(len(CLASSES))) - present
        popular = negatives(scene, "popular")
        assert min(FREQUENCY[kind] for kind in popular) >= max(
            FREQUENCY[kind] for kind in rest - set(popular)
        )
        assert {themes[kind] for kind in negatives(scene, "adversarial")} <= {
            themes[kind] for kind in present
        }


def test_existence_can_be_asked_for_either_answer() -> None:
    for scene in SCENES[:30]:
        for positive in (True, False):
            question = ask(scene, "existence", 1, "popular", positive)
            assert question is not None
            assert (question.answer, question.subset) == (yes(positive), "popular")


def test_captions_name_what_is_in_the_cells() -> None:
    for scene in SCENES[:50]:
        objects, discs = (caption(scene, kind)[1].split() for kind in ("objects", "discs"))
        for cell in range(9):
            item = scene.at(cell)
            assert discs[cell] == ((item and item.disc) or "none")
            assert item is None or objects[cell] == item.name
        sentence = caption(scene, "sentence")[1]
        assert len(re.findall(r"\bin the\b", sentence)) == len(scene.objects)
