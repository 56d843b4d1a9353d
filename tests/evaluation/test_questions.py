from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from foveal import FovealError
from foveal.evaluation import Question, as_question, load_questions

PICTURE = Image.new("RGB", (4, 4))


def test_from_a_mapping() -> None:
    question = as_question(
        {"image": PICTURE, "question": "how many?", "answer": 3, "metric": "vqa", "other": 1}, 7
    )
    assert question == Question(PICTURE, "how many?", ("3",), metric="vqa", id="7")
    assert question.score("three") == 1.0


def test_from_an_object() -> None:
    @dataclass
    class Mine:
        image: Image.Image
        question: str
        answers: list[str]

    assert as_question(Mine(PICTURE, "?", ["a", "b"])).answers == ("a", "b")


def test_answers_go_before_answer() -> None:
    assert as_question({"image": PICTURE, "question": "?", "answer": "a", "answers": ["b", "c"]}).answers == (
        "b",
        "c",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, "question q1: no `question`"),
        ({"question": 3}, "question q1: no `question`"),
        ({"image": None}, "question q1: no `image`"),
        ({"image": [[0]]}, "question q1: no `image`"),
        ({"answer": None}, "question q1: no answer"),
        ({"answers": []}, "no answer"),
        ({"metric": "bleu"}, "question q1: unknown metric 'bleu': choose one of choice, exact, gqa"),
    ],
)
def test_what_is_missing_is_named(change: dict[str, object], message: str) -> None:
    item = {"id": "q1", "image": PICTURE, "question": "?", "answer": "yes", **change}
    if change == {"answers": []}:
        del item["answer"]
    with pytest.raises(FovealError, match=message.replace("?", r"\?")):
        as_question(item)


GOOD = {"image": "cat.png", "question": "a cat?", "answer": "yes"}


def write(folder: Path, *lines: object) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


def test_a_file_of_questions(tmp_path: Path) -> None:
    questions = load_questions(write(tmp_path, GOOD, "", {**GOOD, "id": "two", "metric": "pope"}))
    assert [question.id for question in questions] == ["1", "two"]
    assert questions[0].image == tmp_path / "cat.png"
    assert questions[1].metric == "pope"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no JSON"),
        ("[1]", "line 2: expected an object"),
        ({"question": "?", "answer": "yes"}, "line 2: expected an object with an image path"),
        ({**GOOD, "answer": None}, r"line 2: question 2: no answer .*a line looks like \{\"image\""),
        ({**GOOD, "metric": "bleu"}, "line 2: question 2: unknown metric"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(FovealError, match=message) as caught:
        load_questions(write(tmp_path, GOOD, line))
    assert "mine.jsonl" in str(caught.value)


def test_lines_end_where_json_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    line = json.dumps({**GOOD, "question": "one\u2028two"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n" + line.encode())
    assert [question.question for question in load_questions(path)] == ["one\u2028two"] * 2


def test_a_file_without_questions(tmp_path: Path) -> None:
    with pytest.raises(FovealError, match="holds no questions"):
        load_questions(write(tmp_path, ""))
    with pytest.raises(FovealError, match="no such file"):
        load_questions(tmp_path / "gone.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(FovealError, match="UTF-8"):
        load_questions(tmp_path / "latin.jsonl")
