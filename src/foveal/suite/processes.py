"""The processes that `accelerate launch` or `torchrun` started: they share the questions."""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import distributed

__all__ = ["first_tells", "gathered", "join", "rank", "size"]

Value = TypeVar("Value")


def join() -> Accelerator:
    """Join them, if there are any; harmless when done already. Its `device` is where this process computes."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    # Accelerate does not join processes on a CPU unless told that this is where they are to compute.
    return Accelerator(cpu=several and not torch.accelerator.is_available())


def rank() -> int:
    """This process's number. Asked of torch: Accelerate may have been set up by others who did not join."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """How many there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gathered(value: Value) -> list[Value]:
    """What each process passed, in their order."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    distributed.all_gather_object(found, value)
    return found


def first_tells(value: Value | None) -> Value:
    """What the first process passed; the others' values do not matter."""
    told: list[Any] = [value]
    if size() > 1:
        distributed.broadcast_object_list(told)
    found: Value = told[0]
    return found
