"""`foveal train --dry-run`: what the run would need, and where it fits."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from foveal.cli.common import print_json, screen
from foveal.data import load_conversations
from foveal.distillation.estimate import DEVICES, MFU, Estimate, estimate
from foveal.distillation.recipe import Recipe
from foveal.efficiency.hardware import GIB, Hardware, measured

__all__ = ["dry_run"]


def dry_run(recipe: Recipe, *, as_json: bool) -> None:
    """Print what `recipe` needs."""
    found = estimate(recipe, _conversations(recipe))
    devices = [*DEVICES, measured("cpu", torch.bfloat16 if recipe.config.bf16 else torch.float32)]
    if as_json:
        print_json(_as_json(found, devices))
    else:
        _print(found, devices)


def _conversations(recipe: Recipe) -> int | None:
    """How many there are, if the data are at hand; else how many the recipe says."""
    at_hand = recipe.run.data != "scenes" and Path(recipe.run.data).exists()
    return (
        len(load_conversations(recipe.run.data, recipe.run.images)) if at_hand else recipe.run.conversations
    )


def _as_json(found: Estimate, devices: list[Hardware]) -> dict[str, Any]:
    batch = found.batch_size
    return {
        **asdict(found),
        "activations": found.memory.activations(batch),
        "total_bytes": found.memory.total(batch),
        "mfu": MFU,
        "devices": [
            {
                **asdict(device),
                "fits": found.memory.fits(batch, device),
                "largest_batch": found.memory.largest_batch(device),
                "hours": found.hours(device),
            }
            for device in devices
        ],
    }


def _print(found: Estimate, devices: list[Hardware]) -> None:
    console = screen()
    for table in (_parts(found), _memory(found), _devices(found, devices)):
        console.print(table)
        console.print()
    for line in _notes(found):
        console.print(line, style="dim", soft_wrap=True)


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, box=None, title_justify="left", title_style="bold")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _parts(found: Estimate) -> Table:
    table = _table("Parameters, millions", "part", "all", "learn")
    for name, part in found.parts.items():
        table.add_row(name, f"{part.parameters / 1e6:,.1f}", f"{part.trained / 1e6:,.1f}")
    return table


def _memory(found: Estimate) -> Table:
    memory, batch = found.memory, found.batch_size
    table = _table("Memory of one process, GiB", "for")
    table.add_column("", justify="right")
    rows = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "weights cast or gathered": memory.casts,
        f"activations, batch of {batch}, average": memory.average,
        "activations at the worst": memory.activations(batch),
        "all at the worst": memory.total(batch),
    }
    for name, value in rows.items():
        table.add_row(name, f"{value / GIB:,.2f}", style="bold" if name.startswith("all") else None)
    return table


def _devices(found: Estimate, devices: list[Hardware]) -> Table:
    count = f"{found.processes} x " if found.processes > 1 else ""
    table = _table("Where it fits", "device", "GiB", f"batch of {found.batch_size}", "largest batch", "time")
    for device in devices:
        table.add_row(
            count + device.name,
            f"{device.memory:.0f}",
            "fits" if found.memory.fits(found.batch_size, device) else "too large",
            str(found.memory.largest_batch(device)),
            _time(found.hours(device)),
        )
    return table


def _time(hours: float | None) -> str:
    if hours is None:
        return "?"
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.0f} min" if hours >= 1 / 60 else "< 1 min"


def _notes(found: Estimate) -> list[str]:
    steps = "an unknown number of" if found.steps is None else f"{found.steps:,}"
    seen = found.assumed
    notes = [
        f"{steps} steps of {found.per_step} conversations, {found.flops / 1e12:,.3g} TFLOPs a step",
        f"memory: every conversation {seen['max_length']} tokens long (--max_length)",
        f"time: {seen['visual_tokens']} visual, {seen['text_tokens']} text tokens (--visual_tokens, --text_tokens)",
        f"time: {100 * MFU:.0f} % of a device's peak, by its bfloat16 data sheet; of this CPU's, measured",
    ]
    if found.processes > 1:
        notes.append(
            "weights, gradients and optimizer are shared out over processes (ZeRO-3, FSDP2), not as in DDP"
        )
    if found.steps is None:
        notes.append("for steps and hours: pass --data, --conversations or --steps")
    return notes
