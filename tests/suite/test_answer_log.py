"""Answers on disk: found again by all they depend on, and by nothing less; half a line harms nobody."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import foveal
from foveal.evaluation.chat import Chat
from foveal.suite.answer_log import AnswerLog, Given, digest, weights_digest
from support import tiny

YES = Given("yes", 150, 2, (16, 9), 48.5)


def test_what_was_written_is_found_by_the_next(tmp_path: Path) -> None:
    first = AnswerLog(tmp_path / "new" / "folder")
    first.add({"a": YES, "b": Given("non: «à»", 3, 1)})
    second = AnswerLog(tmp_path / "new" / "folder", rank=1)
    assert second.get("a") == YES
    assert second.get("b") == Given("non: «à»", 3, 1)
    assert second.get("c") is None
    second.add({"c": YES})
    assert len(AnswerLog(tmp_path / "new" / "folder")) == 3
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "answers-0.jsonl",
        "answers-1.jsonl",
    ]


def test_half_a_line_is_asked_anew_and_the_next_begins_its_own(tmp_path: Path) -> None:
    AnswerLog(tmp_path).add({"a": YES, "b": YES})
    file = tmp_path / "answers-0.jsonl"
    whole = file.read_bytes()
    for cut in range(len(whole.splitlines(keepends=True)[0]) + 1, len(whole) - 1):
        file.write_bytes(whole[:cut])
        log = AnswerLog(tmp_path)
        assert (log.get("a"), log.get("b")) == (YES, None)
        log.add({"c": YES})
        again = AnswerLog(tmp_path)
        assert (again.get("a"), again.get("b"), again.get("c")) == (YES, None, YES)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(foveal.FovealError, match=r"cannot keep answers in .*file"):
        AnswerLog(tmp_path / "file")


def key(**changes: Any) -> str:
    picture = Image.new("RGB", (4, 4), changes.pop("colour", "red")).resize(changes.pop("size", (4, 4)))
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": changes.pop("text", "a?")}]
    chat = Chat.of([{"role": changes.pop("role", "user"), "content": parts}])
    given = {"settings": "s", "generation": [("max_new_tokens", 4)], **changes}
    return digest(given["settings"], chat, given["generation"])


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": "t"},
        {"text": "b?"},
        {"role": "system"},
        {"colour": "blue"},
        {"size": (2, 8)},
        {"generation": [("max_new_tokens", 5)]},
    ],
)
def test_an_answer_depends_on_everything_that_was_asked(changes: dict[str, Any]) -> None:
    assert key() == key()
    assert key(**changes) != key()


def test_other_weights_have_another_digest() -> None:
    model = tiny.llava(layers=2)
    same = copy.deepcopy(model)
    assert weights_digest(model) == weights_digest(same)
    assert weights_digest(same.float()) != weights_digest(model)
    trained = copy.deepcopy(model)
    with torch.no_grad():
        trained.get_parameter("model.language_model.norm.weight").add_(1e-6)
    assert weights_digest(trained) != weights_digest(model)
