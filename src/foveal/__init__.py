"""Foveal: vision-language models with fewer visual tokens."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.compression import Run, Stage, attach, compress, detach
    from foveal.compressors import (
        DART,
        TRIM,
        AttentionInputs,
        AveragePooling,
        CDPruner,
        Compressor,
        DivPrune,
        Downsample,
        FastV,
        MethodCard,
        PruMerge,
        PruMergePlus,
        PuMer,
        PyramidDrop,
        Random,
        Rows,
        Selection,
        SparseVLM,
        StagedCompressor,
        TokenContext,
        ToMe,
        TowerCompressor,
        TowerContext,
        VisionZip,
        VisualLayout,
        available,
        get,
        method_class,
    )
    from foveal.loading import load
    from foveal.text_tower import TextTower

__version__ = "0.1.0"

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
    "FovealError",
    "MethodCard",
    "PruMerge",
    "PruMergePlus",
    "PuMer",
    "PyramidDrop",
    "Random",
    "Rows",
    "Run",
    "Selection",
    "SparseVLM",
    "Stage",
    "StagedCompressor",
    "TextTower",
    "ToMe",
    "TokenContext",
    "TowerCompressor",
    "TowerContext",
    "VisionZip",
    "VisualLayout",
    "attach",
    "available",
    "compress",
    "detach",
    "get",
    "load",
    "method_class",
]

_HOMES = {
    "foveal.compression": ("Run", "Stage", "attach", "compress", "detach"),
    "foveal.loading": ("load",),
    "foveal.text_tower": ("TextTower",),
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch and transformers take seconds, and `foveal --help` needs neither."""
    if name not in __all__:
        raise AttributeError(f"module 'foveal' has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), "foveal.compressors")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return __all__
