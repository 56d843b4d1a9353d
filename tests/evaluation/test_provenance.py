from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from foveal.evaluation import provenance


def test_provenance_says_what_ran_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/folder/bin/foveal", "eval", "--data", "my file.jsonl"])
    found = json.loads(json.dumps(provenance(seed=3)))
    assert found["command"] == "foveal eval --data 'my file.jsonl'"
    assert found["seed"] == 3
    assert set(found["versions"]) == {"python", "foveal", "torch", "transformers"}
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["cpu"]
    assert found["date"].endswith("+00:00")


def test_provenance_of_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/foveal/__main__.py", "demo"])
    assert provenance()["command"] == "python -m foveal demo"


def test_no_commit_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[provenance.__module__]  # the function shadows its module in the package
    module._commit.cache_clear()
    monkeypatch.setattr(module, "__file__", str(tmp_path / "provenance.py"))
    try:
        assert provenance()["commit"] is None
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
        module._commit.cache_clear()
        assert provenance()["commit"] is None
    finally:
        module._commit.cache_clear()
