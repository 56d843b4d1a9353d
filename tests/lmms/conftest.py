"""Tests that need lmms-eval: `make test-eval` runs them in an environment of its own, elsewhere they are left out."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import foveal
from foveal.suite.scene_tasks import write_scene_tasks

collect_ignore_glob = [] if importlib.util.find_spec("lmms_eval") else ["test_*.py"]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ten data sets."""
    return write_scene_tasks(tmp_path_factory.mktemp("scenes") / "data", questions=12)


@pytest.fixture(scope="session")
def loaded() -> tuple[Any, Any]:
    """The bundled model and its processor."""
    return foveal.load()


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` converts is not left in the user's home."""
    import datasets

    folder = tmp_path_factory.getbasetemp() / "datasets"
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
