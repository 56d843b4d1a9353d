"""In which precision, and with which gradients, things are computed beside the model's own forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["no_cached_casts", "undisturbed"]


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Methods compute without gradient, and in the precision they ask for."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def no_cached_casts() -> Iterator[None]:
    """Autocast caches a weight's cast; one made without gradient would cut the model itself off from that weight."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
