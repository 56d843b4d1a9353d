"""A run's checkpoints: the whole ones, and those that were cut short while they were written.

Trainer writes its state last. From the first file on until then, a checkpoint carries the mark that transformers' own
just-in-time checkpoints use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

__all__ = ["is_whole", "last_checkpoint", "remove_cut_short", "writing"]

_MARK = "checkpoint-is-incomplete.txt"


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest whole checkpoint that a trainer left in `folder`, None if there is none.

    One that was cut short (a process killed while it saved) is passed over.
    """
    named = [path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _step(path).isdigit()]
    return max(filter(is_whole, named), key=lambda path: int(_step(path)), default=None)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def writing(checkpoint: Path) -> Iterator[None]:
    """Mark a checkpoint as not yet whole inside the block, also where an older one of the same name is overwritten."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / _MARK).touch()
    (checkpoint / TRAINER_STATE_NAME).unlink(missing_ok=True)
    yield
    (checkpoint / _MARK).unlink(missing_ok=True)


def remove_cut_short(folder: str | Path) -> None:
    """Delete what was cut short: it would count for save_total_limit, in place of a whole checkpoint."""
    for mark in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{_MARK}"):
        if not is_whole(mark.parent):
            rmtree(mark.parent)


def _step(path: Path) -> str:
    return path.name.rpartition("-")[2]
