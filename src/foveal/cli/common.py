"""What the commands share: reading `--keep`, loading a model quietly, and the consoles."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.compressors import Compressor

__all__ = ["LayerOption", "ModelOption", "load_model", "make_method", "parse_keep", "print_json", "screen"]

ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="A checkpoint's folder or hub name; the bundled model if left out."),
]
LayerOption = Annotated[
    int, typer.Option("--layer", help="Decoder layer at whose entry tokens are dropped, from 0.")
]


def screen() -> Console:
    """The console for results."""
    return Console(highlight=False)


def print_json(value: Any) -> None:
    """Print `value` as JSON on stdout."""
    print(json.dumps(value, ensure_ascii=False, indent=2))  # noqa: T201


def parse_keep(text: str) -> int | float:
    """Read a number of tokens such as "16", or a fraction of them such as "0.25" or "1/9".

    Raises:
        FovealError: it is neither.
    """
    try:
        if "/" in text or "." in text:
            return float(Fraction(text))
        return int(text)
    except (ValueError, ZeroDivisionError) as error:
        raise FovealError(
            f"--keep {text}: pass a number of tokens such as 16, or a fraction such as 1/9"
        ) from error


def make_method(name: str, keep: int | float, layer: int) -> Compressor | None:
    """The method of that name, None for "none"."""
    from foveal.compressors import get

    return None if name == "none" else get(name, keep=keep, layer=layer)


def load_model(path: str | None) -> tuple[Any, Any]:
    """Load a model, uncompressed, and its processor; on the GPU if there is one, and without progress bars or notes."""
    import torch
    from transformers.utils import logging

    from foveal.loading import load

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return load(path, device="cuda" if torch.cuda.is_available() else None, compressed=False)
