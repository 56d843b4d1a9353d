"""A run that is killed and started again ends with the weights of a run that was not."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

import foveal
from foveal.distillation import last_checkpoint
from foveal.distillation.checkpoints import writing
from support.training import conversations, difference, make_trainer, model, weights

STEPS = 16


def run(folder: Path, die_at: int | None = None) -> None:
    """Train from the last checkpoint on, and leave the final weights; or die while a checkpoint is being saved."""
    torch.set_num_threads(1)
    learner = model(torch.float32)
    learner.config.text_config.attention_dropout = 0.1  # random numbers beside those of `random`
    for layer in learner.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.1
    trainer = make_trainer(
        folder,
        conversations(10),
        learner,
        method="random",
        schedule="lcd",
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        bf16=True,
        activation_checkpointing=True,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
    )
    if die_at is not None:
        _die_while_saving(trainer, die_at)
    checkpoint = last_checkpoint(folder)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    torch.save(weights(trainer), folder / "final.pt")


def _die_while_saving(trainer: Any, step: int) -> None:
    """In place of half of the files of a checkpoint."""
    save = trainer._save_optimizer_and_scheduler

    def die(folder: str) -> None:
        if trainer.state.global_step == step:
            (Path(folder) / "optimizer.pt").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        save(folder)

    trainer._save_optimizer_and_scheduler = die


def test_killed_three_times_it_ends_as_an_unbroken_run(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["support.training", "foveal.distillation"])
    draw = random.Random()
    folder = tmp_path / "killed"
    seen = []
    for last in (draw.uniform(0, 6), draw.uniform(7, 12), None):
        process = processes.Process(target=run, args=(folder, STEPS - 1))
        process.start()
        if last is not None:
            while process.is_alive() and _step(folder) < last:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.1))
            process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        seen.append(_step(folder))
    cut_short = folder / f"checkpoint-{STEPS - 1}"
    assert (cut_short / "optimizer.pt").read_bytes() == b"half"
    assert _step(folder) == STEPS - 2, "the last whole checkpoint is gone"
    for unbroken in (tmp_path / "unbroken", folder):
        process = processes.Process(target=run, args=(unbroken,))
        process.start()
        process.join()
        assert process.exitcode == 0
    final = [torch.load(tmp_path / name / "final.pt") for name in ("killed", "unbroken")]
    assert difference(*final) == 0, f"killed after steps {seen}"
    assert difference(final[0], model(torch.float32).state_dict()) > 1e-3
    assert [path.name for path in folder.glob("checkpoint-*")] == [f"checkpoint-{STEPS}"]


def _step(folder: Path) -> int:
    found = last_checkpoint(folder)
    return 0 if found is None else int(found.name.rpartition("-")[2])


def test_a_checkpoint_cut_short_does_not_count_for_the_limit(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "max_steps": 4}
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "checkpoint-99"):
        raise KeyboardInterrupt
    make_trainer(tmp_path, conversations(8), **options).train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


@pytest.mark.parametrize("which", [True, "checkpoint-7"])
def test_what_is_not_whole_is_not_resumed_from(tmp_path: Path, which: bool | str) -> None:
    (tmp_path / "checkpoint-7").mkdir()
    trainer = make_trainer(tmp_path)
    with pytest.raises(foveal.FovealError, match="holds no whole checkpoint"):
        trainer.train(resume_from_checkpoint=which if which is True else str(tmp_path / which))


def test_true_resumes_from_the_last_whole_checkpoint(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 3}
    unbroken = make_trainer(tmp_path, **options)
    unbroken.train()
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text("{")
    again = make_trainer(tmp_path, **options)
    begun = []
    again._inner_training_loop = _noting(again._inner_training_loop, begun)
    again.train(resume_from_checkpoint=True)
    assert begun == [str(tmp_path / "checkpoint-3")]
    assert difference(weights(unbroken), weights(again)) == 0


def _noting(loop: Any, begun: list[str]) -> Any:
    def noting(*args: Any, **kwargs: Any) -> Any:
        begun.append(kwargs["resume_from_checkpoint"])
        return loop(*args, **kwargs)

    return noting


def test_transformers_writes_the_trainers_state_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    for name in ("save_model", "_save_optimizer_and_scheduler", "_save_scaler", "_save_rng_state"):
        method = getattr(Trainer, name)
        monkeypatch.setattr(
            Trainer, name, lambda self, *a, _m=method, _n=name, **k: (order.append(_n), _m(self, *a, **k))[1]
        )
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=1, max_steps=1)
    dump = trainer.state.__class__.save_to_json
    monkeypatch.setattr(
        trainer.state.__class__,
        "save_to_json",
        lambda self, path: (order.append("state"), dump(self, path))[1],
    )
    trainer.train()
    assert order == [
        "save_model",
        "_save_optimizer_and_scheduler",
        "_save_scaler",
        "_save_rng_state",
        "state",
    ]


@pytest.mark.parametrize("lost", ["optimizer.pt", "scheduler.pt", "config.json"])
def test_a_checkpoint_that_lacks_a_part_is_not_resumed_from(tmp_path: Path, lost: str) -> None:
    make_trainer(tmp_path, save_strategy="steps", save_steps=3).train()
    (tmp_path / "checkpoint-3" / lost).unlink()
    with pytest.raises(foveal.FovealError, match=f"checkpoint-3 has no {lost}"):
        make_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_tower_in_half_precision_does_not_round_what_learns(tmp_path: Path) -> None:
    def mixed() -> Any:
        learner = model(torch.float32)
        learner.model.vision_tower.to(torch.bfloat16)
        return learner

    options = {"bf16": True, "learner": mixed()}
    unbroken = make_trainer(tmp_path, save_strategy="steps", save_steps=3, **options)
    unbroken.train()
    resumed = make_trainer(tmp_path, **{**options, "learner": mixed()})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert difference(weights(unbroken), weights(resumed)) == 0


def test_a_finished_run_takes_no_more_steps(tmp_path: Path) -> None:
    options = {"max_steps": 4, "lr_scheduler_type": "constant"}
    done = make_trainer(tmp_path, save_strategy="steps", save_steps=2, **options)
    done.train()
    again = make_trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.state.global_step == 4
    assert difference(weights(done), weights(again)) == 0
