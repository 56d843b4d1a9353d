"""Live progress bars: for the Trainer of transformers, and for several evaluations in a row."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["EvaluationBar", "TrainingBar"]

_QUIET = 30.0  # seconds between lines that are written to a file


class TrainingBar(TrainerCallback):
    """Shows steps, time left, loss and speed on stderr, in the first of several processes.

    On a terminal it is a live bar that clears itself at the end; elsewhere, such as in a cluster's log, a line every
    half minute.

    Args:
        label: text before the bar.
    """

    def __init__(self, label: str) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(min_width=7, no_wrap=True)),
            TextColumn("{task.fields[note]}"),
        )
        self._console = Console(stderr=True)
        self._live = self._console.is_terminal
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._live)
        self._task = self._bar.add_task(label, total=None, note="")
        self._said = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the bar."""
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step)
        if state.is_world_process_zero:
            self._bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move it on."""
        self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the newest loss and speed."""
        if not logs or "loss" not in logs:
            return
        note = _note(logs)
        self._bar.update(self._task, note=note)
        now = time.monotonic()
        if state.is_world_process_zero and not self._live and now - self._said >= _QUIET:
            self._said = now
            self._console.print(
                f"step {state.global_step} of {state.max_steps}: {note}", highlight=False, soft_wrap=True
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clear it."""
        self.stop()

    def stop(self) -> None:
        """Clear it; also where training breaks off."""
        self._bar.stop()


def _note(logs: dict[str, float]) -> str:
    parts = [f"loss {logs['loss']:.3f}"]
    if "student_keep" in logs:
        parts.append(f"{100 * logs['student_keep']:.0f} % of tokens")
    if "samples_per_second" in logs:
        parts.append(f"{logs['samples_per_second']:.3g} samples/s")
    if "tokens_per_second" in logs:
        parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    return ", ".join(parts)


class EvaluationBar:
    """One bar over several runs on the same questions, with the time left for all of them.

    Args:
        runs: how many.
        questions: how many each.
        shown: whether it is drawn on stderr, if that is a terminal.
    """

    def __init__(self, runs: int, questions: int, *, shown: bool) -> None:
        columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        console = Console(stderr=True)
        hidden = not shown or not console.is_terminal
        # Some methods are faster than others: the time left follows from the last five minutes.
        self._bar = Progress(
            *columns, console=console, transient=True, disable=hidden, speed_estimate_period=300
        )
        self._runs, self._questions, self._begun, self._done = runs, questions, 0, 0
        self._task = self._bar.add_task("", total=runs * questions)

    def __enter__(self) -> EvaluationBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def left(self) -> int:
        """Questions that are still to be asked, in all runs."""
        task = self._bar.tasks[0]
        return int((task.total or 0) - task.completed)

    def begin(self, label: str) -> None:
        """Name the next run."""
        self._begun, self._done = self._begun + 1, 0
        self._bar.update(self._task, description=f"{label} ({self._begun} of {self._runs})")

    def advance(self, count: int) -> None:
        """Move on by so many questions."""
        self._done += count
        self._bar.advance(self._task, count)

    def give_up(self) -> None:
        """The run that was begun asks no more questions."""
        total = self._bar.tasks[0].total or 0
        self._bar.update(self._task, total=total - self._questions + self._done)
