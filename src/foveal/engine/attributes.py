"""Attributes of a single object, put back exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from foveal.errors import FovealError

__all__ = ["NotCopied", "replaced"]

_NOTHING = object()
_PLACE = "_foveal_replaced"


class NotCopied:
    """Part of a compressed model: a copy would go on calling the original's modules."""

    def __deepcopy__(self, memo: Any) -> NotCopied:
        raise FovealError(
            "a compressed model cannot be copied: detach first, and compress the copy by itself"
        )


class _Replaced(NotCopied, dict[str, list[Any]]):
    """By name, what an object has had in turn; the last is what it has now."""


@contextmanager
def replaced(owner: object, name: str, value: Any) -> Iterator[None]:
    """Give `owner` an attribute of its own; what it had itself, or nothing, comes back.

    Several may replace the same (two models that share a tower), and leave in any order.
    """
    held: _Replaced = vars(owner).setdefault(_PLACE, _Replaced())
    values = held.setdefault(name, [vars(owner).get(name, _NOTHING)])
    values.append(value)
    setattr(owner, name, value)
    try:
        yield
    finally:
        del values[max(place for place, other in enumerate(values) if other is value)]
        if values[-1] is _NOTHING:
            delattr(owner, name)
        else:
            setattr(owner, name, values[-1])
        if len(values) == 1:
            del held[name]
        if not held:
            delattr(owner, _PLACE)
