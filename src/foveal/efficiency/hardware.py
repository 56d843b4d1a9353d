"""What machines can do: a table from their makers' data sheets, and the machine at hand, measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from foveal.errors import FovealError

__all__ = ["GIB", "HARDWARE", "Hardware", "find_hardware", "has_bfloat16", "measured"]

GIB = 2**30
_ROUNDS = 7


@dataclass(frozen=True)
class Hardware:
    """A device.

    Attributes:
        name: what it is called.
        memory: GiB.
        bandwidth: of its memory, bytes/s.
        peak: of dense matrix products, FLOP/s.
        launch: seconds that the host takes to start one of its kernels; 0 on the CPU.
    """

    name: str
    memory: float
    bandwidth: float
    peak: float
    launch: float = 5e-6


# Dense bfloat16 products that add up in float32 (float16 where there is no bfloat16: T4, V100).
HARDWARE: dict[str, Hardware] = {
    name: Hardware(name, memory, bandwidth * 1e9, peak * 1e12)
    for name, memory, bandwidth, peak in (
        ("rtx3090", 24, 936, 71),
        ("rtx4090", 24, 1008, 165.2),
        ("rtx5090", 32, 1792, 209.5),
        ("t4", 16, 320, 65),
        ("v100", 32, 900, 125),
        ("a10", 24, 600, 125),
        ("a6000", 48, 768, 154.8),
        ("a100", 80, 2039, 312),
        ("l4", 24, 300, 121),
        ("l40s", 48, 864, 362),
        ("h100", 80, 3350, 989.4),
        ("h200", 140, 4800, 989.4),
        ("b200", 179, 8000, 2250),
        ("mi300x", 192, 5300, 1307.4),
    )
}


def find_hardware(name: str, dtype: torch.dtype = torch.bfloat16) -> Hardware:
    """The device of that name; "cpu" and "gpu" are this machine's, measured in about a second.

    Args:
        name: one of `HARDWARE`, "cpu" or "gpu".
        dtype: of the products that are measured. The table's peaks are those of 16 bits.

    Raises:
        FovealError: there is none.
    """
    if name == "cpu":
        return measured("cpu", dtype)
    if name == "gpu":
        if not torch.cuda.is_available():
            raise FovealError(
                'hardware "gpu": this machine has none that torch can use; pass "cpu" or a known name'
            )
        return measured("cuda", dtype)
    if name not in HARDWARE:
        raise FovealError(
            f"hardware {name!r} is not known: pass cpu or gpu for this machine, or {', '.join(HARDWARE)}"
        )
    return HARDWARE[name]


def measured(
    device: str | torch.device, dtype: torch.dtype, read: Callable[[], float] = time.perf_counter
) -> Hardware:
    """This machine's device: medians of several large products and passes over memory.

    Bandwidth is that of reading or of copying, whichever is faster. On the CPU both are those of the threads in use
    (`torch.get_num_threads()`).

    Args:
        device: "cpu", "cuda", or one of several GPUs.
        dtype: of the products.
        read: the clock, in seconds; on a busy CPU the processor's own.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    side = 8192 if on_gpu else 1024
    left, right = torch.ones(2, side, side, device=device, dtype=dtype)
    product = torch.empty_like(left)
    data = torch.ones((2**30 if on_gpu else 2**28) // 4, device=device)
    copy = torch.empty_like(data)
    size = data.numel() * data.element_size()
    reading = size / _seconds(lambda: torch.sum(data), device, read)
    copying = 2 * size / _seconds(lambda: copy.copy_(data), device, read)
    peak = 2 * side**3 / _seconds(lambda: torch.mm(left, right, out=product), device, read)
    bandwidth = max(reading, copying)
    if on_gpu:
        properties = torch.cuda.get_device_properties(device)
        return Hardware(properties.name, properties.total_memory / GIB, bandwidth, peak)
    threads = torch.get_num_threads()
    name = f"this CPU, {threads} thread{'s' if threads > 1 else ''}"
    return Hardware(name, _main_memory() / GIB, bandwidth, peak, launch=0.0)


def has_bfloat16() -> bool:
    """Whether bfloat16 products are fast here: on the GPU if there is one, else on the CPU."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported())


def _seconds(work: Callable[[], object], device: torch.device, read: Callable[[], float]) -> float:
    """The median time that `work` takes, behind a round that is not counted."""
    taken = []
    for _ in range(1 + _ROUNDS):
        start = read()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(read() - start)
    return median(taken[1:])


def _main_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
