from __future__ import annotations

from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from foveal.cli import progress
from foveal.cli.progress import EvaluationBar, TrainingBar

LOGS = {"loss": 1.5, "student_keep": 0.25, "samples_per_second": 12.3456, "tokens_per_second": 4567.8}


def trained(folder: Path, *, first: bool = True, steps: int = 3) -> None:
    """What Trainer tells its callbacks."""
    bar, arguments = TrainingBar("tcd"), TrainingArguments(str(folder), use_cpu=True)
    state = TrainerState(max_steps=steps, is_world_process_zero=first)
    bar.on_train_begin(arguments, state, TrainerControl())
    for step in range(1, steps + 1):
        state.global_step = step
        bar.on_step_end(arguments, state, TrainerControl())
        bar.on_log(arguments, state, TrainerControl(), logs=LOGS)
    bar.on_log(arguments, state, TrainerControl(), logs={"train_runtime": 1.0})
    bar.on_train_end(arguments, state, TrainerControl())


def test_a_log_file_gets_a_line_now_and_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_QUIET", 0.0)
    trained(tmp_path, steps=2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "step 2 of 2: loss 1.500, 25 % of tokens, 12.3 samples/s, 4,568 tokens/s"
    assert len(lines) == 2


def test_a_terminal_gets_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # Rich takes it for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    trained(tmp_path)
    drawn = capsys.readouterr().err
    assert "3/3" in drawn
    assert "loss 1.500, 25 % of tokens, 12.3 samples/s, 4,568 tokens/s" in drawn


@pytest.mark.parametrize("terminal", [False, True])
def test_other_processes_are_silent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(progress, "_QUIET", 0.0)
    trained(tmp_path, first=False)
    assert capsys.readouterr().err == ""


def test_one_bar_counts_all_runs() -> None:
    with EvaluationBar(3, 10, shown=False) as bar:
        bar.begin("first")
        bar.advance(4)
        bar.advance(6)
        assert bar.left == 20
        bar.begin("second")
        bar.advance(4)
        bar.give_up()
        assert bar.left == 10
        bar.begin("third")
        bar.advance(10)
        assert bar.left == 0


def test_a_run_that_never_began_to_ask_is_left_out() -> None:
    with EvaluationBar(2, 10, shown=False) as bar:
        bar.begin("first")
        bar.give_up()
        assert bar.left == 10
