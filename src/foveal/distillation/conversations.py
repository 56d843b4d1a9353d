"""Conversations to train on, from a file of the user's own in LLaVA's format or as chat messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foveal.errors import FovealError
from foveal.files import read_text

__all__ = ["load_conversations"]

_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
_MARK = "<image>"


def load_conversations(path: str | Path) -> list[dict[str, Any]]:
    """Read samples for `EpicTrainer` from a JSON array or a JSONL file.

    Two forms are understood, mixed as you like; image paths are relative to the file, and a sample may have none:

        {"image": "cat.jpg", "conversations": [{"from": "human", "value": "<image> what is it?"},
                                               {"from": "gpt", "value": "a cat"}]}
        {"images": ["cat.jpg"], "messages": [{"role": "user", "content": [{"type": "image"}, ...]}, ...]}

    Returns:
        {"id", "images", "messages"} per sample, images as paths.

    Raises:
        FovealError: no such file, or a sample that is neither; the message names file, sample and remedy.
    """
    path = Path(path)
    samples = [
        _sample(row, path.parent, f"{path}, sample {place}") for place, row in enumerate(_rows(path), start=1)
    ]
    if not samples:
        raise FovealError(f"{path} holds no conversations")
    return samples


def _rows(path: Path) -> list[Any]:
    text = read_text(path).strip()
    try:
        if text.startswith("["):
            return list(json.loads(text))
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except json.JSONDecodeError as error:
        raise FovealError(f"{path}: no JSON ({error}); write one array, or one object a line") from error


def _sample(row: Any, folder: Path, where: str) -> dict[str, Any]:
    if not isinstance(row, dict) or not isinstance(row.get("messages") or row.get("conversations"), list):
        raise FovealError(f"{where}: expected an object with `messages` or LLaVA's `conversations`")
    names = row.get("images") or row.get("image") or []
    images = [folder / str(name) for name in ([names] if isinstance(names, str) else names)]
    turns = row.get("messages") or row["conversations"]
    messages = [_message(turn, where) for turn in turns]
    wanted = sum(part["type"] == "image" for message in messages for part in message["content"])
    if wanted != len(images):
        raise FovealError(
            f"{where}: {len(images)} images, but {wanted} places for one: add or remove {_MARK}"
        )
    return {"id": str(row.get("id", where)), "images": images, "messages": messages}


def _message(turn: Any, where: str) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise FovealError(
            f"{where}: a turn is an object with `role` and `content`, or LLaVA's `from` and `value`"
        )
    role = _ROLES.get(str(turn.get("role") or turn.get("from")))
    content = turn.get("content", turn.get("value"))
    if role is None or not isinstance(content, str | list):
        raise FovealError(
            f"{where}: a turn needs `role` (user or assistant) and `content`, or `from` and `value`"
        )
    return {"role": role, "content": _parts(content) if isinstance(content, str) else content}


def _parts(text: str) -> list[dict[str, str]]:
    """Text with `<image>` marks as the parts of a chat message."""
    pieces = text.split(_MARK)
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(pieces):
        if number:
            parts.append({"type": "image"})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip() if len(pieces) > 1 else piece})
    return parts
