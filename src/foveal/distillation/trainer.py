"""EpicTrainer: transformers' Trainer with a student and a teacher in one forward."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME

from foveal.compressors import Compressor
from foveal.distillation.config import EpicConfig
from foveal.distillation.data import VisionCollator
from foveal.distillation.distil import distil
from foveal.distillation.meters import Meters
from foveal.distillation.schedules import Plan, progress
from foveal.distillation.trainable import freeze, parameter_groups
from foveal.engine.families import find_parts
from foveal.loading import load, record_compressor

__all__ = ["EpicTrainer", "last_checkpoint"]


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest whole checkpoint that a trainer left in `folder`, None if there is none.

    Trainer writes its state last, so a checkpoint without one was cut short and is passed over.
    """
    found = [path.parent for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


class EpicTrainer(Trainer):
    """Fine-tunes a vision-language model so that it stays accurate with few visual tokens.

    L = (1 - lambda) * cross-entropy(student) + lambda * KL(teacher || student) at the tokens that predict an answer
    (EPIC, arXiv 2510.00515, eq. 3); without a teacher, the cross-entropy alone. The same model is both: the teacher
    keeps more visual tokens and takes no gradient. Each step draws its plan from (seed, step), one for all its
    micro-batches and processes: a resumed run follows the same trajectory, and so does one with fewer processes and
    more accumulation.

    Takes the arguments of Trainer; `processing_class` is the processor, whose chat template the default collator
    uses. Logs, besides Trainer's: student_keep, teacher_keep, gap (fractions of visual tokens), layer, sft_loss,
    kd_loss, samples_per_second, tokens_per_second.
    Checkpoints are ordinary ones whose config names the compressor, see `foveal.load`.
    """

    args: EpicConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        processor = kwargs.get("processing_class")
        if kwargs.get("data_collator") is None and processor is not None:
            kwargs["data_collator"] = VisionCollator(processor)
        super().__init__(*args, **kwargs)
        assert self.model is not None
        # The loss below divides by num_items_in_batch itself, so Trainer must count answers and scale nothing.
        self.model_accepts_loss_kwargs = True
        self._schedule = self.args.make_schedule(len(find_parts(self.model).layers))
        self._objective = self.args.make_objective()
        self._teacher_model = self._load_teacher()
        self._meters = Meters()
        freeze(self.model, self.args)
        record_compressor(self.model, self.args.make_compressor())

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of one micro-batch; in evaluation, the cross-entropy at the fraction the model is meant for."""
        self._meters.begin()
        inputs = dict(inputs)
        labels: Tensor = inputs.pop("labels")
        t = progress(self.state.global_step, self.state.max_steps)
        plan, student, teacher = self._next(t) if model.training else self._last()
        supervised, distilled = distil(
            self.accelerator.unwrap_model(model),
            inputs,
            labels,
            student,
            teacher,
            teacher_model=self._teacher_model,
            objective=self._objective,
            call=model,
        )
        weight = 0.0 if distilled is None else self.args.weight(t)
        loss = (1 - weight) * supervised.sum()
        if distilled is not None:
            loss = loss + weight * distilled.sum()
        if model.training:
            self._meters.note(plan, supervised, distilled, inputs["attention_mask"])
        answers = max(1, len(supervised)) if num_items_in_batch is None else num_items_in_batch
        loss = loss / answers
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, {"losses": supervised}) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """An optimizer with one group of parameters for each learning rate."""
        learner: Any = self.model if model is None else model
        if self.optimizer is None:
            decayed = self.get_decay_parameter_names(learner)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, learner)
            self.optimizer = kind(parameter_groups(learner, self.args, decayed), **options)
        return self.optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages since the last log, over all processes, to a training log."""
        if "loss" in logs:
            logs = {**logs, **self._meters.read(self.accelerator)}
        super().log(logs, start_time)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load weights as from_pretrained does.

        Trainer matches a checkpoint's tensor names with the module's. LLaVA's differ (files keep the names of
        earlier releases), so that Trainer would warn, load nothing, and go on from the initial weights.
        """
        target = self.model if model is None else model
        ordinary = (Path(resume_from_checkpoint) / CONFIG_NAME).is_file() and not self.is_fsdp_enabled
        if not isinstance(target, PreTrainedModel) or not ordinary:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        stored = type(target).from_pretrained(resume_from_checkpoint, dtype=target.dtype)
        target.load_state_dict(stored.state_dict())

    def _next(self, t: float) -> tuple[Plan, Compressor, Compressor | None]:
        """Plan, student and teacher of this step: a function of seed and step, the same in all micro-batches."""
        draw = random.Random(f"{self.args.seed}/{self.state.global_step}")
        plan = self._schedule.plan(t, draw)
        return plan, *self.args.make_pair(plan, draw)

    def _last(self) -> tuple[Plan, Compressor, None]:
        """What the model is meant for."""
        return Plan(self.args.keep, None), self.args.make_compressor(), None

    def _load_teacher(self) -> nn.Module | None:
        if self.args.teacher_model is None:
            return None
        student: Any = self.model
        teacher, _ = load(self.args.teacher_model, compressed=False, dtype=student.dtype)
        frozen: nn.Module = teacher.requires_grad_(False).to(self.args.device)
        return frozen
