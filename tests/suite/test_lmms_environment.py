"""An environment without lmms-eval is told what to install."""

from __future__ import annotations

import pytest

import foveal
from foveal.suite import lmms_environment
from foveal.suite.lmms_environment import check_installed


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = lmms_environment.importlib.util.find_spec
    monkeypatch.setattr(
        lmms_environment.importlib.util, "find_spec", lambda name: None if name == "lmms_eval" else find(name)
    )
    with pytest.raises(foveal.FovealError, match=r"pip install 'foveal\[eval\]'"):
        check_installed()
