"""What several benchmarks need: a stopwatch that knows what is spent in the engine, and a LLaVA around a decoder."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import foveal
from foveal.engine.hooks import Hooks
from foveal.evaluation.provenance import provenance

IMAGE, WORD = 5, 100  # token ids: the placeholder, and the first word
VISUAL = 576  # tokens an image


class Time(NamedTuple):
    """Seconds of a call, and those of them inside the engine's hooks."""

    total: float
    in_hooks: float


class Stopwatch:
    """Adds up the seconds inside the engine's hooks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def install(self) -> None:
        """Time every hook that is registered from now on, and what observes attention."""
        self._wrap(nn.Module, "register_forward_pre_hook", self._registering)
        self._wrap(nn.Module, "register_forward_hook", self._registering)
        self._wrap(Hooks, "_observe", self._timed)

    def _wrap(self, owner: type, name: str, wrapper: Callable[..., Any]) -> None:
        setattr(owner, name, wrapper(getattr(owner, name)))

    def _registering(self, register: Callable[..., Any]) -> Callable[..., Any]:
        def registering(module: nn.Module, hook: Callable[..., Any], **options: Any) -> Any:
            return register(module, self._timed(hook), **options)

        return registering

    def _timed(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(hook)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return hook(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - start

        return timed

    def time(self, call: Callable[[], Any]) -> Time:
        """Time a call."""
        self.seconds, start = 0.0, time.thread_time()
        call()
        return Time(time.thread_time() - start, self.seconds)


STOPWATCH = Stopwatch()


def prepare() -> None:
    """One thread, no gradients, the same draws each time, and a stopwatch that knows the engine."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    random.seed(0)
    STOPWATCH.install()


def save(path: Path, result: dict[str, Any]) -> None:
    """Write a result with its provenance."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**result, **provenance(seed=0)}, indent=2) + "\n")


def under(
    model: Any, method: foveal.Compressor | None, visual_mask: Tensor | None = None
) -> AbstractContextManager[Any]:
    """The model under a method, or the plain one."""
    return nullcontext() if method is None else foveal.compress(model, method, visual_mask=visual_mask)


def llava(language: LlamaConfig, **vision: int) -> Any:
    """A LLaVA with 576 tokens an image; from a small tower, unless `vision` gives it other sizes."""
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=336, patch_size=14, **(small | vision)),
        text_config=language,
        image_token_index=IMAGE,
        image_seq_length=VISUAL,
    )
    return LlavaForConditionalGeneration(config).eval()
