"""Records of what is known, with the unit in every name."""

from __future__ import annotations

from typing import Any

from foveal.efficiency.cost import Cost
from foveal.efficiency.hardware import Hardware
from foveal.efficiency.roofline import Times

__all__ = ["cost_record", "hardware_record", "times_record"]

_FLOPS = (
    "tower",
    "text_tower",
    "projector",
    "selection",
    "layers",
    "head",
    "prefill",
    "first_token",
    "steps",
)
_TIMES = (*_FLOPS, "next_token", "answer")


def hardware_record(hardware: Hardware) -> dict[str, Any]:
    """What a device can do."""
    return {
        "name": hardware.name,
        "memory_gib": hardware.memory,
        "bandwidth_bytes_per_second": hardware.bandwidth,
        "peak_flops_per_second": hardware.peak,
        "launch_seconds": hardware.launch,
    }


def cost_record(cost: Cost) -> dict[str, Any]:
    """FLOPs and bytes of a load, by part, layer or step and in sum, and the tokens behind them."""
    return {
        "flops": {name: getattr(cost, name) for name in (*_FLOPS, "total")},
        "bytes": {
            "weights": cost.weights,
            "cache_by_layer": cost.cache,
            "cache": sum(cost.cache),
            "cache_at_end": sum(cost.cache_at_end),
            "activations": cost.activations,
            "memory": cost.memory,
        },
        "rows_by_layer": cost.rows,
        "visual_tokens_by_layer": cost.visual,
        "average_visual_tokens": cost.average_visual,
    }


def times_record(times: Times) -> dict[str, Any]:
    """Seconds of a load at best, by part, layer or step, and in sum."""
    return {name: getattr(times, name) for name in _TIMES}
