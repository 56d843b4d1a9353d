"""Foveal: vision-language models with fewer visual tokens."""

from foveal.compress import Run, Stage, attach, compress
from foveal.compressors import (
    DART,
    Compressor,
    FastV,
    MethodCard,
    Random,
    Selection,
    TokenContext,
    available,
    get,
    method_class,
)
from foveal.errors import FovealError

__version__ = "0.1.0"

__all__ = [
    "DART",
    "Compressor",
    "FastV",
    "FovealError",
    "MethodCard",
    "Random",
    "Run",
    "Selection",
    "Stage",
    "TokenContext",
    "attach",
    "available",
    "compress",
    "get",
    "method_class",
]
