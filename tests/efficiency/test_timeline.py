from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

import foveal
from foveal.efficiency.timeline import (
    HEAD,
    PROJECTOR,
    REST,
    SELECTION,
    TEXT_TOWER,
    TOWER,
    Clock,
    Stamps,
    Timeline,
    layer_part,
    watched,
)
from support import tiny
from support.clip import text_tower

CPU = torch.device("cpu")


class Watch:
    """A clock that moves when told, or at each look."""

    def __init__(self, step: float = 0.0) -> None:
        self.time, self.step = 0.0, step

    def __call__(self) -> float:
        self.time += self.step
        return self.time

    def work(self, seconds: float) -> None:
        self.time += seconds


def test_each_moment_counts_for_the_innermost_part() -> None:
    watch = Watch()
    timeline = Timeline(Clock(CPU, watch))
    inner = timeline.timed(lambda: watch.work(5), TOWER)

    def outside() -> None:
        watch.work(1)
        inner()
        watch.work(2)

    outer = timeline.timed(outside, PROJECTOR)

    def call() -> None:
        watch.work(10)
        outer()
        outer()

    seconds = timeline.split(call)
    assert (seconds[TOWER], seconds[PROJECTOR], seconds[REST]) == (10, 6, 10)
    assert sum(seconds.values()) == 26


def test_a_part_can_claim_what_is_inside() -> None:
    watch = Watch()
    timeline = Timeline(Clock(CPU, watch))
    inner = timeline.timed(lambda: watch.work(5), HEAD)
    seconds = timeline.split(timeline.timed(inner, SELECTION, whole=True))
    assert (seconds[SELECTION], seconds[HEAD]) == (5, 0)


def test_a_part_that_fails_has_ended() -> None:
    watch = Watch()
    timeline = Timeline(Clock(CPU, watch))

    def fail() -> None:
        watch.work(3)
        raise KeyError

    failing = timeline.timed(fail, TOWER)

    def call() -> None:
        with pytest.raises(KeyError):
            failing()
        watch.work(4)

    seconds = timeline.split(call)
    assert (seconds[TOWER], seconds[REST]) == (3, 4)


def test_nothing_is_noted_outside_of_a_split() -> None:
    watch = Watch(step=1)
    timed = Timeline(Clock(CPU, watch)).timed(lambda: None, TOWER)
    timed()
    assert watch.time == 0


def test_stamps_leave_out_the_prompt() -> None:
    stamps = Stamps(Clock(CPU, Watch(step=1)))
    for _ in range(4):
        stamps.put(None)
    assert stamps.seconds == [1, 2, 3]


def state(model: Any) -> list[Any]:
    """What watching could leave behind."""
    tables = [(dict(m._forward_pre_hooks), dict(m._forward_hooks)) for m in model.modules()]
    return [
        *tables,
        *(set(vars(m)) for m in model.modules()),
        *(vars(m).get("config") for m in model.modules()),
    ]


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        (None, {TOWER, PROJECTOR, HEAD, REST}),
        (foveal.FastV(keep=9), {TOWER, PROJECTOR, SELECTION, HEAD, REST}),
        (foveal.VisionZip(keep=9), {TOWER, PROJECTOR, SELECTION, HEAD, REST}),
        (foveal.TRIM(keep=9), {TOWER, TEXT_TOWER, PROJECTOR, SELECTION, HEAD, REST}),
    ],
)
def test_a_prefill_by_part(method: foveal.Compressor | None, parts: set[str]) -> None:
    model, inputs = tiny.llava(), tiny.batch([1], [8])
    model.generate(**inputs, max_new_tokens=1)  # the library hooks its own models once
    before, clip = state(model), text_tower(model) if isinstance(method, foveal.TRIM) else None
    watch = Watch(step=1)
    timeline = Timeline(Clock(CPU, watch))
    with watched(model, timeline, method, clip) as run:
        seconds = timeline.split(lambda: model.generate(**inputs, max_new_tokens=1))
        assert sum(seconds.values()) == watch.time - 3  # what settles the device, and the first mark
        layers = {layer_part(index) for index in range(len(model.model.language_model.layers))}
        assert {part for part, spent in seconds.items() if spent} == parts | layers
        if run is not None:
            assert len(run.kept[0]) == 9
    assert state(model) == before


@pytest.mark.parametrize("method", [foveal.DART(keep=9), foveal.VisionZip(keep=9)])
def test_watching_changes_no_answer(method: foveal.Compressor) -> None:
    inputs = tiny.batch([1], [8])
    answers = []
    for watch in (False, True):
        model = tiny.llava()
        around = watched(model, Timeline(Clock(CPU)), method) if watch else foveal.compress(model, method)
        with around or nullcontext():
            answers.append(model.generate(**inputs, max_new_tokens=4).tolist())
    assert answers[0] == answers[1]
