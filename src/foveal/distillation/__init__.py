"""EPIC: train one model, its own teacher, to stay accurate with few visual tokens."""

from foveal.distillation.bad_samples import BadSample, skipped
from foveal.distillation.batching import LengthSampler, TokenBudgetSampler
from foveal.distillation.checkpoints import last_checkpoint
from foveal.distillation.config import SCHEDULES, EpicConfig
from foveal.distillation.conversations import Conversations, load_conversations
from foveal.distillation.data import VisionCollator
from foveal.distillation.data_check import DataReport, check_data
from foveal.distillation.distil import distil
from foveal.distillation.lengths import token_lengths
from foveal.distillation.lockstep import can_share, lockstep, tell
from foveal.distillation.losses import DIVERGENCES, cross_entropy, forward_kl, jensen_shannon, reverse_kl
from foveal.distillation.objective import Objective, Told
from foveal.distillation.schedules import (
    FixedSchedule,
    IntegratedSchedule,
    LayerSchedule,
    Plan,
    Schedule,
    TokenSchedule,
    WithoutTeacher,
    even_layers,
    progress,
)
from foveal.distillation.trainer import EpicTrainer

__all__ = [
    "DIVERGENCES",
    "SCHEDULES",
    "BadSample",
    "Conversations",
    "DataReport",
    "EpicConfig",
    "EpicTrainer",
    "FixedSchedule",
    "IntegratedSchedule",
    "LayerSchedule",
    "LengthSampler",
    "Objective",
    "Plan",
    "Schedule",
    "TokenBudgetSampler",
    "TokenSchedule",
    "Told",
    "VisionCollator",
    "WithoutTeacher",
    "can_share",
    "check_data",
    "cross_entropy",
    "distil",
    "even_layers",
    "forward_kl",
    "jensen_shannon",
    "last_checkpoint",
    "load_conversations",
    "lockstep",
    "progress",
    "reverse_kl",
    "skipped",
    "tell",
    "token_lengths",
]
