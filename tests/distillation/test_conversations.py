from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foveal import FovealError
from foveal.distillation.conversations import load_conversations

LLAVA = {
    "id": "one",
    "image": "cat.jpg",
    "conversations": [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a cat"}],
}
CHAT = {
    "images": ["a.png", "b.png"],
    "messages": [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "same?"}],
        },
        {"role": "assistant", "content": "no"},
    ],
}
TEXT_ONLY = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": " hi "}]}


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.json"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("form", ["array", "lines"])
def test_both_forms_and_samples_without_image(tmp_path: Path, form: str) -> None:
    rows = [LLAVA, CHAT, TEXT_ONLY]
    text = json.dumps(rows, indent=1) if form == "array" else "\n\n".join(map(json.dumps, rows))
    llava, chat, plain = load_conversations(write(tmp_path, text))
    assert llava == {
        "id": "one",
        "images": [tmp_path / "cat.jpg"],
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
        ],
    }
    assert chat["images"] == [tmp_path / "a.png", tmp_path / "b.png"]
    assert chat["messages"][0]["content"][2] == {"type": "text", "text": "same?"}
    assert plain["images"] == []
    assert plain["messages"][1]["content"] == [{"type": "text", "text": " hi "}]


def test_marks_stay_where_they_stand(tmp_path: Path) -> None:
    turn = {"from": "human", "value": "compare <image> with <image> please"}
    row = {"image": ["a.png", "b.png"], "conversations": [turn]}
    content = load_conversations(write(tmp_path, json.dumps([row])))[0]["messages"][0]["content"]
    assert [part.get("text", "*") for part in content] == ["compare", "*", "with", "*", "please"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (3, "sample 2: expected an object"),
        ({"image": "a.png"}, "sample 2: expected an object with `messages`"),
        ({**LLAVA, "image": None}, "sample 2: 0 images, but 1 places"),
        ({**TEXT_ONLY, "images": ["a.png"]}, "sample 2: 1 images, but 0 places"),
        ({"messages": ["hello"]}, "sample 2: a turn is an object"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "sample 2: a turn needs"),
        ({"messages": [{"role": "user", "content": None}]}, "sample 2: a turn needs"),
    ],
)
def test_a_bad_sample_is_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(FovealError, match=message) as caught:
        load_conversations(write(tmp_path, json.dumps([LLAVA, row])))
    assert "mine.json" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("", "no conversations"), ("[{", "no JSON"), ("{}\n{", "no JSON")]
)
def test_a_bad_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        load_conversations(write(tmp_path, text))
    with pytest.raises(FovealError, match="no such file"):
        load_conversations(tmp_path / "gone.json")
