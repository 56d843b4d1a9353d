"""The options of EPIC training, on top of transformers' own."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, fields

from transformers import TrainingArguments

from foveal.compressors import Compressor, get, method_class
from foveal.data.collator import ON_BAD
from foveal.distillation.losses import DIVERGENCES
from foveal.distillation.objective import Objective
from foveal.distillation.schedules import (
    FixedSchedule,
    IntegratedSchedule,
    LayerSchedule,
    Plan,
    Schedule,
    TeacherSeesAll,
    TokenSchedule,
    WithoutTeacher,
    even_layers,
)
from foveal.errors import FovealError

__all__ = ["SCHEDULES", "EpicConfig"]

_PROGRESSIVE = ("tcd", "tcd-released", "lcd", "icd")
_ABLATIONS = ("no-distill", "no-progress")
SCHEDULES = (
    *_PROGRESSIVE,
    "direct",
    "none",
    *(f"{schedule}-{ablation}" for schedule in _PROGRESSIVE for ablation in _ABLATIONS),
)
_TEACHERS = ("less", "all")


@dataclass
class EpicConfig(TrainingArguments):
    """TrainingArguments plus what EPIC adds; defaults are the paper's (arXiv 2510.00515, LLaVA-1.5 stage 2).

    Only the fields below are Foveal's; everything else is documented in `transformers.TrainingArguments`.

    Raises:
        FovealError: an unknown schedule or method, or a value out of range.
    """

    method: str = field(
        default="dart",
        metadata={
            "help": "compression method to train with (see `foveal list`); several, such as dart,random, take turns at "
            "random, one a step"
        },
    )
    layer: int = field(
        default=2,
        metadata={
            "help": "0-based decoder layer at whose entry tokens are dropped; where lcd and icd end up"
        },
    )
    schedule: str = field(
        default="tcd",
        metadata={
            "help": "tcd, lcd, icd: EPIC, easy to hard with a teacher; tcd-released: as the authors' code does; "
            "direct: fixed compression; none: plain fine-tuning; ablations: tcd-no-distill, lcd-no-progress, ..."
        },
    )
    keep: float = field(
        default=1 / 9,
        metadata={
            "help": "fraction of visual tokens the model is meant for: of `direct`, and what a checkpoint records"
        },
    )
    teacher: str = field(
        default="less",
        metadata={
            "help": "less: the teacher is compressed a little less than the student; all: it sees all tokens"
        },
    )
    teacher_method: str | None = field(
        default=None, metadata={"help": "the teacher's compression method; the student's if left out"}
    )
    teacher_model: str | None = field(
        default=None,
        metadata={"help": "a frozen model to learn from, folder or hub name; the student itself if left out"},
    )
    divergence: str = field(
        default="forward-kl",
        metadata={"help": "of the student from the teacher: forward-kl (the paper's), reverse-kl or jsd"},
    )
    distill_weight: float | None = field(
        default=None,
        metadata={
            "help": "the paper's lambda: loss = (1 - lambda) * SFT + lambda * KL(teacher || student); 0.7 if left out, "
            "0.5 in tcd-released"
        },
    )
    distill_weight_end: float | None = field(
        default=None,
        metadata={"help": "lambda at the end, where it goes in a straight line; constant if left out"},
    )
    temperature: float = field(default=1.0, metadata={"help": "of both logits in the KL term"})
    logit_rows: int = field(
        default=1024, metadata={"help": "answer tokens whose logits are in memory at once"}
    )
    fused_losses: bool = field(
        default=False,
        metadata={"help": "compute the losses by Liger's kernels (pip install liger-kernel; GPU)"},
    )
    least_removed_end: float = field(
        default=0.5,
        metadata={"help": "tcd, icd: lower bound of the fraction removed at the end (0 at first)"},
    )
    most_removed_start: float = field(
        default=0.05, metadata={"help": "tcd, icd: upper bound of the fraction removed at first"}
    )
    most_removed_end: float = field(default=0.9, metadata={"help": "tcd, icd: the same at the end"})
    gap_start: float = field(default=0.05, metadata={"help": "how much less the teacher removes at first"})
    gap_end: float = field(default=0.3, metadata={"help": "the same at the end"})
    lcd_least_removed: float = field(
        default=0.2, metadata={"help": "lcd: lower bound of the fraction removed"}
    )
    lcd_most_removed: float = field(
        default=0.9, metadata={"help": "lcd: upper bound of the fraction removed"}
    )
    icd_layers: int = field(
        default=4,
        metadata={"help": "icd: layers visited, evenly spaced from the model's depth down to `layer`"},
    )
    icd_gap_resets: bool = field(
        default=True, metadata={"help": "icd: whether the teacher's gap begins anew at every layer"}
    )
    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "train low-rank adapters (LoRA) of this rank in place of the language model's weights"
        },
    )
    lora_alpha: int | None = field(
        default=None,
        metadata={"help": "adapters are scaled by lora_alpha / lora_rank; twice the rank if left out"},
    )
    lora_dropout: float = field(default=0.05, metadata={"help": "in front of the adapters"})
    lora_targets: str | None = field(
        default=None,
        metadata={
            "help": "linear layers of the decoder that get an adapter, such as q_proj,v_proj; all if left out"
        },
    )
    dora: bool = field(
        default=False, metadata={"help": "DoRA: the adapters' direction and magnitude learn apart"}
    )

    max_length: int = field(default=2048, metadata={"help": "longest conversation, in tokens"})
    tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "batches of conversations of similar length, of at most so many tokens with padding, in place of "
            "per_device_train_batch_size"
        },
    )
    on_bad_sample: str = field(
        default="stop",
        metadata={"help": "stop at a sample that cannot be used, or skip it and list it in skipped.jsonl"},
    )
    patience: int | None = field(
        default=None,
        metadata={"help": "stop early, after so many evaluations in a row that were not the best"},
    )

    learning_rate: float = field(default=2e-5, metadata={"help": "peak learning rate"})
    projector_learning_rate: float | None = field(
        default=None, metadata={"help": "of the projector; learning_rate if left out, 0 freezes it"}
    )
    tower_learning_rate: float = field(
        default=0.0, metadata={"help": "of the vision tower; 0 (the paper's) freezes it"}
    )
    train_language_model: bool = field(
        default=True, metadata={"help": "whether the language model learns (with LoRA: its adapters)"}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "shape of the learning rate"})
    warmup_steps: float = field(
        default=0.03, metadata={"help": "warm-up: steps, or a fraction of them below 1"}
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "epochs, unless max_steps is set"})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "the collator needs images and messages"}
    )

    def __post_init__(self) -> None:
        if self.patience is not None and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"
        super().__post_init__()  # type: ignore[no-untyped-call]
        if self.patience is not None:
            self._stop_early()
        if self.tower_learning_rate and self.ddp_find_unused_parameters is None:
            # Most families read no features from the tower's last layer.
            self.ddp_find_unused_parameters = True
        self._check_choices()
        self._check_numbers()
        self._check_adapters()
        self.make_schedule(self.layer + self.icd_layers)  # refuses bad numbers, whatever the model's depth
        self._check_methods()

    def _check_choices(self) -> None:
        choices = {
            "schedule": SCHEDULES,
            "teacher": _TEACHERS,
            "divergence": tuple(DIVERGENCES),
            "on_bad_sample": ON_BAD,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise FovealError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(known)}")

    def _check_numbers(self) -> None:
        for name in ("distill_weight", "distill_weight_end"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise FovealError(f"{name}={value} must be in [0, 1]")
        if self.temperature <= 0:
            raise FovealError(f"temperature={self.temperature} must be above 0")
        for name in ("logit_rows", "max_length", "tokens_per_batch", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise FovealError(f"{name}={value} must be at least 1")

    def _check_adapters(self) -> None:
        if self.lora_rank is not None and self.lora_rank < 1:
            raise FovealError(
                f"lora_rank={self.lora_rank} must be at least 1; leave it out to train all weights"
            )
        if self.lora_rank is None and (self.dora or self.lora_alpha or self.lora_targets):
            raise FovealError("dora, lora_alpha and lora_targets are LoRA's: pass lora_rank, too")
        if not 0 <= self.lora_dropout < 1:
            raise FovealError(f"lora_dropout={self.lora_dropout} must be in [0, 1)")

    def _stop_early(self) -> None:
        if self.eval_strategy == "no":
            raise FovealError("patience counts evaluations: set eval_strategy, too")
        self.restore_callback_states_from_checkpoint = True  # or else a resumed run would count anew

    def _check_methods(self) -> None:
        for name in (*self.methods, *((self.teacher_method,) if self.teacher_method else ())):
            self._method(name, self.keep)
            if self.schedule.startswith(("lcd", "icd")) and not _takes(name, "layer"):
                raise FovealError(
                    f"schedule {self.schedule} moves the compression through the layers, but {name} has no layer to "
                    "choose: train with a method such as dart, or with tcd"
                )

    @property
    def methods(self) -> list[str]:
        """The names of the methods that take turns."""
        return [name.strip() for name in self.method.split(",")]

    def make_schedule(self, depth: int) -> Schedule:
        """The schedule these options describe.

        Args:
            depth: number of decoder layers.

        Raises:
            FovealError: fractions or layers that make no schedule.
        """
        schedule = self._schedule(depth)
        return TeacherSeesAll(schedule) if self.teacher == "all" else schedule

    def _schedule(self, depth: int) -> Schedule:
        name, _, ablation = self.schedule.partition("-no-")
        gap = (self.gap_start, self.gap_end)
        if ablation == "progress":
            return self._without_progress(name, depth)
        if name == "none":
            schedule: Schedule = FixedSchedule(1.0)
        elif name == "direct":
            schedule = FixedSchedule(self.keep)
        elif name == "tcd-released":
            schedule = TokenSchedule.released()
        elif name == "lcd":
            schedule = LayerSchedule(depth, last_layer=self.layer, removed=self._lcd_removed, gap=gap)
        else:
            most_removed = (self.most_removed_start, self.most_removed_end)
            schedule = TokenSchedule((0.0, self.least_removed_end), most_removed, gap)
            if name == "icd":
                layers = even_layers(depth, self.layer, self.icd_layers)
                schedule = IntegratedSchedule(depth, layers, schedule, self.icd_gap_resets)
        return WithoutTeacher(schedule) if ablation == "distill" else schedule

    def _without_progress(self, name: str, depth: int) -> Schedule:
        """The fraction stands still at `keep`, the layer at `layer`; the teacher's gap still opens."""
        gap = (self.gap_start, self.gap_end)
        if name == "lcd":
            return LayerSchedule(depth, self.layer, self.layer, self._lcd_removed, gap)
        removed = (1 - self.keep, 1 - self.keep)
        released = TokenSchedule.released()
        if name == "tcd-released":
            return TokenSchedule(removed, removed, released.gap, released.widest_gap)
        return TokenSchedule(removed, removed, gap)

    @property
    def _lcd_removed(self) -> tuple[float, float]:
        return self.lcd_least_removed, self.lcd_most_removed

    def weight(self, t: float) -> float:
        """The paper's lambda at progress t."""
        default = 0.5 if self.schedule.startswith("tcd-released") else 0.7
        start = default if self.distill_weight is None else self.distill_weight
        end = start if self.distill_weight_end is None else self.distill_weight_end
        return start + t * (end - start)

    def make_objective(self) -> Objective:
        """What is computed of every answer token."""
        return Objective(DIVERGENCES[self.divergence], self.temperature, self.logit_rows, self.fused_losses)

    def make_compressor(self) -> Compressor:
        """The method the model is meant for: the first, at `keep`."""
        return self._method(self.methods[0], self.keep)

    def make_pair(self, plan: Plan, draw: random.Random) -> tuple[Compressor, Compressor | None]:
        """Student and teacher of one step.

        Args:
            plan: from the schedule.
            draw: chooses among several methods, and seeds those that draw: teacher and student alike, so that the
                student's tokens are among the teacher's.
        """
        name = draw.choice(self.methods)
        seed = draw.getrandbits(31)
        student = self._method(name, plan.student, plan.layer, seed)
        if plan.teacher is None:
            return student, None
        return student, self._method(self.teacher_method or name, plan.teacher, plan.layer, seed)

    def _method(self, name: str, keep: float, layer: int | None = None, seed: int = 0) -> Compressor:
        """A method by name, with a layer and a seed if it takes them."""
        options: dict[str, float] = {}
        if _takes(name, "layer"):
            options["layer"] = self.layer if layer is None else layer
        if _takes(name, "seed"):
            options["seed"] = seed
        return get(name, keep=float(keep), **options)


def _takes(name: str, option: str) -> bool:
    return any(item.name == option and item.init for item in fields(method_class(name)))
