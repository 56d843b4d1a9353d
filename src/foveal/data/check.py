"""A whole data set looked through before training: every row, every image file, and with a processor every answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foveal.data.bad_samples import BadSample
from foveal.data.bars import bar
from foveal.data.collator import prepare_text
from foveal.data.conversations import Conversations
from foveal.data.image_files import check_image
from foveal.data.lengths import ImageTokens, in_batches
from foveal.data.templates import check_processor
from foveal.errors import FovealError

__all__ = ["DataReport", "check_data"]

_PERCENTILES = (50, 90, 99, 100)


@dataclass
class DataReport:
    """What a data set holds.

    Attributes:
        conversations: rows, bad ones included.
        images: in rows that are conversations.
        text_only: conversations without image.
        several_images: conversations with more than one.
        turns: answers.
        missing_files: image files that are not there, each once.
        lengths: tokens of the conversations that the processor takes; empty without one.
        bad: the rows that cannot be trained on, by their number, from 1.
    """

    conversations: int = 0
    images: int = 0
    text_only: int = 0
    several_images: int = 0
    turns: int = 0
    missing_files: set[str] = field(default_factory=set)
    lengths: list[int] = field(default_factory=list)
    bad: dict[int, BadSample] = field(default_factory=dict)

    def percentiles(self) -> dict[int, int]:
        """Percentile -> tokens; empty without lengths."""
        if not self.lengths:
            return {}
        values = np.percentile(self.lengths, _PERCENTILES, method="inverted_cdf")
        return {percent: int(value) for percent, value in zip(_PERCENTILES, values, strict=True)}


@dataclass(frozen=True)
class _Row:
    """What there is to say about a row."""

    images: int
    turns: int
    missing: tuple[str, ...]
    length: int | None
    bad: BadSample | None


def check_data(
    conversations: Conversations, processor: Any = None, max_length: int | None = None, workers: int = 0
) -> DataReport:
    """Look at every row.

    Each row's form, and the head of each image and whether its file is whole (see `check_image`). With a processor also
    the chat template, the number of tokens, and that some of them are an answer's. Images are not decoded.

    Args:
        conversations: the data set.
        processor: of the model to train.
        max_length: a conversation with more tokens is bad.
        workers: processes that check, 0 for this one.

    Raises:
        FovealError: no conversation can be prepared with the processor.
    """
    if processor is not None:
        check_processor(processor)
    report = DataReport()
    with bar(f"checking {conversations.name}", len(conversations)) as advance:
        for rows in in_batches(conversations, _Check(processor, max_length), workers):
            _add(report, rows)
            advance(len(rows))
    return report


def _add(report: DataReport, rows: Iterable[_Row]) -> None:
    for row in rows:
        report.conversations += 1
        report.missing_files.update(row.missing)
        if row.length is not None:
            report.lengths.append(row.length)
        if row.bad is not None:
            report.bad[report.conversations] = row.bad
        if row.turns:
            report.images += row.images
            report.turns += row.turns
            report.text_only += row.images == 0
            report.several_images += row.images > 1


class _Check:
    """Looks at a batch of samples."""

    def __init__(self, processor: Any, max_length: int | None) -> None:
        self._processor, self._max_length = processor, max_length
        self._image_tokens: ImageTokens | None = None
        self._known: dict[Path, tuple[int, int] | FovealError] = {}

    def __call__(self, samples: list[Any]) -> list[_Row]:
        return [self._row(sample) for sample in samples]

    def _row(self, sample: Any) -> _Row:
        if isinstance(sample, BadSample):
            return _Row(0, 0, (), None, sample)
        reasons, missing, sizes = [], [], []
        for image in sample["images"]:
            found = self._image(image)
            if isinstance(found, tuple):
                sizes.append(found)
                continue
            reasons.append(str(found))
            if isinstance(found.__cause__, FileNotFoundError):
                missing.append(str(image))
        length = None
        try:
            length = self._length(sample, sizes)
        except FovealError as error:
            reasons.append(str(error))
        bad = BadSample(sample["id"], sample["where"], "; ".join(reasons)) if reasons else None
        turns = sum(message["role"] == "assistant" for message in sample["messages"])
        return _Row(len(sample["images"]), turns, tuple(missing), length, bad)

    def _image(self, image: Any) -> tuple[int, int] | FovealError:
        """Its size or what is wrong with it; a file is opened once, however many rows name it."""
        if isinstance(image, Path) and image in self._known:
            return self._known[image]
        try:
            found: tuple[int, int] | FovealError = check_image(image)
        except FovealError as error:
            found = error
        if isinstance(image, Path):
            self._known[image] = found
        return found

    def _length(self, sample: Any, sizes: list[tuple[int, int]]) -> int | None:
        """Tokens of the sample; None where that cannot be said.

        Raises:
            FovealError: they are too many, or the sample has no text that could be trained on.
        """
        if self._processor is None:
            return None
        _, tokens = prepare_text(self._processor, sample)
        if len(sizes) < len(sample["images"]):
            return None
        if self._image_tokens is None:
            self._image_tokens = ImageTokens(self._processor)
        length = len(tokens.ids) + sum(self._image_tokens.of_size(size) - 1 for size in sizes)
        if self._max_length is not None and length > self._max_length:
            raise FovealError(
                f"{length} tokens, more than max_length={self._max_length}: shorten it or raise max_length"
            )
        return length
