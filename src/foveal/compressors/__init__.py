"""The compression methods: one file each, chosen by class or by name."""

from __future__ import annotations

from typing import Any

from foveal.compressors.base import Compressor, MethodCard, StagedCompressor, TowerCompressor
from foveal.compressors.context import (
    AttentionInputs,
    Rows,
    Selection,
    TokenContext,
    TowerContext,
    VisualLayout,
)
from foveal.compressors.dart import DART
from foveal.compressors.fastv import FastV
from foveal.compressors.random import Random
from foveal.errors import FovealError

__all__ = [
    "DART",
    "AttentionInputs",
    "Compressor",
    "FastV",
    "MethodCard",
    "Random",
    "Rows",
    "Selection",
    "StagedCompressor",
    "TokenContext",
    "TowerCompressor",
    "TowerContext",
    "VisualLayout",
    "available",
    "get",
    "method_class",
]

_METHODS: dict[str, type[Compressor]] = {"dart": DART, "fastv": FastV, "random": Random}


def available() -> tuple[str, ...]:
    """Names of the built-in methods, sorted."""
    return tuple(sorted(_METHODS))


def method_class(name: str) -> type[Compressor]:
    """The class of a built-in method.

    Raises:
        FovealError: no method of that name.
    """
    if name.lower() not in _METHODS:
        raise FovealError(f"unknown method {name!r}: choose one of {', '.join(available())}")
    return _METHODS[name.lower()]


def get(name: str, **options: Any) -> Compressor:
    """A built-in method by name: `get("dart", keep=64)`.

    Raises:
        FovealError: no method of that name, or an option it does not have or accept.
    """
    method = method_class(name)
    try:
        return method(**options)
    except TypeError as error:
        raise FovealError(f"{method.__name__}: {error}") from error
