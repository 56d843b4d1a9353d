from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

COMMANDS = ("ask", "bench", "data check", "demo", "estimate", "eval", "list", "schedule", "train")


def test_help_names_every_command(run: Any) -> None:
    ran = run("--help")
    assert ran.code == 0
    for command in COMMANDS:
        assert command.partition(" ")[0] in ran.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_by_example(run: Any, command: str) -> None:
    ran = run(*command.split(), "--help")
    assert ran.code == 0
    assert "Example" in ran.out
    assert f"foveal {command}" in ran.out


def test_help_needs_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'matplotlib', 'numpy'}"
    code = f"import sys; from foveal.cli import app; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_command_is_a_usage_error(run: Any) -> None:
    assert run("compress").code == 2


def test_values_are_joined_for_eval_only(run: Any, tmp_path: Any) -> None:
    """A command with arguments of its own must not lose them to an option in front of them."""
    ran = run("ask", "--keep", "16", tmp_path / "gone.png", "is it a cat?")
    assert "no such image" in ran.err
    assert "--keep many: pass" in run("eval", "--keep", "16", "many").err
