"""EpicTrainer: transformers' Trainer with a student and a teacher in one forward."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, patch_environment
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import EarlyStoppingCallback, TrainerCallback

from foveal.compressors import Compressor
from foveal.data.bad_samples import skipped
from foveal.data.batching import LengthSampler, TokenBudgetSampler
from foveal.data.collator import VisionCollator
from foveal.data.lengths import token_lengths
from foveal.distillation.adapters import with_adapters
from foveal.distillation.config import EpicConfig
from foveal.distillation.distil import distil
from foveal.distillation.meters import Meters
from foveal.distillation.resumable import ResumableTrainer
from foveal.distillation.schedules import Plan, draw_of_step, progress
from foveal.distillation.stand_in import StandIn
from foveal.distillation.trainable import freeze, parameter_groups
from foveal.engine.families import find_parts
from foveal.errors import FovealError
from foveal.loading import load, record_compressor

__all__ = ["EpicTrainer"]

_SKIPPED = "skipped.jsonl"
_logger = logging.getLogger("foveal")


class EpicTrainer(ResumableTrainer):
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

    def __init__(
        self,
        model: nn.Module,
        args: EpicConfig,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        callbacks: Sequence[Any] = (),
        **kwargs: Any,
    ) -> None:
        _use_one_device(args)
        _refuse_ignored(args, kwargs)
        self._report: Path | None = None
        if data_collator is None and processing_class is not None:
            self._report = Path(str(args.output_dir)) / _SKIPPED if args.on_bad_sample == "skip" else None
            data_collator = VisionCollator(
                processing_class, args.max_length, on_bad=args.on_bad_sample, report=self._report
            )
        if args.patience is not None:
            callbacks = [*callbacks, EarlyStoppingCallback(args.patience)]
        super().__init__(
            with_adapters(model, args),
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            callbacks=[*callbacks, _SetEpoch()],
            **kwargs,
        )
        assert self.model is not None
        # The loss below divides by num_items_in_batch itself, so Trainer must count answers and scale nothing.
        self.model_accepts_loss_kwargs = True
        self._schedule = self.args.make_schedule(len(find_parts(self.model).layers))
        self._objective = self.args.make_objective()
        self._teacher_model = self._load_teacher()
        self._check_depths()
        self._stand_in = StandIn(processing_class, self._prepare_inputs)
        self._meters = Meters()
        if self.is_fsdp_enabled:
            _name_blocks(self.accelerator.state.fsdp_plugin, self.model)
        freeze(self.model, self.args)
        record_compressor(self.model, self.args.make_compressor())

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, as Trainer does; at the end, say how many samples were skipped.

        Args:
            resume_from_checkpoint: a checkpoint to go on from, see `last_checkpoint`; True for the last one in
                output_dir.
            args: Trainer's.
            kwargs: Trainer's.

        Raises:
            FovealError: the checkpoint does not exist, or was cut short.
        """
        report = self._report if self.is_world_process_zero() else None
        if report is not None and not resume_from_checkpoint:
            report.unlink(missing_ok=True)
        self._meters = Meters()
        result = super().train(resume_from_checkpoint, *args, **kwargs)
        if report is not None and (count := len(skipped(report))):
            _logger.warning("%d samples were skipped, see %s", count, report)
            if not any(log.get("sft_loss") for log in self.state.log_history):
                raise FovealError(f"nothing was learnt: every sample was skipped, see {report}")
        return result

    def get_train_dataloader(self) -> Any:
        """Batches of `per_device_train_batch_size` samples, or of `tokens_per_batch` tokens."""
        budget = self.args.tokens_per_batch
        if budget is None:
            return super().get_train_dataloader()
        sampler = TokenBudgetSampler(self._lengths(), budget, self._data_seed, self.args.world_size)
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(loader)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if self.args.train_sampling_strategy != "group_by_length" or not self._measurable:
            return super()._get_train_sampler(train_dataset)
        args = self.args
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return LengthSampler(step, self._lengths(), self._data_seed)

    @property
    def _measurable(self) -> bool:
        """Whether samples are conversations, whose length is known before they are collated."""
        return isinstance(self.data_collator, VisionCollator)

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _lengths(self) -> list[int]:
        """Tokens of each training sample, counted by one process."""
        if not self._measurable:
            raise FovealError(
                "tokens_per_batch needs conversations and VisionCollator: leave out data_collator=, or set "
                "per_device_train_batch_size"
            )
        first = self.accelerator.is_main_process
        workers = self.args.dataloader_num_workers
        found = [token_lengths(self.train_dataset, self.processing_class, workers) if first else None]
        counted: list[int] = broadcast_object_list(found)[0]
        if self.args.on_bad_sample == "stop":
            return counted
        return [1 if length > self.args.max_length else length for length in counted]  # those will be skipped

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of a step, and the number of answers in them over all processes."""
        self._meters.begin()
        return super().get_batch_samples(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of one micro-batch; in evaluation, the cross-entropy at the fraction the model is meant for."""
        inputs = dict(inputs)
        labels: Tensor = inputs.pop("labels")
        mask: Tensor = inputs["attention_mask"]
        if self.accelerator.num_processes > 1:
            inputs, labels = self._stand_in.join(inputs, labels)
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
            self._meters.note(plan, supervised, distilled, mask)
        loss = self._share(loss, supervised, num_items_in_batch)
        return (loss, {}) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, _loss_only: bool, ignore_keys: Any = None) -> Any:
        """The loss alone: logits exist for answers only, and for few of them at a time."""
        return super().prediction_step(model, inputs, True, ignore_keys)

    def _share(self, total: Tensor, losses: Tensor, answers: Tensor | int | None) -> Tensor:
        """A micro-batch's share of the mean over all answers of a step."""
        if answers is None:
            return total / max(1, len(losses))
        if not total.requires_grad and not len(losses):
            return total * torch.nan  # Trainer leaves it out of the average
        mean = total / torch.as_tensor(answers).clamp(min=1)  # none where all samples of a step are bad
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return mean * processes  # which average their gradients

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

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Trainer's, with the clock of samples_per_second stopped."""
        with self._meters.paused():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self._meters.paused():
            super()._save_checkpoint(model, trial)

    def _next(self, t: float) -> tuple[Plan, Compressor, Compressor | None]:
        """Plan, student and teacher of this step: a function of seed and step, the same in all micro-batches."""
        draw = draw_of_step(self.args.seed, self.state.global_step)
        plan = self._schedule.plan(t, draw)
        return plan, *self.args.make_pair(plan, draw)

    def _last(self) -> tuple[Plan, Compressor, None]:
        """What the model is meant for."""
        return Plan(self.args.keep, None), self.args.make_compressor(), None

    def _check_depths(self) -> None:
        if self._teacher_model is None or not self.args.schedule.startswith(("lcd", "icd")):
            return
        assert self.model is not None
        own, teachers = (len(find_parts(model).layers) for model in (self.model, self._teacher_model))
        if teachers < own:
            raise FovealError(
                f"teacher_model has {teachers} decoder layers and the student {own}: schedule {self.args.schedule} "
                "begins behind the teacher's last one; take schedule tcd, or a teacher as deep as the student"
            )

    def _load_teacher(self) -> nn.Module | None:
        if self.args.teacher_model is None:
            return None
        if self.is_deepspeed_enabled:
            raise FovealError(
                "teacher_model: DeepSpeed would tear it apart: leave it out, or train with FSDP2"
            )
        student: Any = self.model
        # Whole in every process, also where the student is read by the first alone.
        with patch_environment(fsdp_cpu_ram_efficient_loading="false"):
            teacher, _ = load(self.args.teacher_model, compressed=False, dtype=student.dtype)
        frozen: nn.Module = teacher.requires_grad_(False).to(self.args.device)
        return frozen


class _SetEpoch(TrainerCallback):
    """Tells the sampler its epoch.

    Trainer and Accelerate do so too, but do not reach a sampler of ours through all that a resumed run in several
    processes wraps around it: the run would go through the data in the order of the first epoch.
    """

    def on_epoch_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        sampler = train_dataloader.batch_sampler
        while nested := getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None):
            sampler = nested
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(int(state.epoch or 0))


def _refuse_ignored(args: EpicConfig, options: dict[str, Any]) -> None:
    """What EPIC's own loss and optimizer would pass over, and compiling, which hooks stand against."""
    ignored = [
        name
        for name in ("compute_loss_func", "optimizer_cls_and_kwargs", "compute_metrics")
        if options.get(name)
    ]
    ignored += [name for name in ("label_smoothing_factor", "torch_compile") if getattr(args, name)]
    if ignored:
        raise FovealError(f"EPIC training cannot do anything with {ignored[0]}: leave it out")


def _use_one_device(args: EpicConfig) -> None:
    """Trainer would copy the model to all GPUs of a single process, and the copies would lack the hooks."""
    if args.n_gpu > 1:
        _logger.warning(
            "training on 1 of %d GPUs: start with `torchrun --nproc_per_node %d` to use all",
            args.n_gpu,
            args.n_gpu,
        )
        args._n_gpu = 1


def _name_blocks(plugin: Any, model: nn.Module) -> None:
    """Name the blocks that FSDP shards by themselves.

    Accelerate takes the model's own list, and stops at classes in it that the model does not have: LLaVA's names the
    text embeddings of CLIP.
    """
    if plugin.transformer_cls_names_to_wrap is None:
        present = {type(module).__name__ for module in model.modules()}
        named = getattr(find_parts(model).top, "_no_split_modules", None) or ()
        plugin.transformer_cls_names_to_wrap = sorted(present.intersection(named))
