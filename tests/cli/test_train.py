from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import foveal
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


def losses_of(out: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((out / "training.json").read_text())["losses"]
    return found


def test_the_bundled_model_by_its_recipe_and_what_to_do_next(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "trained"
    ran = run("train", "--out", out, *SMALL)
    assert ran.code == 0
    assert "next: foveal ask photo.jpg" in ran.out
    assert set(losses_of(out)) == {"sft_loss", "kd_loss"}
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert (recipe["learning_rate"], recipe["max_steps"], recipe["most_removed_start"]) == (5e-4, 2, 0.9)
    assert "output_dir" not in recipe
    card = (out / "README.md").read_text()
    assert "4 conversations" in card
    assert str(tmp_path) not in card


def test_a_finished_run_is_not_trained_again(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "trained"
    words = ("train", "--model", checkpoint, "--data", "scenes", "--out", out, *SMALL)
    assert run(*words).code == 0
    written = (out / "model.safetensors").stat().st_mtime_ns
    again = run(*words)
    assert again.code == 0
    assert "is finished: nothing to do" in again.out
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    other = run(*words, "--schedule", "lcd")
    assert other.code == 2
    assert "holds a run with schedule=tcd, not lcd" in other.err
    assert run("train", out / "recipe.yaml", "--out", out).code == 0


def test_a_stopped_command_says_how_to_go_on_and_does(
    run: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", "--model", checkpoint, "--steps", 6, "--batch-size", 2, "--save-steps", 2)
    assert run(*words, "--out", tmp_path / "unbroken").code == 0
    with monkeypatch.context() as patch:
        samples = SceneConversations("train", 12, seed=42)
        patch.setattr("foveal.mini.SceneConversations", lambda *_, **__: Interrupted(samples, after=9))
        stopped = run(*words, "--out", tmp_path / "killed")
    assert stopped.code == 130
    assert "goes on from checkpoint-" in stopped.err
    assert run(*words, "--out", tmp_path / "killed", "--learning_rate", 1).code == 2
    resumed = run(*words, "--out", tmp_path / "killed")
    assert resumed.code == 0
    assert "going on from checkpoint-" in resumed.out
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("unbroken", "killed")]
    for name, expected in weights[0].items():
        assert torch.equal(weights[1][name], expected), name


def test_stopped_before_anything_was_saved(
    run: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = SceneConversations("train", 4)
    monkeypatch.setattr("foveal.mini.SceneConversations", lambda *_, **__: Interrupted(samples, after=1))
    ran = run("train", "--model", checkpoint, "--out", tmp_path / "out", *SMALL)
    assert ran.code == 130
    assert "begins anew, since nothing was saved yet" in ran.err


def test_adapters_are_merged_and_kept(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "trained"
    ran = run(
        "train",
        "--model",
        checkpoint,
        "--out",
        out,
        *SMALL,
        "--lora_rank",
        4,
        "--learning-rate",
        0.05,
        "--layer",
        1,
    )
    assert ran.code == 0
    model, _ = foveal.load(out)
    assert model.config.foveal["layer"] == 1
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert set(load_file(out / "model.safetensors")) == set(load_file(checkpoint / "model.safetensors"))
    kept = load_file(out / "adapter" / "adapter_model.safetensors")
    assert any("lora_A" in name for name in kept)
    assert any("projector" in name for name in kept)
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, out))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    assert all("projector" in name or ("layers" in name and "proj" in name) for name in changed)
    assert not list(out.glob("checkpoint-*"))


def test_held_out_conversations_and_the_best_checkpoint(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "is there a cat?"}, {"from": "gpt", "value": "yes"}]
    (tmp_path / "held_out.json").write_text(json.dumps([{"conversations": turns}] * 3))
    words = (
        "train",
        "--model",
        checkpoint,
        "--out",
        tmp_path / "out",
        *SMALL,
        "--eval_data",
        tmp_path / "held_out.json",
    )
    assert "say when, --eval_strategy" in run(*words).err
    ran = run(
        *words, "--eval_strategy", "steps", "--eval_steps", 1, "--save-steps", 1, "--load_best_model_at_end"
    )
    assert ran.code == 0, ran.err
    assert "eval_loss" in losses_of(tmp_path / "out")


def test_a_dry_run_trains_nothing(run: Any, tmp_path: Path) -> None:
    ran = run("train", "llava-1.5-7b", "--out", tmp_path / "out", "--dry-run")
    assert ran.code == 0
    for words in ("6,738.9", "8 x a100", "fits", "5,198 steps of 128", "ZeRO-3"):
        assert words in ran.out, words
    assert not (tmp_path / "out").exists()
    found = json.loads(run("train", "llava-1.5-7b", "--dry-run", "--json").out)
    assert (found["steps"], found["parts"]["projector"]["trained"]) == (5198, 20_979_712)
    assert {device["name"] for device in found["devices"]} >= {"rtx4090", "a100", "h100", "h200"}


def test_a_dry_run_counts_the_data_at_hand(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "is there a cat?"}, {"from": "gpt", "value": "yes"}]
    (tmp_path / "mine.json").write_text(json.dumps([{"conversations": turns}] * 64))
    words = ("train", "--model", checkpoint, "--dry-run", "--batch-size", 4)
    assert "16 steps of 4" in run(*words, "--data", tmp_path / "mine.json").out
    assert "unknown number of steps" in run(*words).out


def test_recipes_are_listed(run: Any) -> None:
    assert "llava-1.5-7b-lora" in run("train", "--list").out
    assert "qwen2.5-vl-7b" in json.loads(run("train", "--list", "--json").out)


def test_the_module_is_the_command_line() -> None:
    command = [sys.executable, "-m", "foveal", "train", "--help"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "foveal train --out my-model" in ran.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--schedule", "lcdd"], "unknown schedule 'lcdd'"),
        (["--method", "dort"], "unknown method 'dort'"),
        (["--keep", "0/3"], "keep=0"),
        (["--keep", "auto"], "--keep: invalid float value: 'auto'"),
        (["--data", "gone.json"], "no such file: gone.json"),
        (["--learnin_rate", "1"], "did you mean --learning_rate?"),
        (["--lora_rank", "2", "--lora_targets", "c_attn"], "no linear layer 'c_attn'"),
        (["--eval_strategy", "steps"], "name the --eval_data, too"),
        (["--optim", "adamw_bnb_8bit"], "bitsandbytes"),
    ],
)
def test_what_is_refused(
    run: Any, checkpoint: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    ran = run("train", "--model", checkpoint, "--out", tmp_path / "out", *SMALL, *options)
    assert ran.code == 2
    assert len(ran.err.strip().splitlines()) == 1, ran.err
    assert message in ran.err


def test_what_is_refused_of_folders_and_steps(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    for words, message in (
        (["--model", checkpoint, *SMALL], "--out: name the folder"),
        (["--model", checkpoint, "--out", checkpoint, *SMALL], "is the model itself"),
        (["--model", checkpoint, "--out", tmp_path / "out"], "--data scenes has no end"),
    ):
        ran = run("train", *words)
        assert (ran.code, len(ran.err.strip().splitlines())) == (2, 1)
        assert message in ran.err


def test_own_data_takes_one_epoch_also_on_the_bundled_model(tmp_path: Path) -> None:
    from foveal.cli.train import _recipe

    recipe = _recipe([], {"data": "chats.json", "out": str(tmp_path)})
    assert recipe.config.max_steps < 1
    assert recipe.config.learning_rate == 2e-5
    assert _recipe([], {"out": str(tmp_path)}).config.max_steps == 200


def test_json_without_a_dry_run_is_refused(run: Any, tmp_path: Path) -> None:
    ran = run("train", "--json", "--out", tmp_path)
    assert ran.code == 2
    assert "--json goes with --dry-run or --list" in ran.err


def test_the_losses_of_a_card_are_those_of_the_weights_that_are_kept() -> None:
    from foveal.cli.train_run import _last_losses

    logs = [
        {"loss": 3.0, "sft_loss": 3.0, "step": 1},
        {"eval_loss": 4.9, "step": 1},
        {"loss": 2.0, "sft_loss": 2.0, "step": 2},
        {"eval_loss": 10.9, "step": 2},
    ]
    assert _last_losses(logs, kept=1)["eval_loss"] == 4.9
    assert _last_losses(logs, kept=2)["eval_loss"] == 10.9
