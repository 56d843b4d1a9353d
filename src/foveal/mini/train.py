"""Train the bundled model from nothing.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 -m foveal.mini.train --out runs/mini
    python -m foveal.mini.train --out runs/mini --stage mixture --max-minutes 30

Stages run in order, each from where the last one ended. Every sample is fixed by (seed, stage, number), there is no
dropout, and the optimiser is saved with the weights, so a killed run goes on along the same trajectory.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.progress import Progress

from foveal.efficiency.hardware import has_bfloat16
from foveal.mini.architecture import build_clip, build_llava
from foveal.mini.checkpoints import export, load_state, save_state
from foveal.mini.contrastive import Contrast, ContrastBatch, contrast_batch
from foveal.mini.learner import Batch, Learner, make_batch
from foveal.mini.packing import Codec
from foveal.mini.probe import probe
from foveal.mini.stages import STAGES, Stage, lesson
from foveal.mini.tokenizer import build_tokenizer

__all__ = ["Trainer", "main"]


class Trainer:
    """Runs stages and keeps `folder` up to date: ``state.pt``, ``log.jsonl`` and the exported ``model``.

    Args:
        folder: where to write; a state found there is gone on from.
        seed: of the initial weights and of every sample.
        max_minutes: save and stop after this long.
        save_every: steps between two savings.
        probed: validation scenes looked at each time.
    """

    def __init__(
        self,
        folder: Path,
        seed: int = 0,
        max_minutes: float | None = None,
        save_every: int = 100,
        probed: int = 96,
    ) -> None:
        self.folder, self.seed, self.save_every, self.probed = folder, seed, save_every, probed
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        precision = "bf16" if has_bfloat16() else "no"
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision)
        self.codec = Codec(build_tokenizer())
        self._texts = build_tokenizer(closing=True)
        torch.manual_seed(seed)
        self.learner = Learner(build_llava(build_tokenizer(), seed), self.codec).to(self.accelerator.device)
        self.contrast = Contrast(build_clip(self._texts, seed)).to(self.accelerator.device)
        self.done: list[str] = []
        self._resume = load_state(folder / "state.pt")
        if self._resume is not None:
            self.learner.load_state_dict(self._resume["learner"])
            self.contrast.load_state_dict(self._resume["contrast"])
            self.done = list(self._resume["done"])

    def run(self, stages: Sequence[Stage]) -> bool:
        """Train the stages that are not done yet; False if the time ran out first."""
        return all(self._stage(stage) for stage in stages if stage.name not in self.done)

    def _stage(self, stage: Stage) -> bool:
        pupil = self._pupil(stage)
        groups = pupil.select(stage)
        optimizer = torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98), weight_decay=0.01)
        start, seconds = 0, 0.0
        if self._resume is not None and self._resume["stage"] == stage.name:
            optimizer.load_state_dict(self._resume["optimizer"])
            start, seconds = int(self._resume["step"]), float(self._resume["seconds"])
        self._resume = None
        learner, optimizer = self.accelerator.prepare(pupil, optimizer)
        begun = time.monotonic() - seconds
        with Progress(disable=not self.accelerator.is_main_process) as bar:
            task = bar.add_task(stage.name, total=stage.steps, completed=start)
            for step in range(start, stage.steps):
                losses = self._step(learner, optimizer, stage, step)
                bar.update(task, advance=1)
                finished, late = step + 1 == stage.steps, self._late()
                if (step + 1) % self.save_every == 0 or finished or late:
                    self._save(stage, step + 1, optimizer, time.monotonic() - begun, losses)
                if late and not finished:
                    return False
        return True

    def _step(self, learner: torch.nn.Module, optimizer: Any, stage: Stage, step: int) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = stage.rate_at(step) * group["scale"]
        share = stage.batch // self.accelerator.num_processes
        first = step * stage.batch + self.accelerator.process_index * share
        batch = self._batch(stage, range(first, first + share)).to(self.accelerator.device)
        with self.accelerator.autocast():
            losses = learner(batch, stage.auxiliary, stage.guided * stage.rate_at(step, 0) / stage.rate)
        self.accelerator.backward(losses["loss"])
        self.accelerator.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return {name: value.item() for name, value in losses.items()}

    def _pupil(self, stage: Stage) -> Learner | Contrast:
        """What the stage trains; the contrastive one starts from the decoder's vision tower."""
        if stage.name != "clip":
            return self.learner
        if self._resume is None or self._resume["stage"] != "clip":
            tower = self.learner.model.model.vision_tower
            self.contrast.clip.vision_model.load_state_dict(tower.state_dict())
        return self.contrast

    def _batch(self, stage: Stage, indices: range) -> Batch | ContrastBatch:
        if stage.name == "clip":
            return contrast_batch(self._texts, stage, self.seed, indices)
        lessons = [lesson(stage, self.codec, self.seed, index) for index in indices]
        return make_batch(lessons, self.codec.prefix, stage.length)

    def _late(self) -> bool:
        """Whether the time is up, as the main process sees it, so that all stop at the same step."""
        if self._deadline is None:
            return False
        flag = torch.tensor([float(time.monotonic() > self._deadline)], device=self.accelerator.device)
        reached: torch.Tensor = self.accelerator.reduce(flag, "sum")
        return bool(reached.item() > 0)

    def _save(
        self, stage: Stage, step: int, optimizer: Any, seconds: float, losses: dict[str, float]
    ) -> None:
        if step == stage.steps:
            self.done.append(stage.name)
        if stage.name == "clip":
            tower = self.contrast.clip.vision_model
            self.learner.model.model.vision_tower.load_state_dict(tower.state_dict())
        if self.accelerator.is_main_process:
            state = {
                "learner": self.learner.state_dict(),
                "contrast": self.contrast.state_dict(),
                "optimizer": optimizer.state_dict(),
                "stage": stage.name,
                "step": step,
                "seconds": seconds,
                "done": self.done,
            }
            save_state(self.folder / "state.pt", state)
            export(self.learner.model, self.contrast.clip, self.folder / "model")
            self._log(stage, step, seconds, losses)
        self.accelerator.wait_for_everyone()

    def _log(self, stage: Stage, step: int, seconds: float, losses: dict[str, float]) -> None:
        with self.accelerator.autocast():
            rates = probe(self.learner, self.codec, self.probed) if stage.length else {}
        entry = {"stage": stage.name, "step": step, "seconds": seconds, **losses, **rates}
        line = json.dumps(
            {key: round(value, 4) if isinstance(value, float) else value for key, value in entry.items()}
        )
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")
        self.accelerator.print(line, flush=True)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m foveal.mini.train", description="Train the bundled model."
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the state, the log and the checkpoint"
    )
    parser.add_argument(
        "--stage", choices=list(STAGES), action="append", help="only this stage (may be repeated)"
    )
    parser.add_argument("--steps", type=int, help="steps of the stage instead of the recipe's")
    parser.add_argument("--max-minutes", type=float, help="save and stop after this long")
    parser.add_argument("--save-every", type=int, default=200, help="steps between two savings")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = _arguments(arguments)
    stages = [STAGES[name] for name in options.stage or STAGES]
    if options.steps:
        stages = [replace(stage, steps=options.steps) for stage in stages]
    trainer = Trainer(options.out, options.seed, options.max_minutes, options.save_every)
    finished = trainer.run(stages)
    trainer.accelerator.print("finished" if finished else "stopped: run again to go on")
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
