"""Random choices that come out the same in every Python and on every platform."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["Draw"]

T = TypeVar("T")


class Draw:
    """A stream of choices fixed by its `key`.

    Only `random.Random.random` is promised to stay the same from one Python to the next, so every choice is built on
    it.
    """

    def __init__(self, key: str) -> None:
        self._next = random.Random(key).random

    def below(self, stop: int) -> int:
        """An integer in 0..stop-1."""
        return int(self._next() * stop)

    def between(self, low: int, high: int) -> int:
        """An integer in low..high, both included."""
        return low + self.below(high - low + 1)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._next() < probability

    def one(self, items: Sequence[T]) -> T:
        """One of `items`."""
        return items[self.below(len(items))]

    def weighted(self, weights: Sequence[float]) -> int:
        """An index of `weights`, drawn in proportion to them."""
        left = self._next() * sum(weights)
        for index, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return index
        return len(weights) - 1

    def several(self, items: Sequence[T], count: int) -> list[T]:
        """`count` of `items` without repetition (all of them if there are fewer), in random order."""
        pool = list(items)
        return [pool.pop(self.below(len(pool))) for _ in range(min(count, len(pool)))]
