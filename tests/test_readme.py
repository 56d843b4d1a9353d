"""The README's Python runs as printed, on a LLaVA built from a config."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import foveal
from support import vlm

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README names."""
    vlm.model().float().save_pretrained(tmp_path / "my-llava")
    vlm.processor().save_pretrained(tmp_path / "my-llava")
    vlm.picture(0, (200, 130)).save(tmp_path / "photo.jpg")
    turns = [{"from": "human", "value": "<image>\nis there a cat?"}, {"from": "gpt", "value": "yes"}]
    (tmp_path / "conversations.json").write_text(
        json.dumps([{"image": "photo.jpg", "conversations": turns}] * 16)
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("home")
def test_compression_stages_and_a_method_of_ones_own(capsys: Any) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    compress, stages, named, own = SNIPPETS[:4]
    exec(compile(compress, "README.md", "exec"), space)
    answer, kept = capsys.readouterr().out.strip().split("\n", 1)
    assert answer
    assert kept.startswith("tensor([")
    assert len(space["run"].kept[0]) == 64
    exec(compile(stages, "README.md", "exec"), space)
    assert capsys.readouterr().out == "[72, 64, 32]\n"
    exec(compile(named, "README.md", "exec"), space)
    assert capsys.readouterr().out == "torch.Size([16, 144])\n"
    exec(compile(own, "README.md", "exec"), space)
    assert len(own.splitlines()) < 30
    assert len(space["run"].kept[0]) == 16


# The CPU has no pinned memory; transformers asks for it by default.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
@pytest.mark.usefixtures("home")
def test_training(home: Path) -> None:
    code = "\n".join([SNIPPETS[0], SNIPPETS[4]])
    assert "max_steps=200" in code
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code.replace("max_steps=200", "max_steps=2, report_to='none'"), "README.md", "exec"), space)
    recorded = json.loads((home / "my-llava-epic" / "config.json").read_text())["foveal"]
    assert recorded["method"] == "dart"
    with torch.no_grad(), pytest.raises(foveal.FovealError, match="already"):
        foveal.attach(space["model"], "dart", keep=9)


def test_what_compression_gains(capsys: Any) -> None:
    exec(compile(SNIPPETS[5], "README.md", "exec"), {"foveal": foveal})
    printed = capsys.readouterr().out
    assert printed == "8.48 -> 2.07 TFLOPs\n334.5 -> 82.8 MB of KV cache\n"
    assert all(line.split(" T")[0].split(" M")[0] in SNIPPETS[5] for line in printed.splitlines())


def test_every_method_has_its_row() -> None:
    for name in foveal.available():
        assert f"`{name}`" in README[README.index("| method | acts |") : README.index("They compose")]
