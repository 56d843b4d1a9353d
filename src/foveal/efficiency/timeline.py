"""Whose time it is: splits a call among the model's parts, each moment counting for the innermost that runs.

On a GPU the moments are events in its stream, so that nothing waits for it while it works; what lies between two of
them includes the time in which the GPU waits for the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers.generation.streamers import BaseStreamer

from foveal.compression import Run, attach
from foveal.compressors import Compressor
from foveal.engine.attributes import replaced
from foveal.engine.families import Parts, find_parts

__all__ = [
    "HEAD",
    "PARTS",
    "PROJECTOR",
    "REST",
    "SELECTION",
    "TEXT_TOWER",
    "TOWER",
    "Clock",
    "Stamps",
    "Timeline",
    "layer_part",
    "watched",
]

TOWER, TEXT_TOWER, PROJECTOR = "tower", "text tower", "projector"
SELECTION, HEAD, REST = "selection", "head", "rest"
PARTS = (TOWER, TEXT_TOWER, PROJECTOR, SELECTION, HEAD, REST)  # and the decoder's layers


def layer_part(index: int) -> str:
    """The name of a decoder layer among the parts."""
    return f"layer {index}"


class Clock:
    """Tells the time on a device.

    Args:
        device: where the model is.
        read: seconds on the host; the wall's by default.
    """

    def __init__(self, device: torch.device, read: Callable[[], float] = time.perf_counter) -> None:
        self._on_gpu = device.type == "cuda"
        self._device = device
        self._read = read

    def now(self) -> float:
        """Seconds on the host; the device may still be at work."""
        return self._read()

    def settled(self) -> float:
        """Seconds on the host once the device has nothing left to do."""
        if self._on_gpu:
            torch.cuda.synchronize(self._device)
        return self._read()

    def mark(self) -> Any:
        """A moment in the device's own order of work."""
        if not self._on_gpu:
            return self._read()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, earlier: Any, later: Any) -> float:
        """Seconds between two moments; the device must have passed both."""
        if not self._on_gpu:
            return float(later - earlier)
        return float(earlier.elapsed_time(later)) / 1000


class Stamps(BaseStreamer):
    """Notes when each token of an answer is known to the host; the prompt, which comes first, is not one of them.

    Args:
        clock: that tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._put = -1
        self.seconds: list[float] = []

    def put(self, value: Any) -> None:
        """Note a token; it comes from the device, which has therefore finished it."""
        self._put += 1
        if self._put:
            self.seconds.append(self._clock.now())

    def end(self) -> None:
        """Nothing is left to say."""


class Timeline:
    """Collects the moments at which parts begin and end.

    Args:
        clock: that tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._running: list[tuple[str, bool]] = []
        self._marks: list[tuple[str, Any]] = []

    def split(self, call: Callable[[], Any]) -> dict[str, float]:
        """Seconds of a call by part; what is in none of them is the rest. They add up to the whole."""
        self._marks, self._running = [], [(REST, False)]
        self._clock.settled()
        self._note()
        call()
        end = self._clock.mark()
        self._clock.settled()
        seconds = dict.fromkeys(PARTS, 0.0)
        moments = [*self._marks, ("", end)]
        for (part, start), (_, stop) in pairwise(moments):
            seconds[part] = seconds.get(part, 0.0) + self._clock.between(start, stop)
        self._running = []
        return seconds

    def timed(self, function: Callable[..., Any], part: str, *, whole: bool = False) -> Callable[..., Any]:
        """The function, its time counted for `part`; where `whole`, also what other parts do inside."""

        @wraps(function)
        def timing(*args: Any, **kwargs: Any) -> Any:
            if not self._running or self._running[-1][1]:
                return function(*args, **kwargs)
            self._running.append((part, whole))
            self._note()
            try:
                return function(*args, **kwargs)
            finally:
                self._running.pop()
                self._note()

        return timing

    def _note(self) -> None:
        self._marks.append((self._running[-1][0], self._clock.mark()))


@contextmanager
def watched(
    model: nn.Module, timeline: Timeline, method: Compressor | None, text_tower: Any = None
) -> Iterator[Run | None]:
    """Let `timeline` see the parts of a model, under a method or plain; everything is put back on exit.

    Args:
        model: an uncompressed model.
        timeline: that is told when parts begin and end.
        method: to put on the model.
        text_tower: see `foveal.compress`.
    """
    parts = find_parts(model)
    with ExitStack() as undo:
        for module, part in _modules(parts):
            _watch(undo, timeline, module, "forward", part)
        if method is None:
            yield None
            return
        if text_tower is not None:
            for name in ("embed", "project"):
                _watch(undo, timeline, text_tower, name, TEXT_TOWER)
        before = {key for table in _hook_tables(model) for key in table}
        run = attach(model, method, text_tower=text_tower)
        undo.callback(run.detach)
        # What the engine put in place counts as selection, but for the parts that it calls.
        for table in _hook_tables(model):
            for key in set(table) - before:
                table[key] = timeline.timed(table[key], SELECTION, whole=True)
        for module in model.modules():
            config: Any = vars(module).get("config")
            if hasattr(config, "foveal_observer"):
                observer = timeline.timed(config.foveal_observer, SELECTION, whole=True)
                undo.enter_context(replaced(config, "foveal_observer", observer))
        if parts.placeholders:
            _watch(undo, timeline, parts.projector, "forward", SELECTION)
        yield run


def _modules(parts: Parts) -> Iterator[tuple[nn.Module, str]]:
    top: Any = parts.top
    if parts.placeholders:
        yield parts.tower, TOWER
        for projector in parts.projectors:
            yield projector, PROJECTOR
    for index, layer in enumerate(parts.layers):
        yield layer, layer_part(index)
    yield top.get_output_embeddings(), HEAD


def _watch(undo: ExitStack, timeline: Timeline, owner: Any, name: str, part: str) -> None:
    undo.enter_context(replaced(owner, name, timeline.timed(getattr(owner, name), part)))


def _hook_tables(model: nn.Module) -> Iterator[dict[int, Any]]:
    for module in model.modules():
        yield module._forward_pre_hooks
        yield module._forward_hooks
