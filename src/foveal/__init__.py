"""Foveal: vision-language models with fewer visual tokens."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.compression import Run, Stage, attach, compress, detach
    from foveal.compressors import (
        DART,
        AttentionInputs,
        Compressor,
        FastV,
        MethodCard,
        Random,
        Rows,
        Selection,
        StagedCompressor,
        TokenContext,
        TowerCompressor,
        TowerContext,
        VisualLayout,
        available,
        get,
        method_class,
    )
    from foveal.loading import load

__version__ = "0.1.0"

__all__ = [
    "DART",
    "AttentionInputs",
    "Compressor",
    "FastV",
    "FovealError",
    "MethodCard",
    "Random",
    "Rows",
    "Run",
    "Selection",
    "Stage",
    "StagedCompressor",
    "TokenContext",
    "TowerCompressor",
    "TowerContext",
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
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch and transformers take seconds, and `foveal --help` needs neither."""
    if name not in __all__:
        raise AttributeError(f"module 'foveal' has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), "foveal.compressors")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return __all__
