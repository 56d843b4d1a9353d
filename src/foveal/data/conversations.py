"""Conversations to train on, from data of the user's own in LLaVA's format or as chat messages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from foveal.data.bad_samples import BadSample, id_of
from foveal.data.rows import Rows, open_rows
from foveal.errors import FovealError

__all__ = ["Conversations", "conversation", "load_conversations"]

_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
_MARK = "<image>"

Message = dict[str, Any]


def load_conversations(source: Any, image_folder: str | Path | None = None) -> Conversations:
    """Open samples for `EpicTrainer`; rows are read and checked when they are asked for.

    Two forms of rows are understood, mixed as you like:

        {"image": "cat.jpg", "conversations": [{"from": "human", "value": "<image> what is it?"},
                                               {"from": "gpt", "value": "a cat"}]}
        {"images": ["cat.jpg"], "messages": [{"role": "user", "content": [{"type": "image"}, ...]}, ...]}

    An image is a path, a PIL image, or {"bytes", "path"}; there may be several, or none.

    Args:
        source: a JSON array, JSONL or Parquet file, a folder of Parquet files or of `datasets.save_to_disk`, or a
            `datasets.Dataset`.
        image_folder: where relative image paths begin; default: beside the file.

    Raises:
        FovealError: no such file or folder of images, it cannot be read, or it is empty. Bad rows are no error here,
            see `Conversations`.
    """
    rows = open_rows(source)
    if not len(rows):
        raise FovealError(f"{rows.name} holds no conversations")
    if image_folder is not None and not Path(image_folder).is_dir():
        raise FovealError(f"no such folder of images: {image_folder}")
    return Conversations(rows, rows.folder if image_folder is None else Path(image_folder))


class Conversations:
    """A map-style data set of conversations; picklable, and safe to fork.

    An item is {"id", "where", "images", "messages"}, images as paths, PIL images or bytes, or a `BadSample` where a
    row cannot be used: `VisionCollator` stops at it or skips it, as chosen.
    """

    def __init__(self, rows: Rows, folder: Path) -> None:
        self._rows, self._folder = rows, folder
        self.name = rows.name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any] | BadSample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        place = index % len(self)
        where = f"{self.name}, sample {place + 1}"
        try:
            row = self._rows[place]
        except ValueError as error:
            return BadSample("", where, f"no JSON ({error}); write one array, or one object a line")
        try:
            sample = conversation(row, self._folder)
        except FovealError as error:
            return BadSample(id_of(row), where, str(error))
        return {"id": id_of(row), "where": where, **sample}


def conversation(row: Any, folder: Path) -> dict[str, Any]:
    """{"images", "messages"} of a row in either form; content as parts, one part of type "image" for each image.

    Raises:
        FovealError: the row has neither form, or images and their places do not match.
    """
    if isinstance(row, Mapping) and (row.get("video") or row.get("videos")):
        raise FovealError("video cannot be trained on: remove the row, or give its frames as `images`")
    if not isinstance(row, Mapping) or not isinstance(row.get("messages") or row.get("conversations"), list):
        raise FovealError("expected an object with `messages` or LLaVA's `conversations`")
    messages = [_message(turn) for turn in row.get("messages") or row["conversations"]]
    given = row.get("images") or row.get("image") or _inside(messages)
    images = [_image(image, folder) for image in (given if isinstance(given, list | tuple) else [given])]
    wanted = sum(part["type"] == "image" for message in messages for part in message["content"])
    if wanted != len(images):
        raise FovealError(f"{len(images)} images, but {wanted} places for one: add or remove {_MARK}")
    if not any(_words(message) for message in messages if message["role"] == "assistant"):
        raise FovealError("no assistant words to train on: add an answer")
    return {
        "images": images,
        "messages": [
            {**message, "content": [_bare(part) for part in message["content"]]} for message in messages
        ],
    }


def _message(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise FovealError("a turn is an object with `role` and `content`, or LLaVA's `from` and `value`")
    role = _ROLES.get(str(turn.get("role") or turn.get("from")))
    content = turn.get("content", turn.get("value"))
    if role is None or not isinstance(content, str | list):
        raise FovealError("a turn needs `role` (user or assistant) and `content`, or `from` and `value`")
    return {
        "role": role,
        "content": _marked(content) if isinstance(content, str) else list(map(_part, content)),
    }


def _part(part: Any) -> dict[str, Any]:
    """A part of a message; columns of `datasets` fill in None for what a part does not have."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image":
        return {name: value for name, value in part.items() if value is not None}
    raise FovealError('a part of `content` is {"type": "text", "text": ...} or {"type": "image"}')


def _marked(text: str) -> list[dict[str, Any]]:
    """Text with `<image>` marks as the parts of a chat message."""
    pieces = text.split(_MARK)
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(pieces):
        if number:
            parts.append({"type": "image"})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip() if len(pieces) > 1 else piece})
    return parts or [{"type": "text", "text": ""}]


def _inside(messages: list[Message]) -> list[Any]:
    """Images that the messages carry themselves, as in {"type": "image", "image": "cat.jpg"}."""
    parts = [part for message in messages for part in message["content"] if part["type"] == "image"]
    return [part[key] for part in parts for key in ("image", "path") if key in part]


def _bare(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "image"} if part["type"] == "image" else part


def _image(image: Any, folder: Path) -> Image.Image | Path | bytes:
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        raise FovealError(f"{image} is not on this machine: download it and name the file")
    if isinstance(image, str | Path):
        return folder / image
    if isinstance(image, Image.Image | bytes):
        return image
    raise FovealError(f"an image is a path, a PIL image or {{'bytes', 'path'}}, not {type(image).__name__}")


def _words(message: Message) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text").strip()
