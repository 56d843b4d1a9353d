"""Fixtures for all tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor
from transformers.models.llama import modeling_llama

from foveal.suite import answering
from support.matrix import Matrix

# A loaded machine is slow, not wrong.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--support-matrix", metavar="FILE", help="write the support matrix that the tests noted")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--support-matrix")
    if path:
        config.pluginmanager.register(Matrix(Path(path)))


@pytest.fixture
def exact_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the soft-max of eager attention in the model's own precision (the library rounds to float32)."""
    softmax = torch.nn.functional.softmax

    def exact(scores: Tensor, dim: int = -1, dtype: Any = None) -> Tensor:
        return softmax(scores, dim=dim, dtype=None if scores.dtype == torch.float64 else dtype)

    monkeypatch.setattr(modeling_llama.nn.functional, "softmax", exact)


@pytest.fixture(autouse=True)
def own_accelerator_state() -> Iterator[None]:
    """Accelerate remembers the first trainer's precision for the whole process."""
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state()


@pytest.fixture
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def support(record_property: Any) -> Any:
    """Note a cell of the support matrix: family, mode, largest difference from the oracle (None: refused)."""

    def note(family: str, mode: str, difference: float | str | None) -> None:
        record_property("support", [family, mode, difference])

    return note


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many questions each forward had that a suite made."""
    sizes: list[int] = []
    generate: Callable[..., Any] = answering.generate

    def counting(model: Any, processor: Any, inputs: Any, *arguments: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        return generate(model, processor, inputs, *arguments)

    monkeypatch.setattr(answering, "generate", counting)
    return sizes
