"""Saving: the training's own state, and the checkpoint that ships."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPModel, LlavaForConditionalGeneration, PreTrainedModel

from foveal.mini.architecture import build_clip_processor, build_processor

__all__ = ["export", "load_state", "replace_folder", "save_state"]


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write `state` so that a kill at any moment leaves either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    torch.save(state, fresh)
    os.replace(fresh, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """What `save_state` wrote, on the CPU; None if there is no such file."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def export(model: LlavaForConditionalGeneration, clip: CLIPModel, folder: Path) -> None:
    """Write the model and its processor as an ordinary checkpoint, and the CLIP pair in its folder ``clip``.

    Weights are rounded to float16 while the config keeps saying float32, so that a plain load computes in float32.
    What else is in the folder stays.
    """
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    if folder.exists():
        shutil.copytree(folder, fresh)
    _save_halved(model, fresh)
    build_processor().save_pretrained(fresh)
    _save_halved(clip, fresh / "clip")
    build_clip_processor().save_pretrained(fresh / "clip")
    replace_folder(fresh, folder)


def _save_halved(model: PreTrainedModel, folder: Path) -> None:
    halves = {
        name: value.detach().half().contiguous() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    model.config.dtype = torch.float32
    model.save_pretrained(folder, state_dict=halves)


def replace_folder(fresh: Path, folder: Path) -> None:
    """Put the folder `fresh` in the place of `folder`."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)
