"""What happened since the last log, over all processes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor

from foveal.distillation.schedules import Plan

__all__ = ["Meters"]

_SUMS = ("samples", "tokens", "answers", "sft_loss", "taught", "kd_loss")


class Meters:
    """Sums of losses and tokens, and averages of plans; on the device until they are read.

    The clock runs while there is training, the waiting for data included; not while a checkpoint is saved or the model
    is evaluated.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._plans: list[Plan] = []
        self._sums: dict[str, Tensor | int] = defaultdict(int)
        self._since: float | None = None

    def begin(self) -> None:
        """Start the clock, unless it runs: before the data of a step are fetched."""
        if self._since is None:
            self._since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock inside the block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            if self._since is not None:
                self._since += time.perf_counter() - started

    def note(self, plan: Plan, supervised: Tensor, distilled: Tensor | None, attention_mask: Tensor) -> None:
        """Add a micro-batch: its plan, the losses of its answers, and its (batch, rows) mask."""
        self._plans.append(plan)
        self._sums["samples"] += len(attention_mask)
        self._sums["tokens"] += attention_mask.sum()
        self._sums["answers"] += len(supervised)
        self._sums["sft_loss"] += supervised.detach().sum()
        if distilled is not None:
            self._sums["taught"] += len(distilled)
            self._sums["kd_loss"] += distilled.detach().sum()

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """The averages, and begin anew. Waits for the device, and for the other processes."""
        if not self._plans or self._since is None:
            return {}
        sums = torch.tensor([float(self._sums[name]) for name in _SUMS], dtype=torch.float64)
        if accelerator.num_processes > 1:
            sums = accelerator.reduce(sums.to(accelerator.device), "sum")
        samples, tokens, answers, supervised, taught, distilled = sums.tolist()
        seconds = time.perf_counter() - self._since
        logs = _averages(self._plans)
        logs["sft_loss"] = supervised / max(1, answers)
        if taught:
            logs["kd_loss"] = distilled / taught
        logs["samples_per_second"], logs["tokens_per_second"] = samples / seconds, tokens / seconds
        self._clear()
        return logs


def _averages(plans: list[Plan]) -> dict[str, float]:
    """Means of what plans say; of the teacher and the layer where there is one."""
    found = {"student_keep": [plan.student for plan in plans], "gap": [plan.gap for plan in plans]}
    found["teacher_keep"] = [plan.teacher for plan in plans if plan.teacher is not None]
    found["layer"] = [plan.layer for plan in plans if plan.layer is not None]
    return {name: sum(values) / len(values) for name, values in found.items() if values}
