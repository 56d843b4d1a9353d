"""From chat samples to batches with an answer mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.utils.chat_template_utils import render_jinja_template

from foveal.errors import FovealError
from foveal.images import open_image

__all__ = ["VisionCollator"]


class VisionCollator:
    """Turns samples into a padded batch; labels are the assistant's tokens, -100 elsewhere.

    A sample is {"images": [PIL image or path, ...], "messages": [{"role", "content"}, ...]}; content is a string or
    a list of parts, where each {"type": "image"} takes the next image. The chat template must mark the assistant's
    words with `{% generation %}`, as LLaVA 1.5's does.

    Args:
        processor: the model's processor.
        max_length: rows beyond it are an error, since a cut could fall into an image.
    """

    def __init__(self, processor: Any, max_length: int = 2048) -> None:
        self.processor = processor
        self.max_length = max_length

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch: input_ids, attention_mask and labels (batch, rows), pixel_values and what else the model takes.

        Raises:
            FovealError: an image that cannot be read, images and placeholders that do not match, a sample without
                answer or longer than `max_length`; the message names the sample.
        """
        conversations, pictures = [], []
        for index, sample in enumerate(samples):
            conversations.append(_checked(sample, _name(sample, index)))
            pictures.append([_open(image, _name(sample, index)) for image in sample.get("images") or []])
        texts, spans = self._render(conversations)
        batch = self.processor(
            text=texts,
            images=pictures if any(pictures) else None,
            padding=True,
            return_tensors="pt",
            **self._special_tokens(texts[0]),
        )
        answers = self._answers(batch["input_ids"], batch["attention_mask"].bool(), texts, spans)
        for index, (answer, length) in enumerate(
            zip(answers.any(dim=1), batch["attention_mask"].sum(dim=1), strict=True)
        ):
            if not answer:
                raise FovealError(
                    f"{_name(samples[index], index)} has no assistant words to train on: add an answer, or use a chat "
                    "template that marks them with {% generation %}"
                )
            if length > self.max_length:
                raise FovealError(
                    f"{_name(samples[index], index)} has {int(length)} tokens, more than max_length={self.max_length}: "
                    "shorten it or raise max_length"
                )
        batch["labels"] = batch["input_ids"].masked_fill(~answers, -100)
        return dict(batch)

    def _render(self, conversations: list[Any]) -> tuple[list[str], list[list[tuple[int, int]]]]:
        """Each conversation as text, and the character spans of the assistant's words in it."""
        template = self.processor.chat_template
        if not template:
            raise FovealError(
                "the processor has no chat template: set processor.chat_template to the model's own"
            )
        rendered: Any = render_jinja_template(
            conversations=conversations,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **self.processor.tokenizer.special_tokens_map,
        )
        return rendered[0], rendered[1]

    def _special_tokens(self, text: str) -> dict[str, bool]:
        """Templates that write the first special token themselves must not get it twice."""
        first = self.processor.tokenizer.bos_token
        return {"add_special_tokens": False} if first and text.startswith(first) else {}

    def _answers(
        self, ids: Tensor, real: Tensor, texts: list[str], spans: list[list[tuple[int, int]]]
    ) -> Tensor:
        """(batch, rows) bool: the assistant's tokens.

        Found in the text before image placeholders are expanded, and carried over token by token: the library's own
        mask is misplaced by the expansion before transformers 5.23.
        """
        tokenizer = self.processor.tokenizer
        image = tokenizer.convert_tokens_to_ids(self.processor.image_token)
        answers = torch.zeros_like(real)
        for index, text in enumerate(texts):
            plain = tokenizer(text, return_offsets_mapping=True, **self._special_tokens(text))
            words = [
                (token, any(start < last and end > first for first, last in spans[index]))
                for token, (start, end) in zip(plain["input_ids"], plain["offset_mapping"], strict=True)
                if token != image
            ]
            place = real[index] & (ids[index] != image)
            if ids[index, place].tolist() != [token for token, _ in words]:
                raise FovealError(
                    f"{type(self.processor).__name__} puts tokens of its own around images: training such a model "
                    "is not supported yet"
                )
            answers[index, place] = torch.tensor([answer for _, answer in words])
        return answers


def _name(sample: dict[str, Any], index: int) -> str:
    return f"sample {sample['id']!r}" if "id" in sample else f"sample {index} of the batch"


def _checked(sample: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The messages with content as parts, once images and placeholders match."""
    messages = []
    for message in sample["messages"]:
        parts = message["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        messages.append({"role": message["role"], "content": parts})
    wanted = sum(part["type"] == "image" for message in messages for part in message["content"])
    given = len(sample.get("images") or [])
    if wanted > given:
        raise FovealError(f"{name} has more image placeholders than images: {wanted}, but {given}")
    if given > wanted:
        raise FovealError(
            f"{name} has {given} images, more than its messages have image placeholders, {wanted}"
        )
    return messages


def _open(image: Any, name: str) -> Image.Image:
    try:
        return open_image(image)
    except FovealError as error:
        raise FovealError(f"{name}: {error}") from error
