"""Answers on disk as soon as they are given, so that a run that was killed goes on where it stopped.

Each process appends to a JSONL file of its own and reads those of all, so that a run may go on with another number of
processes. An answer is found again only by everything it depends on: weights, method, prompt, pictures.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from foveal.compressors import Compressor
from foveal.errors import FovealError
from foveal.evaluation.chat import Chat

__all__ = ["AnswerLog", "Given", "digest", "method_digest", "setup_digest", "weights_digest"]


@dataclass(frozen=True)
class Given:
    """An answer and what was seen of the question's images.

    Attributes:
        text: the answer.
        read: tokens of the prompt.
        written: tokens of the answer.
        kept: visual tokens left after the last stage, of each image; empty where nothing was compressed.
        seen: visual tokens of an image that a decoder layer sees, averaged over layers and the images of the batch.
    """

    text: str
    read: int
    written: int
    kept: tuple[int, ...] = ()
    seen: float = 0.0


class AnswerLog:
    """An append-only store of answers in a folder.

    Args:
        folder: made if it is missing; runs of any settings may share it.
        rank: this process among those that run together.

    Raises:
        FovealError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, rank: int = 0) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._known = dict(self._read())
            self._file = self.folder / f"answers-{rank}.jsonl"
            _end_last_line(self._file)
        except OSError as error:
            raise FovealError(
                f"cannot keep answers in {folder} ({error}): pass a folder to write to"
            ) from error

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Given | None:
        """The answer that an earlier run was given, if any."""
        return self._known.get(key)

    def add(self, answers: dict[str, Given]) -> None:
        """Write the answers of a batch in one piece, into which nothing of another run can come."""
        lines = "".join(_line(key, answer) for key, answer in answers.items()).encode()
        try:
            with self._file.open("ab", buffering=0) as file:
                file.write(lines)
        except OSError as error:
            raise FovealError(f"cannot keep answers in {self._file} ({error}): make room for them") from error

    def _read(self) -> Iterator[tuple[str, Given]]:
        for path in sorted(self.folder.glob("answers-*.jsonl")):
            with path.open(encoding="utf-8", errors="replace") as file:  # a letter may have been cut in two
                yield from filter(None, map(_parsed, file))


def _end_last_line(path: Path) -> None:
    """A process that was killed may have left half a line, to which the next must not be joined."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _line(key: str, answer: Given) -> str:
    return json.dumps({"key": key, **asdict(answer)}, ensure_ascii=False) + "\n"


def _parsed(line: str) -> tuple[str, Given] | None:
    """Key and answer of a whole line; None of one that was cut off."""
    try:
        row = json.loads(line)
        return row.pop("key"), Given(**{**row, "kept": tuple(row["kept"])})
    except (ValueError, KeyError, TypeError):
        return None


def digest(settings: str, chat: Chat, generation: object) -> str:
    """The key of an answer: a hash of the settings, prompt, pictures, and what is asked of `generate`.

    Which benchmark asks, and where in it the question stands, does not matter: a run with a higher `limit` finds the
    answers of the one before.
    """
    texts = [[message["role"], [_text(part) for part in message["content"]]] for message in chat.messages]
    found = blake2b(json.dumps([settings, texts, generation], default=str).encode(), digest_size=16)
    for image in chat.images:
        found.update(repr(image.size).encode())
        found.update(image.tobytes())
    return found.hexdigest()


def _text(part: dict[str, Any]) -> str | None:
    """A text, or None in the place of an image."""
    return None if isinstance(part.get("image"), Image.Image) else str(part["text"])


def setup_digest(model: PreTrainedModel, processor: ProcessorMixin) -> str:
    """A hash of what shapes an answer beside weights: configurations, chat template, tokens, attention, device."""
    tokenizer: Any = getattr(processor, "tokenizer", processor)
    config = model.config.to_dict()
    described = [
        {name: value for name, value in config.items() if name != "_name_or_path"},
        model.generation_config.to_dict() if model.generation_config is not None else None,
        model.config._attn_implementation,
        model.device.type,
        processor.to_dict(),
        getattr(processor, "chat_template", None),
        sorted(tokenizer.get_vocab().items()),
    ]
    return _hash(json.dumps(described, default=str, sort_keys=True).encode())


def method_digest(method: Compressor) -> str:
    """A hash of a method's options and code: one that is being written changes between runs."""
    kind = type(method)
    code = b"".join(_source(part) for part in kind.__mro__ if issubclass(part, Compressor))
    options = json.dumps([kind.__module__, kind.__qualname__, method.options()], default=str)
    return _hash(options.encode() + code)


def _source(kind: type) -> bytes:
    """The file in which a class is written; nothing for one that was typed in."""
    try:
        return Path(inspect.getfile(kind)).read_bytes()
    except (OSError, TypeError):
        return b""


@torch.no_grad()
def weights_digest(model: nn.Module) -> str:
    """A hash of names, shapes, a sample and the sum of all parameters' bits: other weights give another one."""
    found = blake2b(digest_size=16)
    samples: list[Tensor] = []
    for name, value in model.state_dict().items():
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        if value.device.type != "meta" and value.numel():
            words = _words(value.detach().flatten())
            samples += [words[:: max(1, len(words) // 16)][:32].long(), words.sum(dtype=torch.int64)[None]]
    found.update(torch.cat([sample.cpu() for sample in samples]).numpy().tobytes() if samples else b"")
    return found.hexdigest()


def _words(values: Tensor) -> Tensor:
    """The bits of a tensor as integers, the widest it divides into, as these are summed the fastest."""
    size, start = values.element_size(), values.storage_offset()
    kinds = (torch.int64, torch.int32, torch.int16)
    fitting = (
        kind for kind in kinds if len(values) * size % kind.itemsize == start * size % kind.itemsize == 0
    )
    return values.view(next(fitting, torch.uint8))


def _hash(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
