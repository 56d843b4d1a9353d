from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from foveal.cli.train import fine_tune
from foveal.mini import SceneConversations
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
    assert not list(out.glob("checkpoint-*"))
    assert any("language_model" in name for name in changed)
    assert any("projector" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)


class Interrupted:
    """Samples that are cut off, as by kill, once `after` of them were used."""

    def __init__(self, samples: Any, after: int) -> None:
        self.samples, self.left = samples, after

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.samples[index]


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    samples = SceneConversations("train", 12, turns=2)
    options = {
        "label": "",
        "save_steps": 2,
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "method": "random",
    }
    unbroken, stopped, resumed = vlm.model(), vlm.model(), vlm.model()
    fine_tune(unbroken, vlm.processor(), samples, folder=tmp_path / "unbroken", **options)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(
            stopped, vlm.processor(), Interrupted(samples, after=9), folder=tmp_path / "killed", **options
        )
    (tmp_path / "killed" / "checkpoint-5").mkdir()  # the kill came while a checkpoint was being written
    fine_tune(resumed, vlm.processor(), samples, folder=tmp_path / "killed", **options)
    for (name, expected), found in zip(unbroken.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(found, expected), name


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
        (["--schedule", "lcdd"], "unknown schedule 'lcdd'"),
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
