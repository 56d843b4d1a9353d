"""Questions as the evaluation wants them, from dicts, objects or a JSONL file of the user's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from PIL import Image

from foveal.errors import FovealError
from foveal.evaluation.metrics import METRICS
from foveal.files import read_text

__all__ = ["Question", "as_question", "load_questions"]


@dataclass(frozen=True)
class Question:
    """One question about one image, with all that is needed to score an answer.

    Attributes:
        image: a picture, or the path of one.
        question: the text put to the model beside the image.
        answers: the accepted answers; ten annotators' for the metric "vqa", a letter for "choice".
        metric: a key of `foveal.evaluation.METRICS`.
        type: kind of question, for the breakdown.
        subset: a finer kind, such as POPE's random, popular and adversarial.
        id: unique name, used in records and in messages.
        choices: the options' texts of a multiple-choice question, in order.
    """

    image: Image.Image | str | Path
    question: str
    answers: tuple[str, ...]
    metric: str = "exact"
    type: str = ""
    subset: str = ""
    id: str = ""
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise FovealError(f"unknown metric {self.metric!r}: choose one of {', '.join(METRICS)}")
        if not self.answers:
            raise FovealError("no answer to compare with: give `answer` or `answers`")

    def score(self, prediction: str) -> float:
        """What `prediction` is worth, in [0, 1]."""
        return METRICS[self.metric](prediction, self.answers, self.choices)


_NAMES = tuple(item.name for item in fields(Question))


def as_question(item: Any, index: int = 0) -> Question:
    """A `Question` from a mapping or an object with its attributes; `answer` may stand for one of `answers`.

    Args:
        item: what to convert; a `Question` is returned as it is.
        index: its place in the data, used as id where it has none.

    Raises:
        FovealError: something is missing or of the wrong kind; the message names the question.
    """
    if isinstance(item, Question):
        return item
    values: dict[str, Any] = (
        dict(item) if isinstance(item, Mapping) else {n: getattr(item, n, None) for n in (*_NAMES, "answer")}
    )
    name = str(values.get("id") or index)
    if not isinstance(values.get("image"), Image.Image | str | Path):
        raise FovealError(f"question {name}: no `image`, a PIL image or the path of one")
    if not isinstance(values.get("question"), str):
        raise FovealError(f"question {name}: no `question`, a string")
    answers = values.get("answers") or values.get("answer")
    values["answers"] = (answers,) if isinstance(answers, str | int | float) else tuple(answers or ())
    values["answers"] = tuple(str(answer) for answer in values["answers"])
    values["choices"] = tuple(values.get("choices") or ())
    values["id"] = name
    try:
        return Question(**{key: values[key] for key in _NAMES if values.get(key) is not None})
    except FovealError as error:
        raise FovealError(f"question {name}: {error}") from error


def load_questions(path: str | Path) -> list[Question]:
    """Read questions from a JSONL file: one object a line, with `image`, `question` and `answer` (or `answers`).

    Image paths are relative to the file. `metric`, `type`, `subset`, `id` and `choices` are optional.

    Raises:
        FovealError: a line is no such object; the message names file, line and remedy.
    """
    path = Path(path)
    questions = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            questions.append(_parse(line, path, number))
    if not questions:
        raise FovealError(f"{path} holds no questions: write one JSON object a line")
    return questions


_EXAMPLE = '{"image": "cat.png", "question": "Is there a cat?", "answer": "yes"}'


def _parse(line: str, path: Path, number: int) -> Question:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise FovealError(
            f"{where}: no JSON ({error.msg}); write one object a line, such as {_EXAMPLE}"
        ) from error
    if not isinstance(row, dict) or not isinstance(row.get("image"), str):
        raise FovealError(f"{where}: expected an object with an image path, such as {_EXAMPLE}")
    try:
        return as_question({"id": str(number), **row, "image": path.parent / row["image"]}, number)
    except FovealError as error:
        raise FovealError(f"{where}: {error}; a line looks like {_EXAMPLE}") from error
