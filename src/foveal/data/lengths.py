"""How many tokens a sample will have, without decoding its images: what grouping by length needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch.utils.data import DataLoader

from foveal.data.answers import special_tokens
from foveal.data.bad_samples import BadSample
from foveal.data.bars import bar
from foveal.data.conversations import conversation
from foveal.data.image_files import image_size
from foveal.data.templates import check_processor, render_text
from foveal.errors import FovealError

__all__ = ["ImageTokens", "in_batches", "token_lengths"]

T = TypeVar("T")

_BATCH = 256
_PROBES = ((336, 336), (480, 640), (900, 300), (60, 90))  # (height, width), of all shapes
_PROBE_TEXT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "-"}]}]


def token_lengths(conversations: Any, processor: Any, workers: int = 0) -> list[int]:
    """The number of tokens of each sample, before padding; 1 for a bad sample, which the collator will name.

    Text is counted by the tokenizer; images by their size, which is read from the head of the file if it matters.

    Args:
        conversations: `Conversations`, or any sequence of samples that `VisionCollator` takes.
        processor: the model's processor.
        workers: processes that count, 0 for this one.

    Raises:
        FovealError: no conversation can be prepared with the processor.
    """
    check_processor(processor)
    found: list[int] = []
    with bar("counting tokens", len(conversations)) as advance:
        for part in in_batches(conversations, _Counter(processor), workers):
            found += part
            advance(len(part))
    return found


def in_batches(samples: Any, work: Callable[[list[Any]], T], workers: int) -> Iterable[T]:
    """What `work` makes of the samples, some hundred at a time, in order; done by so many processes."""
    # A generator of its own: to draw a seed for the workers from torch's would change what training draws.
    return DataLoader(
        samples, batch_size=_BATCH, collate_fn=work, num_workers=workers, generator=torch.Generator()
    )


class _Counter:
    """The lengths of a batch of samples."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._image_tokens: ImageTokens | None = None

    def __call__(self, samples: list[Any]) -> list[int]:
        if self._image_tokens is None:
            self._image_tokens = ImageTokens(self._processor)
        texts, counts = [], []
        for sample in samples:
            try:
                text, count = _measured(sample, self._processor, self._image_tokens)
            except FovealError:
                text, count = "", None
            texts.append(text)
            counts.append(count)
        options = special_tokens(self._processor, next((text for text in texts if text), ""))
        tokens = self._processor.tokenizer(texts, **options)["input_ids"]
        return [1 if count is None else len(ids) + count for ids, count in zip(tokens, counts, strict=True)]


def _measured(sample: Any, processor: Any, image_tokens: ImageTokens) -> tuple[str, int]:
    """A sample's text, and the tokens that its images add to it."""
    if isinstance(sample, BadSample):
        raise FovealError(sample.reason)
    turns = conversation(sample, Path())
    added = sum(image_tokens.of(image) - 1 for image in turns["images"])
    return render_text(processor, turns["messages"]), added


class ImageTokens:
    """How many tokens the processor puts in the place of a placeholder, by the image's size.

    What the processor says of itself is compared with what it does to a few blank pictures. If the two differ by a
    constant (delimiters, an unusual crop), that is added; if they differ otherwise, a blank picture of each size is
    processed. Where line breaks of the text merge with those a processor adds, a count may be off by a token or two.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        measured = [self._measure(size) for size in _PROBES]
        said = [self._ask(size) for size in _PROBES]
        offsets = {found - told for found, told in zip(measured, said, strict=True) if told is not None}
        self._fixed = measured[0] if len(set(measured)) == 1 else None
        self._offset = offsets.pop() if len(offsets) == 1 and None not in said else None
        self._known: dict[tuple[int, int], int] = {}

    def of(self, image: Image.Image | Path | bytes) -> int:
        """The tokens of an image; its file is not read if its size does not matter."""
        return self._fixed if self._fixed is not None else self.of_size(image_size(image))

    def of_size(self, size: tuple[int, int]) -> int:
        """The tokens of an image of this (height, width)."""
        if self._fixed is not None:
            return self._fixed
        if size not in self._known:
            told = None if self._offset is None else self._ask(size)
            self._known[size] = self._measure(size) if told is None else told + (self._offset or 0)
        return self._known[size]

    def _ask(self, size: tuple[int, int]) -> int | None:
        """What the processor says, None if it has no say."""
        ask = getattr(self._processor, "_get_num_multimodal_tokens", None)
        try:
            return None if ask is None else int(ask(image_sizes=[list(size)])["num_image_tokens"][0])
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    def _measure(self, size: tuple[int, int]) -> int:
        """What it does to a blank picture."""
        text = render_text(self._processor, _PROBE_TEXT)
        options = special_tokens(self._processor, text)
        height, width = size
        blank = Image.new("RGB", (width, height))
        try:
            found = self._processor(text=[text], images=[[blank]], **options)["input_ids"][0]
        except ValueError as error:
            raise FovealError(
                f"{type(self._processor).__name__} takes no image of {width} x {height}: {error}"
            ) from error
        return len(found) - len(self._processor.tokenizer(text, **options)["input_ids"]) + 1
