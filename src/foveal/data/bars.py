"""A progress bar for work on data that may take minutes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

__all__ = ["bar"]


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Draw a bar on stderr, if that is a terminal and this is its first process; yields what moves it on."""
    console = Console(stderr=True)
    hidden = not console.is_terminal or os.environ.get("LOCAL_RANK", "0") != "0"
    with Progress(console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.advance(task, count)
