"""What lmms-eval needs around it: its packages, no network, and silence."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

from foveal.errors import FovealError

__all__ = ["check_installed", "offline", "quiet"]

_FLAGS = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def check_installed() -> None:
    """Refuse an environment without lmms-eval.

    Raises:
        FovealError: it is missing; the message says how to install it.
    """
    if importlib.util.find_spec("lmms_eval") is None:
        raise FovealError(
            "lmms-eval, which asks and scores the benchmarks, is not installed: `pip install 'foveal[eval]'`, or "
            "without a GPU `pip install 'foveal[eval-cpu]' && pip install --no-deps lmms-eval==0.7.3`"
        )


@contextmanager
def offline() -> Iterator[None]:
    """Nothing asks the hub; put back afterwards. The libraries read their variables once, so their copies are set."""
    import datasets
    from huggingface_hub import constants

    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, dict.fromkeys(_FLAGS, "1")))
        stack.enter_context(mock.patch.object(constants, "HF_HUB_OFFLINE", True))
        stack.enter_context(mock.patch.object(datasets.config, "HF_HUB_OFFLINE", True))
        yield


def _no_bar(bar: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return bar(*arguments, **{**options, "disable": True})


@contextmanager
def quiet() -> Iterator[None]:
    """lmms-eval prints nothing, logs nothing and draws no bars, which would break up one that is being drawn."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"lmms_eval\b")
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        import datasets
        from lmms_eval import evaluator
        from lmms_eval.api import task
        from loguru import logger

        logger.disable("")  # of everybody: its tasks log under names such as "utils"
        stack.callback(logger.enable, "")
        for module in (evaluator, task):
            stack.enter_context(mock.patch.object(module, "tqdm", partial(_no_bar, module.tqdm)))
        if not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        yield
