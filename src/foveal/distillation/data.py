"""From chat samples to batches with an answer mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

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
        conversations = [_with_images(sample, _name(sample, i)) for i, sample in enumerate(samples)]
        batch = self.processor.apply_chat_template(
            conversations,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=True,
            processor_kwargs={"padding": True},
        )
        answers = batch.pop("assistant_masks").bool() & batch["attention_mask"].bool()
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


def _name(sample: dict[str, Any], index: int) -> str:
    return f"sample {sample['id']!r}" if "id" in sample else f"sample {index} of the batch"


def _with_images(sample: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The messages with every image placeholder filled."""
    images = [_open(image, name) for image in sample.get("images") or []]
    filled = iter(images)
    messages = []
    for message in sample["messages"]:
        parts = message["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        messages.append({"role": message["role"], "content": [_fill(part, filled, name) for part in parts]})
    if next(filled, None) is not None:
        raise FovealError(f"{name} has {len(images)} images, more than its messages have image placeholders")
    return messages


def _fill(part: dict[str, Any], images: Any, name: str) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    image = next(images, None)
    if image is None:
        raise FovealError(f"{name} has more image placeholders than images")
    return {"type": "image", "image": image}


def _open(image: Any, name: str) -> Image.Image:
    try:
        return open_image(image)
    except FovealError as error:
        raise FovealError(f"{name}: {error}") from error
