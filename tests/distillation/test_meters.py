"""Sums over micro-batches and processes, and a clock that runs while there is training."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from foveal.distillation.meters import Meters
from foveal.distillation.schedules import Plan

ALONE: Any = SimpleNamespace(num_processes=1)


class Doubled:
    """A second process that sees the same."""

    num_processes, device = 2, torch.device("cpu")

    def reduce(self, sums: Tensor, how: str) -> Tensor:
        assert how == "sum"
        return sums * 2


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that stands still until it is set."""
    found = SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "perf_counter", lambda: found.now)
    return found


def noted() -> Meters:
    """Two micro-batches, one of them without a teacher."""
    meters = Meters()
    meters.begin()
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    meters.note(Plan(0.25, 0.5, 3), torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.5, 0.0, 1.0]), mask)
    meters.note(Plan(1.0, None), torch.tensor([3.0]), None, mask[:1])
    return meters


def test_averages_are_over_answers_and_plans(clock: SimpleNamespace) -> None:
    meters = noted()
    clock.now += 2
    expected = {
        "student_keep": 0.625,
        "teacher_keep": 0.5,
        "gap": 0.125,
        "layer": 3.0,
        "sft_loss": 3.0,
        "kd_loss": 0.5,
        "samples_per_second": 1.5,
        "tokens_per_second": 4.0,
    }
    assert meters.read(ALONE) == pytest.approx(expected)
    assert meters.read(ALONE) == {}


def test_processes_add_what_they_saw(clock: SimpleNamespace) -> None:
    alone, both = noted(), noted()
    clock.now += 2
    one, two = alone.read(ALONE), both.read(Doubled())  # type: ignore[arg-type]
    assert two["samples_per_second"] == 2 * one["samples_per_second"]
    assert two["tokens_per_second"] == 2 * one["tokens_per_second"]
    assert (two["sft_loss"], two["kd_loss"]) == (one["sft_loss"], one["kd_loss"])


def test_the_clock_runs_from_the_first_step_after_a_log_and_stops_in_pauses(clock: SimpleNamespace) -> None:
    meters = noted()
    clock.now += 1
    meters.begin()  # the next step's: it runs already
    with meters.paused():
        clock.now += 50
    clock.now += 1
    assert meters.read(ALONE)["samples_per_second"] == pytest.approx(1.5)
    with meters.paused():  # nothing is being measured
        clock.now += 50
    clock.now += 50
    meters.begin()
    meters.note(Plan(1.0, None), torch.tensor([3.0]), None, torch.ones(4, 1))
    clock.now += 2
    assert meters.read(ALONE)["samples_per_second"] == pytest.approx(2.0)


def test_answers_that_are_not_there_have_no_losses(clock: SimpleNamespace) -> None:
    meters = Meters()
    meters.begin()
    meters.note(Plan(0.5, 0.6), torch.zeros(0), torch.zeros(0), torch.ones(2, 3))
    clock.now += 1
    logs = meters.read(ALONE)
    assert logs["sft_loss"] == 0
    assert "kd_loss" not in logs


def test_nothing_is_read_from_the_device_before_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("waited for the device")

    for name in ("item", "tolist", "cpu", "__float__", "__bool__"):
        monkeypatch.setattr(Tensor, name, refuse)
    noted()
