"""What the commands share: reading `--keep` and `--layer`, loading a model quietly, and the consoles."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from foveal.budget import Budget
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.compressors import Compressor

__all__ = [
    "LayerOption",
    "ModelOption",
    "join_values",
    "layer_option",
    "load_model",
    "make_method",
    "print_json",
    "screen",
    "split_values",
]

ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="A checkpoint's folder or hub name; the bundled model if left out."),
]
LayerOption = Annotated[
    int | None,
    typer.Option(
        "--layer",
        help="Decoder layer at whose entry tokens are dropped, from 0. Default: the method's own.",
        show_default=False,
    ),
]


def screen() -> Console:
    """The console for results."""
    return Console(highlight=False)


def print_json(value: Any) -> None:
    """Print `value` as JSON on stdout."""
    print(json.dumps(value, ensure_ascii=False, indent=2))  # noqa: T201


def join_values(arguments: Sequence[str], options: Collection[str]) -> list[str]:
    """Let an option take several values: `--keep 48 32 16` becomes `--keep 48,32,16`.

    The list ends at the next word that begins with a dash. A command whose options are read like this must not take
    arguments besides.
    """
    joined: list[str] = []
    open_list = False
    for word in arguments:
        if open_list and not word.startswith("-"):
            joined[-1] += f",{word}"
            continue
        open_list = len(joined) > 0 and joined[-1] in options
        joined.append(word)
    return joined


def split_values(text: str) -> list[str]:
    """The values of an option that takes several, separated by commas or spaces; each once."""
    return list(dict.fromkeys(text.replace(",", " ").split()))


def make_method(
    name: str, keep: Budget, layer: int | None = None, positions: str | None = None
) -> Compressor | None:
    """The method of that name with its own layer and positions, or with those that are given; None for "none".

    Raises:
        FovealError: there is none, it does not take the budget, or `layer` is given to one that has none to choose.
    """
    from foveal.compressors import get, method_class

    if name == "none":
        return None
    options: dict[str, Any] = {"keep": keep, **layer_option(method_class(name), layer)}
    return get(name, **options) if positions is None else get(name, **options, positions=positions)


def layer_option(method: type[Compressor], layer: int | None) -> dict[str, int]:
    """The option as the method takes it, nothing where it was left out.

    Raises:
        FovealError: the method has no layer to choose.
    """
    from foveal.compressors import StagedCompressor

    if layer is None:
        return {}
    if any(item.name == "layer" and item.init for item in fields(method)):
        return {"layer": layer}
    name = method.card.name if method.card else method.__name__
    where = "at several layers" if issubclass(method, StagedCompressor) else "before the decoder"
    raise FovealError(f"--layer {layer}: {name} drops tokens {where}, so leave --layer out")


def load_model(path: str | None) -> tuple[Any, Any]:
    """Load a model, uncompressed, and its processor; on the GPU if there is one, and without progress bars or notes."""
    import torch
    from transformers.utils import logging

    from foveal.loading import load

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return load(path, device="cuda" if torch.cuda.is_available() else None, compressed=False)
