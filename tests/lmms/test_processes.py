"""Killed and resumed, or shared by two processes: prediction by prediction what one unbroken run says."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from foveal.suite.harness import SuiteRun, run_suite

PROGRAM = Path(__file__).with_name("asks.py")


def asks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("asks", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launch = [sys.executable, *(several if processes > 1 else []), str(PROGRAM)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launch, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def result(path: Path) -> list[SuiteRun]:
    return [SuiteRun.from_json(row) for row in json.loads(path.read_text())]


def same(found: list[SuiteRun], expected: list[SuiteRun]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.answers == other.answers
        assert one.scores == pytest.approx(other.scores)
        assert one.extra == pytest.approx(other.extra)
        assert (one.kept, one.seen) == (other.kept, other.seen)


@pytest.fixture(scope="module")
def unbroken(loaded: tuple[Any, Any], scenes: Path) -> list[SuiteRun]:
    program = asks()
    runs = run_suite(*loaded, program.METHODS, program.SUITE, scenes, **program.OPTIONS)
    assert runs[0].answers != runs[1].answers
    return runs


def test_killed_and_resumed_equals_unbroken(
    unbroken: list[SuiteRun],
    loaded: tuple[Any, Any],
    scenes: Path,
    tmp_path: Path,
    asked: list[int],
) -> None:
    killed = run(scenes, tmp_path, tmp_path / "result", 7)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    written = sum(len(path.read_text().splitlines()) for path in (tmp_path / "answers").iterdir())
    total = sum(len(each.answers) for each in unbroken)
    assert 0 < written < total

    program = asks()
    same(
        run_suite(*loaded, program.METHODS, program.SUITE, scenes, out=tmp_path, **program.OPTIONS), unbroken
    )
    assert sum(asked) == total - written


def test_two_processes_equal_one(unbroken: list[SuiteRun], scenes: Path, tmp_path: Path) -> None:
    done = run(scenes, tmp_path, tmp_path / "result", processes=2)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        same(result(tmp_path / f"result-{rank}.json"), unbroken)
    shares = [path.read_text().count("\n") for path in sorted((tmp_path / "answers").iterdir())]
    assert len(shares) == 2
    assert abs(shares[0] - shares[1]) <= 4
    assert sum(shares) == sum(len(each.answers) for each in unbroken)
