"""Load a checkpoint, and the compressor that its config names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveal.compression import attach
from foveal.compressors import Compressor, get
from foveal.engine.families import find_parts
from foveal.errors import FovealError
from foveal.text_tower import TextTower

__all__ = ["load", "record_compressor", "recorded_compressor"]

_FIELD = "foveal"


def record_compressor(model: nn.Module, compressor: Compressor) -> None:
    """Name in the model's config the compressor it is trained for; save_pretrained writes it.

    Raises:
        FovealError: a method that is not built in, whose name would mean nothing to `load`.
    """
    if compressor.card is None:
        raise FovealError(f"{type(compressor).__name__} has no card with a name that load() could find")
    config: Any = find_parts(model).top.config
    setattr(config, _FIELD, {"method": compressor.card.name, **compressor.options()})


def recorded_compressor(model: nn.Module) -> Compressor | None:
    """The compressor that the model's config names, None if it names none."""
    config: Any = find_parts(model).top.config
    options = dict(getattr(config, _FIELD, None) or {})
    return get(options.pop("method"), **options) if options else None


def load(
    source: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    compressed: bool = True,
    clip: str | Path | None = None,
) -> tuple[Any, Any]:
    """Load a vision-language model and its processor.

    Args:
        source: a directory or a hub name; None for the small model bundled with Foveal.
        device: where to put the model; default: where transformers puts it (the CPU).
        dtype: default: the one in the checkpoint's config.
        compressed: attach the compressor that the checkpoint names, if any (`foveal.detach(model)` undoes it).
        clip: the CLIP pair for a compressor that reads the question (TRIM, CDPruner), a directory or a hub name; None
            for the one beside the checkpoint.

    Returns:
        (model in eval mode, processor).

    Raises:
        FovealError: the checkpoint cannot be found or read, or holds no vision-language model.
    """
    if source is None:
        from foveal.mini import weights_path

        source = weights_path()
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    try:
        model = AutoModelForImageTextToText.from_pretrained(source, **options)
        processor = AutoProcessor.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FovealError(
            f"cannot load a vision-language model from {str(source)!r} ({reason}): pass a directory or hub name that "
            "AutoModelForImageTextToText and AutoProcessor can load"
        ) from error
    model = model.eval() if device is None else model.eval().to(device)
    compressor = recorded_compressor(model) if compressed else None
    if compressor is not None:
        text_tower = None if clip is None else TextTower.beside(model, source=clip)
        attach(model, compressor, text_tower=text_tower)
    return model, processor
