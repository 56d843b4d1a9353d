"""A torchvision that breaks transformers is named, with the remedy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import foveal
from foveal.environment import check_torchvision


def test_a_torchvision_for_another_torch_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "torchvision", sys)  # what is imported is forgotten again
    del sys.modules["torchvision"]
    with pytest.raises(
        foveal.FovealError, match=r"torchvision::nms does not exist.*pip uninstall torchvision"
    ):
        check_torchvision()
    (tmp_path / "torchvision" / "__init__.py").write_text("")
    check_torchvision()
