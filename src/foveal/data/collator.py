"""From chat samples to batches with an answer mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from foveal.data.answers import Tokens, answer_mask, special_tokens, tokenize
from foveal.data.bad_samples import BadSample, SkipLog, bad_sample
from foveal.data.conversations import conversation
from foveal.data.templates import check_processor, render
from foveal.errors import FovealError
from foveal.images import open_image

__all__ = ["ON_BAD", "VisionCollator", "prepare_text"]

ON_BAD = ("stop", "skip")
_STAND_IN = {"messages": [{"role": "user", "content": "-"}, {"role": "assistant", "content": "-"}]}


@dataclass(frozen=True)
class _Ready:
    """A sample that is good as far as can be said before the processor has seen it."""

    sample: Any
    where: str
    text: str
    tokens: Tokens
    images: list[Image.Image]


class VisionCollator:
    """Turns samples into a padded batch; labels are the assistant's tokens, -100 elsewhere.

    A sample is an item of `Conversations`, or a dict in one of the forms that `load_conversations` understands: text
    with images (PIL images or paths), where each {"type": "image"} takes the next. The assistant's words are found in
    the chat template's text, end-of-turn token included.

    With `on_bad="skip"` a bad sample leaves its batch, is named once in a warning of the logger "foveal" and in the
    report, see `skipped`. A batch of bad samples alone becomes the last good one again, or a conversation of two dashes
    and no image if there was none yet, with all labels -100: no process is left waiting, and nothing is learnt from it.

    Args:
        processor: the model's processor.
        max_length: a sample with more tokens is a bad one, since a cut could fall into an image.
        on_bad: "stop" at a bad sample, or "skip" it.
        report: a JSONL file to which skipped samples are appended, from all processes and DataLoader workers.

    Raises:
        FovealError: `on_bad` is neither.
    """

    def __init__(
        self, processor: Any, max_length: int = 2048, on_bad: str = "stop", report: str | Path | None = None
    ) -> None:
        if on_bad not in ON_BAD:
            raise FovealError(f"on_bad={on_bad!r}: choose one of {', '.join(ON_BAD)}")
        self.processor, self.max_length, self.on_bad = processor, max_length, on_bad
        self._log = SkipLog(report)
        self._last: _Ready | None = None

    def __call__(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        """A batch: input_ids, attention_mask and labels (batch, rows), and what else the processor returns.

        Raises:
            FovealError: the processor cannot be used; unless bad samples are skipped: an image that cannot be read,
                images and places that do not match, a sample without answer or longer than `max_length`. The message
                names the sample.
        """
        check_processor(self.processor)
        ready = [
            self._prepare(sample, f"sample {place} of the batch") for place, sample in enumerate(samples)
        ]
        return self._batch([sample for sample in ready if sample is not None]) or self._empty()

    def _prepare(self, sample: Any, where: str) -> _Ready | None:
        try:
            if isinstance(sample, BadSample):
                raise FovealError(sample.reason)
            turns = conversation(sample, Path())
            images = [_opened(image, number) for number, image in enumerate(turns["images"], start=1)]
            return _Ready(sample, where, *prepare_text(self.processor, turns), images)
        except Exception as error:  # data holds what nobody thought of
            self._reject(sample, where, error)
            return None

    def _reject(self, sample: Any, where: str, error: Exception) -> None:
        """Stop at a bad sample or note that it is skipped."""
        reason = str(error) if isinstance(error, FovealError) else f"{type(error).__name__}: {error}"
        bad = sample if isinstance(sample, BadSample) else bad_sample(sample, reason, where)
        if self.on_bad == "stop":
            raise FovealError(str(bad)) from error
        self._log.add(bad)

    def _batch(self, ready: list[_Ready]) -> dict[str, Tensor] | None:
        """The batch of those that the processor takes; None if it takes none."""
        if not ready:
            return None
        try:
            batch = self._process(ready)
        except Exception as error:
            return self._batch(self._taken(ready, error))
        answers = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        good = [self._mark(sample, batch, row, answers) for row, sample in enumerate(ready)]
        if not all(good):
            return self._batch([sample for sample, fine in zip(ready, good, strict=True) if fine])
        self._last = ready[-1]
        batch["labels"] = batch["input_ids"].masked_fill(~answers, -100)
        return batch

    def _process(self, ready: list[_Ready]) -> dict[str, Tensor]:
        images = [sample.images for sample in ready]
        batch = self.processor(
            text=[sample.text for sample in ready],
            images=images if any(images) else None,
            padding=True,
            padding_side="right",  # positions count from the first token, so that no choice depends on padding
            return_tensors="pt",
            **special_tokens(self.processor, ready[0].text),
        )
        return dict(batch)

    def _taken(self, ready: list[_Ready], error: Exception) -> list[_Ready]:
        """Those that the processor takes one by one; the others are bad.

        Raises:
            Exception: it takes each of them, but not all together.
        """
        taken = []
        for sample in ready:
            try:
                self._process([sample])
                taken.append(sample)
            except Exception as culprit:
                self._reject(sample.sample, sample.where, culprit)
        if len(taken) == len(ready):
            raise error
        return taken

    def _mark(self, sample: _Ready, batch: dict[str, Tensor], row: int, answers: Tensor) -> bool:
        """Fill in the row of `answers`; False if the sample is bad after all."""
        real = batch["attention_mask"][row].bool()
        try:
            length = int(real.sum())
            if length > self.max_length:
                raise FovealError(
                    f"{length} tokens, more than max_length={self.max_length}: shorten it or raise max_length"
                )
            mask = answer_mask(self.processor, sample.tokens, batch["input_ids"][row, real].tolist())
        except FovealError as error:
            self._reject(sample.sample, sample.where, error)
            return False
        answers[row, real] = torch.tensor(mask)
        return True

    def _empty(self) -> dict[str, Tensor]:
        """A batch from which nothing is learnt."""
        batch = self._process([self._last or self._stand_in()])
        return {**batch, "labels": torch.full_like(batch["input_ids"], -100)}

    def _stand_in(self) -> _Ready:
        return _Ready(_STAND_IN, "", *prepare_text(self.processor, conversation(_STAND_IN, Path())), [])


def prepare_text(processor: Any, turns: dict[str, Any]) -> tuple[str, Tokens]:
    """The text of a conversation (see `conversations.conversation`) and its tokens, before images are put in.

    Raises:
        FovealError: the chat template cannot render it, the text holds a placeholder of its own, or no token is the
            assistant's.
    """
    rendered = render(processor, turns["messages"])
    places = rendered.text.count(processor.image_token)
    if places != len(turns["images"]):
        raise FovealError(
            f"{len(turns['images'])} images, but {places} times {processor.image_token} in the text: remove it from "
            "the words"
        )
    tokens = tokenize(processor, rendered)
    if not any(tokens.answers):
        raise FovealError("no assistant words to train on: add an answer")
    return rendered.text, tokens


def _opened(image: Any, number: int) -> Image.Image:
    if not isinstance(image, bytes):
        return open_image(image)
    try:
        return open_image(cast(Any, BytesIO(image)))
    except FovealError as error:
        raise FovealError(f"cannot read image {number}: is it a whole PNG, JPEG or WebP file?") from error
