from __future__ import annotations

from pathlib import Path

import pytest
import torch

from foveal.efficiency import memory
from foveal.efficiency.memory import free_memory, peak_memory

CPU, MIB = torch.device("cpu"), 2**20
linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux says how much a process holds"
)


@linux
def test_the_peak_is_found_though_all_is_given_back() -> None:
    def call() -> None:
        block = torch.ones(64 * MIB // 4)
        del block
        torch.ones(16 * MIB // 4)

    peak_memory(call, CPU)  # what torch itself needs for its first tensors
    peak = peak_memory(call, CPU)
    assert peak is not None
    assert 60 * MIB < peak < 100 * MIB


@linux
def test_what_was_held_before_does_not_count() -> None:
    held = torch.ones(256 * MIB // 4)
    peak = peak_memory(lambda: torch.ones(16 * MIB // 4), CPU)
    assert peak is not None
    assert len(held) > peak > 12 * MIB


def test_where_nobody_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "no such folder" / "clear_refs")
    assert peak_memory(lambda: None, CPU) is None


@linux
def test_free_memory() -> None:
    free = free_memory(CPU)
    assert free is not None
    assert free > MIB
