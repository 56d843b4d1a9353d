"""One training run from a recipe to a finished folder: data, model, training, weights, card."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from transformers import PrinterCallback, TrainerState
from transformers.utils import logging

from foveal.cli.common import screen
from foveal.cli.progress import TrainingBar
from foveal.data import load_conversations
from foveal.data.bad_samples import skipped
from foveal.distillation import EpicConfig, EpicTrainer, last_checkpoint
from foveal.distillation.adapters import merge_adapters
from foveal.distillation.card import TrainingFacts, model_card
from foveal.distillation.recipe import Recipe, RunOptions, parse_recipe
from foveal.engine.families import find_parts
from foveal.errors import FovealError
from foveal.evaluation import provenance
from foveal.loading import load, record_compressor

__all__ = ["TrainingRun", "fit"]

_RECIPE, _RECORD, _CARD, _ADAPTER = "recipe.yaml", "training.json", "README.md", "adapter"
# A run that goes on with others of these would not be the one that was begun.
_FIXED = {
    *EpicConfig.__annotations__,
    *("global_batch", "max_steps", "optim", "seed", "weight_decay"),
    *("data", "dtype", "model"),
}


def fit(
    model: Any,
    processor: Any,
    samples: Any,
    config: EpicConfig,
    label: str,
    eval_samples: Any = None,
) -> EpicTrainer:
    """Train `model` in place under a live progress bar, from the last checkpoint in the output folder on.

    Args:
        model: the model to train.
        processor: its processor.
        samples: see `VisionCollator`.
        config: all options.
        label: the progress bar's text.
        eval_samples: to evaluate on.

    Raises:
        FovealError: something that the options ask for is not installed, or the memory is too small.
    """
    bar = TrainingBar(label)
    try:
        trainer = EpicTrainer(
            model=model,
            args=config,
            train_dataset=samples,
            eval_dataset=eval_samples,
            processing_class=processor,
            callbacks=[bar],
        )
    except (ImportError, RuntimeError) as error:  # an integration such as TensorBoard, or an optimizer
        raise FovealError(f"the options ask for what is not there: {error}") from error
    trainer.remove_callback(PrinterCallback)
    checkpoint = last_checkpoint(str(config.output_dir))
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except ImportError as error:
        raise FovealError(f"the options ask for what is not there: {error}") from error
    except torch.OutOfMemoryError as error:
        raise FovealError(
            "out of memory: pass a smaller --batch-size (and --gradient_accumulation_steps), "
            "--activation_checkpointing, or --lora_rank 64; --dry-run says what fits"
        ) from error
    finally:
        bar.stop()
    return trainer


class TrainingRun:
    """A recipe's run in its output folder.

    The folder holds, besides checkpoints, `recipe.yaml` from the start on; at the end the weights, the processor,
    README.md (the model card) and training.json, whose presence means that the run is finished.

    Args:
        recipe: what to do.

    Raises:
        FovealError: no folder is named, or it holds another run, or the model itself.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.config, self.options = recipe, recipe.config, recipe.run
        if "output_dir" not in recipe.given:
            raise FovealError("--out: name the folder for the trained checkpoint")
        self.folder = Path(str(self.config.output_dir))
        if self.options.model is not None and Path(self.options.model).resolve() == self.folder.resolve():
            raise FovealError(f"--out {self.folder} is the model itself: name another folder")
        if self._first:
            self._check_same_run()

    @property
    def _first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return bool(self.config.process_index == 0)

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line, once for all processes."""
        if self._first:
            screen().print(text, style=style, markup=False, soft_wrap=True)

    def say_next(self) -> None:
        """Print what can be done with the checkpoint."""
        self.say(f'next: foveal ask photo.jpg "what is in the image?" --model {self.folder}', style="dim")

    def finished(self) -> bool:
        """Whether the folder holds the result already."""
        return (self.folder / _RECORD).is_file()

    def train(self) -> None:
        """Train from the last checkpoint on, and write the result."""
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        samples, held_out = self._samples(), self._held_out()
        model, processor = self._load()
        if self._first:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / _RECIPE).write_text(self._own_recipe(), encoding="utf-8")
        checkpoint = last_checkpoint(self.folder)
        self._announce(model, samples, checkpoint)
        trainer = fit(
            model,
            processor,
            samples,
            self.config,
            self.config.schedule,
            eval_samples=held_out,
        )
        self._save(trainer, processor)
        if self._first:
            self._finish(trainer, len(samples), checkpoint)

    def _load(self) -> tuple[Any, Any]:
        """Model and processor; the trainer moves the model to its device, or its shards to theirs."""
        return load(self.options.model, compressed=False, dtype=getattr(torch, self.options.dtype))

    def _samples(self) -> Any:
        if self.options.data != "scenes":
            return load_conversations(self.options.data, self.options.images)
        if self.config.max_steps < 1:
            raise FovealError("--data scenes has no end: pass --steps, or name your own file with --data")
        from foveal.mini import SceneConversations

        return SceneConversations("train", self.config.max_steps * self._per_step, seed=self.config.seed)

    def _held_out(self) -> Any:
        wanted = self.config.eval_strategy != "no"
        if self.options.eval_data is None:
            if wanted:
                raise FovealError("--eval_strategy: name the --eval_data, too")
            return None
        if not wanted:
            raise FovealError(
                f"--eval_data {self.options.eval_data}: say when, --eval_strategy steps or epoch"
            )
        return load_conversations(self.options.eval_data, self.options.images)

    @property
    def _per_step(self) -> int:
        """Conversations per optimizer step, over all processes."""
        config = self.config
        return int(
            config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size
        )

    def _step_size(self) -> str:
        """How much an optimizer step sees."""
        tokens = self.config.tokens_per_batch
        if tokens is None:
            return f"{self._per_step} conversations"
        return f"{tokens * self._per_step // self.config.per_device_train_batch_size:,} tokens"

    def _announce(self, model: Any, samples: Any, checkpoint: Path | None) -> None:
        total = sum(parameter.numel() for parameter in model.parameters())
        told = f"{total / 1e6:,.1f} million parameters, {len(samples):,} conversations, {self._step_size()} a step"
        if checkpoint is not None:
            told += f"; going on from {checkpoint.name}"
        self.say(told, style="dim")

    def _save(self, trainer: EpicTrainer, processor: Any) -> None:
        """The weights as a plain checkpoint; adapters beside it, and merged into the weights they were made for."""
        if self.config.lora_rank is None:
            trainer.save_model(str(self.folder))
            return
        adapter = self.folder / _ADAPTER
        trainer.save_model(str(adapter))
        if self._first:
            (adapter / _CARD).unlink(missing_ok=True)  # PEFT's, without content: ours is one folder up
            merged: Any = merge_adapters(self._load()[0], adapter)
            record_compressor(merged, self.config.make_compressor())
            merged.save_pretrained(self.folder)
            processor.save_pretrained(self.folder)

    def _finish(self, trainer: EpicTrainer, conversations: int, checkpoint: Path | None) -> None:
        state = trainer.state
        seconds = next(log["train_runtime"] for log in reversed(state.log_history) if "train_runtime" in log)
        facts = TrainingFacts(
            conversations=conversations,
            skipped=sum(  # those of eval_data apart
                name.startswith(f"{self.options.data}, ") for name in skipped(self.folder / "skipped.jsonl")
            ),
            steps=state.global_step,
            per_step=self._step_size(),
            seconds=seconds,
            losses=_last_losses(state.log_history, _kept_step(self.config, state)),
            depth=len(find_parts(trainer.model).layers),  # type: ignore[arg-type]
            provenance=provenance(self.config.seed),
        )
        (self.folder / _CARD).write_text(
            model_card(self.folder.resolve().name, self.recipe, facts), encoding="utf-8"
        )
        record = {"recipe": self.recipe.given, **asdict(facts)}
        unfinished = self.folder / f"{_RECORD}.part"
        unfinished.write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")
        os.replace(unfinished, self.folder / _RECORD)
        for left in self.folder.glob("checkpoint-*"):
            rmtree(left)
        done = state.global_step - (int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0)
        self.say(f"{done} steps of {self._step_size()} in {seconds:.0f} s")
        self.say(f"checkpoint and model card: {self.folder}")
        self.say_next()

    def _own_recipe(self) -> str:
        """What makes this run again, in whatever folder."""
        given = {name: value for name, value in self.recipe.given.items() if name != "output_dir"}
        return Recipe(self.options, self.config, given).text()

    def _check_same_run(self) -> None:
        """Refuse a folder that another run has begun or finished."""
        begun = self.folder / _RECIPE
        if not begun.is_file() or not (self.finished() or last_checkpoint(self.folder)):
            return
        there = parse_recipe([str(begun)], {"use_cpu": True})
        for name in sorted(_FIXED):
            before, now = (_value(recipe, name) for recipe in (there, self.recipe))
            if before != now:
                raise FovealError(
                    f"{self.folder} holds a run with {name}={before}, not {now}: choose another --out, or give "
                    f"{begun} as the recipe"
                )


def _value(recipe: Recipe, name: str) -> Any:
    own = name in RunOptions.__annotations__
    return getattr(recipe.run if own else recipe.config, name)


def _kept_step(config: EpicConfig, state: TrainerState) -> int:
    """The step whose weights are the result."""
    best = state.best_model_checkpoint if config.load_best_model_at_end else None
    return state.global_step if best is None else int(best.rpartition("-")[2])


def _last_losses(logs: list[dict[str, float]], kept: int) -> dict[str, float]:
    """Means over the last tenth of the training logs, and the loss of the weights that are kept, where evaluated."""
    trained = [log for log in logs if "loss" in log]
    late = trained[-max(1, len(trained) // 10) :]
    found = {}
    for name in ("sft_loss", "kd_loss"):
        values = [log[name] for log in late if name in log]
        if values:
            found[name] = sum(values) / len(values)
    evaluated = [log["eval_loss"] for log in logs if log.get("step", kept) == kept and "eval_loss" in log]
    return {**found, "eval_loss": evaluated[-1]} if evaluated else found
