from __future__ import annotations

import pytest
import torch

from foveal import FovealError
from foveal.efficiency import hardware
from foveal.efficiency.hardware import HARDWARE, find_hardware, measured


def test_data_sheets() -> None:
    a100 = find_hardware("a100")
    assert (a100.memory, a100.bandwidth, a100.peak) == (80, 2039e9, 312e12)
    assert [name for name, device in HARDWARE.items() if device.name != name] == []
    for device in HARDWARE.values():  # GPUs balance 70 to 420 FLOPs against a byte
        assert 70 < device.peak / device.bandwidth < 420


def test_an_unknown_device_is_answered_with_those_that_are_known() -> None:
    with pytest.raises(FovealError, match=r"hardware 'h300' is not known: pass cpu or gpu .*h200"):
        find_hardware("h300")


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FovealError, match='"gpu": this machine has none'):
        find_hardware("gpu")


def test_this_cpu_by_its_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum in 1/10 s, a copy in 1/8 s, a product in 1/2 s."""
    times = iter([0.1, 0.125, 0.5])
    monkeypatch.setattr(hardware, "_seconds", lambda _work, _device, _read: next(times))
    device = measured("cpu", torch.float32)
    assert device.bandwidth == 2 * 2**28 / 0.125
    assert device.peak == 2 * 1024**3 / 0.5
    assert device.launch == 0
    assert f"{torch.get_num_threads()} thread" in device.name


def test_the_median_of_rounds_without_the_first() -> None:
    ends = [100, *range(1, 8)]  # the first round takes longest
    clock = iter([moment for end in ends for moment in (0, end)])
    assert hardware._seconds(lambda: None, torch.device("cpu"), lambda: next(clock)) == 4


def test_this_cpu_is_no_faster_than_it_can_be() -> None:
    device = find_hardware("cpu", torch.float32)
    assert 1e8 < device.peak < 1e15
    assert 1e8 < device.bandwidth < 1e13
    assert device.memory > 0.5
