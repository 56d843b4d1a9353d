"""EPIC: train one model, its own teacher, to stay accurate with few visual tokens."""

from foveal.distillation.adapters import merge_adapters, with_adapters
from foveal.distillation.checkpoints import last_checkpoint
from foveal.distillation.config import SCHEDULES, EpicConfig
from foveal.distillation.distil import distil
from foveal.distillation.lockstep import can_share, lockstep, tell
from foveal.distillation.losses import DIVERGENCES, cross_entropy, forward_kl, jensen_shannon, reverse_kl
from foveal.distillation.objective import Objective, Told
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
    progress,
)
from foveal.distillation.trainer import EpicTrainer

__all__ = [
    "DIVERGENCES",
    "SCHEDULES",
    "EpicConfig",
    "EpicTrainer",
    "FixedSchedule",
    "IntegratedSchedule",
    "LayerSchedule",
    "Objective",
    "Plan",
    "Schedule",
    "TeacherSeesAll",
    "TokenSchedule",
    "Told",
    "WithoutTeacher",
    "can_share",
    "cross_entropy",
    "distil",
    "even_layers",
    "forward_kl",
    "jensen_shannon",
    "last_checkpoint",
    "lockstep",
    "merge_adapters",
    "progress",
    "reverse_kl",
    "tell",
    "with_adapters",
]
