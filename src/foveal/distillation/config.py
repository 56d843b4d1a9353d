"""The options of EPIC training, on top of transformers' own."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from foveal.compressors import Compressor, get
from foveal.distillation.schedules import FixedSchedule, ProgressiveSchedule, Schedule
from foveal.errors import FovealError

__all__ = ["SCHEDULES", "EpicConfig"]

SCHEDULES = ("tcd", "direct", "none")


@dataclass
class EpicConfig(TrainingArguments):
    """TrainingArguments plus what EPIC adds; defaults are the paper's (arXiv 2510.00515, LLaVA-1.5 stage 2).

    Only the fields below are Foveal's; everything else is documented in `transformers.TrainingArguments`.

    Raises:
        FovealError: an unknown schedule or method, or a value out of range.
    """

    method: str = field(
        default="dart", metadata={"help": "compression method to train with (see `foveal list`)"}
    )
    layer: int = field(
        default=2, metadata={"help": "0-based decoder layer at whose entry tokens are dropped"}
    )
    schedule: str = field(
        default="tcd",
        metadata={
            "help": "tcd: EPIC, easy to hard with a teacher; direct: fixed compression; none: plain fine-tuning"
        },
    )
    keep: float = field(
        default=1 / 9,
        metadata={
            "help": "fraction of visual tokens the model is meant for: of `direct`, and what a checkpoint records"
        },
    )
    distill_weight: float = field(
        default=0.7,
        metadata={"help": "the paper's lambda: loss = (1 - lambda) * SFT + lambda * KL(teacher || student)"},
    )
    temperature: float = field(default=1.0, metadata={"help": "of both logits in the KL term"})
    least_removed_end: float = field(
        default=0.5, metadata={"help": "tcd: lower bound of the fraction removed at the end (0 at the start)"}
    )
    most_removed_start: float = field(
        default=0.05, metadata={"help": "tcd: upper bound of the fraction removed at the start"}
    )
    most_removed_end: float = field(default=0.9, metadata={"help": "tcd: the same at the end"})
    gap_start: float = field(
        default=0.05, metadata={"help": "tcd: how much less the teacher removes at the start"}
    )
    gap_end: float = field(default=0.3, metadata={"help": "tcd: the same at the end"})

    learning_rate: float = field(default=2e-5, metadata={"help": "peak learning rate"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "shape of the learning rate"})
    warmup_steps: float = field(
        default=0.03, metadata={"help": "warm-up: steps, or a fraction of them below 1"}
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "epochs, unless max_steps is set"})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "the collator needs images and messages"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        if self.schedule not in SCHEDULES:
            raise FovealError(f"unknown schedule {self.schedule!r}: choose one of {', '.join(SCHEDULES)}")
        if not 0 <= self.distill_weight <= 1:
            raise FovealError(f"distill_weight={self.distill_weight} must be in [0, 1]")
        if self.temperature <= 0:
            raise FovealError(f"temperature={self.temperature} must be above 0")
        self.make_schedule()
        self.make_compressor(self.keep)

    def make_schedule(self) -> Schedule:
        """The schedule these options describe."""
        if self.schedule == "none":
            return FixedSchedule(1.0)
        if self.schedule == "direct":
            return FixedSchedule(self.keep)
        return ProgressiveSchedule(
            least_removed=(0.0, self.least_removed_end),
            most_removed=(self.most_removed_start, self.most_removed_end),
            gap=(self.gap_start, self.gap_end),
        )

    def make_compressor(self, keep: float, seed: int = 0) -> Compressor:
        """The training method at a fraction kept; `seed` matters to methods that draw."""
        options = {"seed": seed} if self.method == "random" else {}
        return get(self.method, keep=float(keep), layer=self.layer, **options)
