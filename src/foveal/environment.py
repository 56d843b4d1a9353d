"""Packages whose mere presence breaks transformers, told apart before its own errors hide the reason."""

from __future__ import annotations

import importlib
import importlib.util

from foveal.errors import FovealError

__all__ = ["check_torchvision"]


def check_torchvision() -> None:
    """Refuse a torchvision that was built for another torch: transformers imports it wherever it finds it.

    Raises:
        FovealError: it cannot be imported.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except (RuntimeError, OSError, ImportError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FovealError(
            f"torchvision does not fit this torch ({reason}): `pip uninstall torchvision`, which Foveal does not need, "
            "or install the build that belongs to your torch"
        ) from error
