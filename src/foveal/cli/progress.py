"""Live progress bars: for the Trainer of transformers, and for several evaluations in a row."""

from __future__ import annotations

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
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["EvaluationBar", "TrainingBar"]


class TrainingBar(TrainerCallback):
    """Shows the step, the loss and the time left on stderr, and clears itself at the end.

    Args:
        label: text before the bar.
    """

    def __init__(self, label: str) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        console = Console(stderr=True)
        hidden = not console.is_terminal
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden)
        self._task = self._bar.add_task(label, total=None, note="")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the bar."""
        self._bar.update(self._task, total=state.max_steps)
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
        """Show the newest loss, and the fraction of visual tokens kept in that step."""
        if logs and "loss" in logs:
            keep = f", {100 * logs['student_keep']:.0f} % of tokens" if "student_keep" in logs else ""
            self._bar.update(self._task, note=f"loss {logs['loss']:.3f}{keep}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clear it."""
        self._bar.stop()


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
