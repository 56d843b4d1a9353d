"""transformers' Trainer, so that a killed run goes on as if nothing had happened."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.constants import FSDP_MODEL_NAME
from torch import nn
from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict
from transformers import PreTrainedModel, Trainer
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME

from foveal.distillation.checkpoints import is_whole, last_checkpoint, remove_cut_short, writing
from foveal.errors import FovealError

__all__ = ["ResumableTrainer"]


class ResumableTrainer(Trainer):
    """Trainer whose checkpoints are whole or not there, and load whatever the model's tensors are called.

    A checkpoint of FSDP with FULL_STATE_DICT also goes on without FSDP, in any number of processes.
    """

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train from the start, from a checkpoint, or (True) from the last one in output_dir.

        Raises:
            FovealError: the checkpoint does not exist, or was cut short.
        """
        checkpoint = self._whole(resume_from_checkpoint)
        if self.args.should_save:
            remove_cut_short(str(self.args.output_dir))
        return super().train(checkpoint, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Trainer asks whether it is done behind each step only: a finished run would take one more when resumed.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save an ordinary checkpoint, also where the run's own are sharded. All processes must call it."""
        if self.is_fsdp_enabled and not _internal_call:
            self._save(output_dir, state_dict=self.accelerator.get_state_dict(self.model))
        else:
            super().save_model(output_dir, _internal_call)

    def _whole(self, checkpoint: str | bool | None) -> str | None:
        """The checkpoint to go on from."""
        if not checkpoint:
            return None
        folder = str(self.args.output_dir)
        found = last_checkpoint(folder) if checkpoint is True else Path(checkpoint)
        if found is None or not is_whole(found):
            raise FovealError(
                f"{folder if checkpoint is True else checkpoint} holds no whole checkpoint: pass another one as "
                "resume_from_checkpoint, or none to train from the start"
            )
        if missing := self._missing(found):
            raise FovealError(
                f"{found} has no {missing} (was it saved with save_only_model?): training cannot go on from it; load "
                "its weights and start anew"
            )
        return str(found)

    def _missing(self, checkpoint: Path) -> str | None:
        """What Trainer would silently go on without; sharded checkpoints are looked at by those who load them."""
        if self._sharded:
            return None
        wanted: tuple[tuple[str, ...], ...] = ((OPTIMIZER_NAME, OPTIMIZER_NAME_BIN), (SCHEDULER_NAME,))
        if isinstance(self.model, PreTrainedModel):
            wanted += ((CONFIG_NAME,),)
        lacking = (names for names in wanted if not any((checkpoint / name).is_file() for name in names))
        return next((names[0] for names in lacking), None)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if not self.args.should_save:
            super()._save_checkpoint(model, trial)
            return
        with writing(Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # Trainer's state comes next and says that the checkpoint is whole: not before every process has written.
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled and not any(Path(resume_from_checkpoint).glob(f"{FSDP_MODEL_NAME}*")):
            raise FovealError(
                f"{resume_from_checkpoint} was saved without FSDP: go on without it, or start from its weights"
            )
        if not self._load_ordinary(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is None or not self._load_ordinary(best):
            super()._load_best_model()

    def _load_ordinary(self, checkpoint: str) -> bool:
        """Load weights as from_pretrained does, unless the checkpoint is PEFT's or the model sharded.

        Trainer matches a checkpoint's tensor names with the module's. LLaVA's differ (files keep the names of
        earlier releases), so that Trainer would warn, load nothing, and go on from the weights it has.
        """
        ordinary = isinstance(self.model, PreTrainedModel) and (Path(checkpoint) / CONFIG_NAME).is_file()
        if self._sharded or not ordinary:
            return False
        model: Any = self.model
        # In the widest type of its parameters: `model.dtype` is the first one's, often a frozen tower's.
        widest = reduce(torch.promote_types, {parameter.dtype for parameter in model.parameters()})
        stored = type(model).from_pretrained(checkpoint, dtype=widest)
        model.load_state_dict(stored.state_dict())
        return True

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        gathered = Path(checkpoint or "") / OPTIMIZER_NAME_BIN
        if checkpoint is None or self._sharded or not gathered.is_file():
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        # FSDP's, by name where Trainer expects numbers.
        state = torch.load(gathered, map_location="cpu", weights_only=True)
        model, optimizer, scheduler = self.model, self.optimizer, self.lr_scheduler
        set_optimizer_state_dict(model, optimizer.optimizer, state)  # type: ignore[arg-type, union-attr]
        scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))  # type: ignore[union-attr]

    @property
    def _sharded(self) -> bool:
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)
