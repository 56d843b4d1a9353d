"""Scenes and their questions as datasets: one question an image for evaluation, conversations for training.

Nothing is stored: an item is drawn and rendered when it is asked for, and is the same each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from foveal.mini.draw import Draw
from foveal.mini.easy_vqa import easy_vqa, easy_vqa_questions
from foveal.mini.questions import POPE_SUBSETS, TYPES, Question, ask, ask_all
from foveal.mini.scenes import Scene, make_scene

__all__ = ["EasyQuestions", "SceneConversations", "SceneQuestions"]

_TRIES = 64
_BLOCK = 2**26


class SceneQuestions:
    """Questions about scenes, balanced over the types; existence also over its subsets and over yes and no.

    An item is a dict of `Question`'s fields and ``image`` (RGB, 96 x 96).

    Args:
        split: "train", "validation" or "test".
        size: how many questions.
        seed: which block of the split's scenes (0..1023).
        per_image: questions about each image; they are of different types.
        types: the types asked; all by default.
    """

    def __init__(
        self, split: str, size: int, seed: int = 0, per_image: int = 1, types: Sequence[str] = TYPES
    ) -> None:
        if not 0 <= seed < 1024:
            raise ValueError(f"seed is the number of a block of scenes, 0..1023; got {seed}")
        if not 1 <= per_image <= len(types):
            raise ValueError(
                f"per_image must be between 1 and the number of types, {len(types)}; got {per_image}"
            )
        self.split, self.size, self.seed, self.per_image, self.types = (
            split,
            size,
            seed,
            per_image,
            tuple(types),
        )

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene, question = self.question(index)
        return {"image": scene.render(), **asdict(question)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(self.size))

    def question(self, index: int) -> tuple[Scene, Question]:
        """The scene and the question of an item, without rendering it; IndexError beyond the end."""
        if not 0 <= index < self.size:
            raise IndexError(f"item {index} of {self.size}")
        group = index // self.per_image
        wanted = [self._wanted(group * self.per_image + offset) for offset in range(self.per_image)]
        for attempt in range(_TRIES):
            scene = make_scene(self.split, self.seed * _BLOCK + group * _TRIES + attempt)
            asked = [ask(scene, kind, 0, subset, positive) for kind, subset, positive in wanted]
            question = asked[index % self.per_image]
            if question is not None and None not in asked:
                return scene, question
        raise RuntimeError(f"no scene allows the questions {[kind for kind, _, _ in wanted]}")

    def _wanted(self, number: int) -> tuple[str, str, bool]:
        round_, kind = divmod(number, len(self.types))
        return self.types[kind], POPE_SUBSETS[round_ % 3], round_ // 3 % 2 == 0


class EasyQuestions:
    """Questions of easy-VQA's own "train" or "test", one an image, in the same form as `SceneQuestions`.

    Args:
        split: "train" (4,000 images) or "test" (1,000).
        size: how many, or all images if None.
        seed: which of an image's questions are asked.
    """

    def __init__(self, split: str, size: int | None = None, seed: int = 0) -> None:
        self.split, self.seed = split, seed
        self.images = easy_vqa(split)[:size]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images[index]
        questions = easy_vqa_questions(image, self.split)
        chosen = Draw(f"easy/{self.seed}/{image.index}").one(questions)
        return {"image": image.render(), **asdict(chosen)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


class SceneConversations:
    """Scenes with conversations in Hugging Face's chat format, for a trainer.

    An item is ``{"images": [image], "messages": [...]}``: turns of user and assistant, the image in the first.

    Args:
        split: "train", "validation" or "test".
        size: how many conversations.
        turns: questions in each, of different types where the scene allows.
        seed: which block of the split's scenes (0..1023).
    """

    def __init__(self, split: str, size: int, turns: int = 4, seed: int = 0) -> None:
        if not 0 <= seed < 1024:
            raise ValueError(f"seed is the number of a block of scenes, 0..1023; got {seed}")
        if turns < 1:
            raise ValueError(f"a conversation has at least one turn; got {turns}")
        self.split, self.size, self.turns, self.seed = split, size, turns, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.size:
            raise IndexError(f"item {index} of {self.size}")
        scene = make_scene(self.split, self.seed * _BLOCK + index)
        draw = Draw(f"conversation/{scene.id}")
        per_type = -(-2 * self.turns // len(TYPES))
        unique = {question.question: question for question in ask_all(scene, per_type=per_type)}
        chosen = draw.several(list(unique.values()), self.turns)
        return {"images": [scene.render()], "messages": _messages(chosen)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(self.size))


def _messages(questions: Sequence[Question]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for question in questions:
        asked: list[dict[str, str]] = [{"type": "text", "text": question.question}]
        content = asked if messages else [{"type": "image"}, *asked]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": question.answer}]})
    return messages
