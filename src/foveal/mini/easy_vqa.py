"""The public easy-VQA set: 5,000 images of one coloured shape each, with its own split into training and test.

Only the training recipe and the evaluation need it: ``pip install easy-vqa`` (MIT licence).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from foveal.mini.questions import Question

__all__ = ["SHAPES", "EasyImage", "easy_vqa", "easy_vqa_questions"]

SHAPES = ("circle", "rectangle", "triangle")


@dataclass(frozen=True)
class EasyImage:
    """One image's file and its (question, answer) pairs."""

    index: int
    path: Path
    turns: tuple[tuple[str, str], ...]

    @property
    def shape(self) -> str | None:
        """What it shows, where one of its answers tells."""
        return next((answer for _, answer in self.turns if answer in SHAPES), None)

    def render(self) -> Image.Image:
        """The picture, RGB, 64 x 64 pixels."""
        with Image.open(self.path) as picture:
            return picture.convert("RGB")


def _folder(split: str) -> Path:
    found = find_spec("easy_vqa")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            "easy-VQA is not installed: pip install easy-vqa (only training and evaluation need it)"
        )
    return Path(found.origin).parent / "data" / split


@lru_cache(maxsize=2)
def easy_vqa(split: str) -> tuple[EasyImage, ...]:
    """The images of "train" (4,000) or "test" (1,000) in order; ModuleNotFoundError if the package is missing."""
    folder = _folder(split)
    turns: dict[int, list[tuple[str, str]]] = {}
    for question, answer, image in json.loads((folder / "questions.json").read_text(encoding="utf-8")):
        turns.setdefault(int(image), []).append((str(question), str(answer)))
    return tuple(
        EasyImage(index, folder / "images" / f"{index}.png", tuple(turns[index])) for index in sorted(turns)
    )


def easy_vqa_questions(image: EasyImage, split: str) -> list[Question]:
    """The questions about one image in the form used for scenes, with type "easy_vqa"."""
    return [
        Question(
            id=f"easy_vqa-{split}-{image.index}-{number}",
            question=text,
            answer=answer,
            answers=(answer,),
            metric="exact",
            type="easy_vqa",
            subset="yes_no" if answer in ("yes", "no") else "open",
            benchmark="easy_vqa",
        )
        for number, (text, answer) in enumerate(image.turns)
    ]
