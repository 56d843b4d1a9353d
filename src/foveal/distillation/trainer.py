"""EpicTrainer: transformers' Trainer with a student and a teacher in one forward."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME

from foveal.distillation.config import EpicConfig
from foveal.distillation.data import VisionCollator
from foveal.distillation.lockstep import lockstep
from foveal.distillation.losses import cross_entropy, forward_kl
from foveal.distillation.schedules import Plan, progress
from foveal.loading import record_compressor

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
    keeps more visual tokens and takes no gradient. Each micro-batch draws its plan from (seed, step, micro-batch), so
    that a resumed run follows the same trajectory.

    Takes the arguments of Trainer; `processing_class` is the processor, whose chat template the default collator
    uses. Logs, besides Trainer's: student_keep, teacher_keep, gap (fractions of visual tokens), sft_loss, kd_loss.
    Checkpoints are ordinary ones whose config names the compressor, see `foveal.load`.
    """

    args: EpicConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        processor = kwargs.get("processing_class")
        if kwargs.get("data_collator") is None and processor is not None:
            kwargs["data_collator"] = VisionCollator(processor)
        super().__init__(*args, **kwargs)
        # The loss below divides by num_items_in_batch itself, so Trainer must count answers and scale nothing.
        self.model_accepts_loss_kwargs = True
        self._schedule = self.args.make_schedule()
        self._sums: dict[str, list[Tensor]] = defaultdict(list)
        self._micro_step = (-1, 0)
        assert self.model is not None
        record_compressor(self.model, self.args.make_compressor(self.args.keep))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of one micro-batch; in evaluation, the cross-entropy at the fraction the model is meant for."""
        labels: Tensor = inputs["labels"]
        plan, seed = self._next_plan() if model.training else (Plan(self.args.keep, None), self.args.seed)
        student = self.args.make_compressor(plan.student, seed)
        teacher = None if plan.teacher is None else self.args.make_compressor(plan.teacher, seed)
        features = {name: value for name, value in inputs.items() if name != "labels"}
        with lockstep(self.accelerator.unwrap_model(model), student, teacher, labels):
            outputs = model(**features, use_cache=False)

        targets = labels[:, 1:][labels[:, 1:] != -100]
        logits = outputs.logits
        supervised = cross_entropy(logits[0], targets).sum()
        distilled = None if teacher is None else forward_kl(logits[0], logits[1], self.args.temperature).sum()
        weight = self.args.distill_weight
        loss = supervised if distilled is None else (1 - weight) * supervised + weight * distilled
        if model.training:
            self._record(plan, supervised, distilled, len(targets))
        loss = loss / (len(targets) if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages since the last log to a training log."""
        if "loss" in logs and self._sums:
            averages = {name: float(torch.stack(values).mean()) for name, values in self._sums.items()}
            logs = {**logs, **averages}
            self._sums.clear()
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

    def _next_plan(self) -> tuple[Plan, int]:
        """This micro-batch's plan and the seed of methods that draw; a function of seed, step and micro-batch."""
        step = self.state.global_step
        last, micro = self._micro_step
        micro = micro + 1 if last == step else 0
        self._micro_step = (step, micro)
        draw = random.Random(f"{self.args.seed}/{step}/{micro}")
        plan = self._schedule.plan(progress(step, self.state.max_steps), draw)
        return plan, draw.getrandbits(31)

    def _record(self, plan: Plan, supervised: Tensor, distilled: Tensor | None, answers: int) -> None:
        values: dict[str, Tensor | float] = {"student_keep": plan.student, "gap": plan.gap}
        values["sft_loss"] = supervised.detach() / answers
        if plan.teacher is not None and distilled is not None:
            values["teacher_keep"] = plan.teacher
            values["kd_loss"] = distilled.detach() / answers
        for name, value in values.items():
            self._sums[name].append(torch.as_tensor(value))
