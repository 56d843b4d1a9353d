from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from support import vlm

SMALL = ("--steps", 2, "--batch-size", 2)


def test_a_checkpoint_that_names_its_method(run: Any, checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "trained"
    ran = run(
        "train",
        "--model",
        checkpoint,
        "--out",
        out,
        *SMALL,
        "--method",
        "fastv",
        "--keep",
        "1/4",
        "--layer",
        1,
    )
    assert ran.code == 0
    assert "2 steps" in ran.out
    reply = json.loads(run("ask", photo, "is there a cat in the image?", "--model", out, "--json").out)
    assert (reply["method"], reply["kept"], reply["options"]["layer"]) == ("fastv", 36, 1)
    before = AutoModelForImageTextToText.from_pretrained(checkpoint).state_dict()
    after = AutoModelForImageTextToText.from_pretrained(out).state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert any("language_model" in name for name in changed)
    assert any("projector" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)


def test_a_file_of_conversations(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    vlm.picture(0).save(tmp_path / "one.png")
    turns = [{"from": "human", "value": "<image>\nis there a cat?"}, {"from": "gpt", "value": "yes"}]
    (tmp_path / "mine.json").write_text(json.dumps([{"image": "one.png", "conversations": turns}] * 4))
    out = tmp_path / "trained"
    ran = run("train", "--data", tmp_path / "mine.json", "--model", checkpoint, "--out", out, *SMALL)
    assert ran.code == 0
    assert (out / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--schedule", "lcd"], "unknown schedule 'lcd'"),
        (["--method", "dort"], "unknown method 'dort'"),
        (["--keep", "0/3"], "keep=0"),
        (["--data", "gone.json"], "no such file: gone.json"),
    ],
)
def test_what_is_refused(
    run: Any, checkpoint: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    ran = run("train", "--model", checkpoint, "--out", tmp_path / "out", *SMALL, *options)
    assert ran.code == 2
    assert len(ran.err.strip().splitlines()) == 1, ran.err
    assert message in ran.err
