"""Conversations to train on: read lazily, checked, turned into batches with an answer mask."""

from foveal.data.bad_samples import BadSample, skipped
from foveal.data.batching import LengthSampler, TokenBudgetSampler
from foveal.data.check import DataReport, check_data
from foveal.data.collator import VisionCollator
from foveal.data.conversations import Conversations, load_conversations
from foveal.data.lengths import token_lengths

__all__ = [
    "BadSample",
    "Conversations",
    "DataReport",
    "LengthSampler",
    "TokenBudgetSampler",
    "VisionCollator",
    "check_data",
    "load_conversations",
    "skipped",
    "token_lengths",
]
