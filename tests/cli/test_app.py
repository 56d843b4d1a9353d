from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import foveal

COMMANDS = ("ask", "demo", "eval", "list", "train")


def test_help_names_every_command(run: Any) -> None:
    ran = run("--help")
    assert ran.code == 0
    for command in COMMANDS:
        assert command in ran.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_by_example(run: Any, command: str) -> None:
    ran = run(command, "--help")
    assert ran.code == 0
    assert "Example" in ran.out
    assert f"foveal {command}" in ran.out


def test_help_needs_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'matplotlib', 'numpy'}"
    code = f"import sys; from foveal.cli import app; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_command_is_a_usage_error(run: Any) -> None:
    assert run("compress").code == 2


def test_list_shows_every_method(run: Any) -> None:
    ran = run("list")
    assert ran.code == 0
    for name in foveal.available():
        card = foveal.method_class(name).card
        assert card is not None
        for part in (name, card.paper, card.stage, card.needs):
            assert part in ran.out


def test_list_one(run: Any) -> None:
    ran = run("list", "fastv")
    assert foveal.FastV.card.rule in ran.out
    assert "foveal.FastV(keep=64)" in ran.out
    assert foveal.DART.card.paper not in ran.out


def test_list_as_json(run: Any) -> None:
    found = json.loads(run("list", "--json").out)
    assert [item["name"] for item in found] == list(foveal.available())
    assert found[0]["options"]["layer"] == 2
    assert found[0]["options"]["keep"] is None


def test_list_of_an_unknown_method(run: Any) -> None:
    ran = run("list", "dort")
    assert (ran.code, ran.out) == (2, "")
    assert "unknown method 'dort'" in ran.err
    assert len(ran.err.splitlines()) == 1
