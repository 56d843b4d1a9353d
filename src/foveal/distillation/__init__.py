"""EPIC: train one model, its own teacher, to stay accurate with few visual tokens."""

from foveal.distillation.config import SCHEDULES, EpicConfig
from foveal.distillation.conversations import load_conversations
from foveal.distillation.data import VisionCollator
from foveal.distillation.lockstep import lockstep
from foveal.distillation.losses import cross_entropy, forward_kl
from foveal.distillation.schedules import FixedSchedule, Plan, ProgressiveSchedule, Schedule, progress
from foveal.distillation.trainer import EpicTrainer, last_checkpoint

__all__ = [
    "SCHEDULES",
    "EpicConfig",
    "EpicTrainer",
    "FixedSchedule",
    "Plan",
    "ProgressiveSchedule",
    "Schedule",
    "VisionCollator",
    "cross_entropy",
    "forward_kl",
    "last_checkpoint",
    "load_conversations",
    "lockstep",
    "progress",
]
