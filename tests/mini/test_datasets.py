"""The datasets: balanced, repeatable, in the form the evaluation and the trainer take."""

from __future__ import annotations

from collections import Counter

import pytest

from foveal.mini import EasyQuestions, SceneConversations, SceneQuestions
from foveal.mini import easy_vqa as easy_vqa_module
from foveal.mini.questions import POPE_SUBSETS, TYPES


def test_types_are_balanced_and_pope_in_its_subsets_and_answers() -> None:
    dataset = SceneQuestions("test", 600)
    questions = [dataset.question(index)[1] for index in range(600)]
    assert Counter(question.type for question in questions) == dict.fromkeys(TYPES, 60)
    pope = Counter(
        (question.subset, question.answer) for question in questions if question.type == "existence"
    )
    assert pope == {(subset, answer): 10 for subset in POPE_SUBSETS for answer in ("yes", "no")}
    assert len({question.id for question in questions}) == 600


def test_one_question_an_image_or_several() -> None:
    alone = [SceneQuestions("test", 40).question(index)[0].id for index in range(40)]
    assert len(set(alone)) == 40
    dataset = SceneQuestions("test", 20, per_image=4)
    items = [dataset.question(index) for index in range(20)]
    assert Counter(Counter(scene.id for scene, _ in items).values()) == {4: 5}
    assert len({question.id for _, question in items}) == 20


def test_items_are_drawn_anew_and_equal() -> None:
    one, two = SceneQuestions("validation", 30, seed=3)[7], SceneQuestions("validation", 99, seed=3)[7]
    assert one.pop("image").tobytes() == two.pop("image").tobytes()
    assert one == two
    assert SceneQuestions("validation", 30, seed=4)[7]["id"] != one["id"]
    assert len(list(SceneQuestions("test", 3))) == 3


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: SceneQuestions("test", 5)[5], IndexError),
        (lambda: SceneQuestions("tset", 5)[0], KeyError),
        (lambda: SceneQuestions("test", 5, seed=-1), ValueError),
        (lambda: SceneQuestions("test", 5, per_image=11), ValueError),
        (lambda: SceneConversations("test", 5, turns=0), ValueError),
        (lambda: SceneConversations("test", 5)[9], IndexError),
    ],
)
def test_refuses_what_does_not_exist(call: object, error: type[Exception]) -> None:
    assert callable(call)
    with pytest.raises(error):
        call()


def test_conversations_show_the_image_once_and_ask_different_things() -> None:
    for item in SceneConversations("train", 20, turns=4):
        assert len(item["images"]) == 1
        roles = [message["role"] for message in item["messages"]]
        assert roles == ["user", "assistant"] * 4
        kinds = [part["type"] for message in item["messages"] for part in message["content"]]
        assert kinds == ["image", *["text"] * 8]
        asked = [message["content"][-1]["text"] for message in item["messages"][::2]]
        assert len(set(asked)) == 4


def test_easy_vqa_is_its_own_test_split() -> None:
    questions = EasyQuestions("test")
    assert len(questions) == 1000
    assert len(EasyQuestions("train")) == 4000
    sample = questions[3]
    assert sample["image"].size == (64, 64)
    assert sample["answer"] in sample["answers"]
    assert sample["type"] == "easy_vqa"


def test_says_how_to_get_easy_vqa(monkeypatch: pytest.MonkeyPatch) -> None:
    easy_vqa_module.easy_vqa.cache_clear()
    monkeypatch.setattr(easy_vqa_module, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install easy-vqa"):
        EasyQuestions("test")
