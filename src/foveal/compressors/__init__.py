"""The compression methods: one file each, chosen by class or by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from foveal.compressors.base import Compressor, MethodCard, StagedCompressor, TowerCompressor
from foveal.compressors.cdpruner import CDPruner
from foveal.compressors.context import (
    AttentionInputs,
    Rows,
    Selection,
    TokenContext,
    TowerContext,
    VisualLayout,
)
from foveal.compressors.dart import DART
from foveal.compressors.divprune import DivPrune
from foveal.compressors.downsample import Downsample
from foveal.compressors.fastv import FastV
from foveal.compressors.pooling import AveragePooling
from foveal.compressors.prumerge import PruMerge, PruMergePlus
from foveal.compressors.pumer import PuMer
from foveal.compressors.pyramiddrop import PyramidDrop
from foveal.compressors.random import Random
from foveal.compressors.sparsevlm import SparseVLM
from foveal.compressors.tome import ToMe
from foveal.compressors.trim import TRIM
from foveal.compressors.visionzip import VisionZip
from foveal.errors import FovealError

__all__ = [
    "DART",
    "TRIM",
    "AttentionInputs",
    "AveragePooling",
    "CDPruner",
    "Compressor",
    "DivPrune",
    "Downsample",
    "FastV",
    "MethodCard",
    "PruMerge",
    "PruMergePlus",
    "PuMer",
    "PyramidDrop",
    "Random",
    "Rows",
    "Selection",
    "SparseVLM",
    "StagedCompressor",
    "ToMe",
    "TokenContext",
    "TowerCompressor",
    "TowerContext",
    "VisionZip",
    "VisualLayout",
    "available",
    "get",
    "method_class",
]

_METHODS: dict[str, type[Compressor]] = {
    "cdpruner": CDPruner,
    "dart": DART,
    "divprune": DivPrune,
    "downsample": Downsample,
    "fastv": FastV,
    "pooling": AveragePooling,
    "prumerge": PruMerge,
    "prumerge+": PruMergePlus,
    "pumer": PuMer,
    "pyramiddrop": PyramidDrop,
    "random": Random,
    "sparsevlm": SparseVLM,
    "tome": ToMe,
    "trim": TRIM,
    "visionzip": VisionZip,
}


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
    if "layer" in options and "layer" not in {item.name for item in fields(method) if item.init}:
        places = (
            "at several layers: pass layers="
            if issubclass(method, StagedCompressor)
            else "before the decoder"
        )
        raise FovealError(f"{method.__name__} has no layer={options['layer']}: it acts {places}")
    try:
        return method(**options)
    except TypeError as error:
        raise FovealError(f"{method.__name__}: {error}") from error
