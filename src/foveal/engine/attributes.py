"""Attributes of a single object, put back exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["replaced"]


_NOTHING = object()


@contextmanager
def replaced(owner: object, name: str, value: Any) -> Iterator[None]:
    """Give `owner` an attribute of its own; what it had itself, or nothing, comes back."""
    own = vars(owner).get(name, _NOTHING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is _NOTHING:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
