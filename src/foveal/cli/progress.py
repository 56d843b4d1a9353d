"""A live progress bar for the Trainer of transformers."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["TrainingBar"]


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
