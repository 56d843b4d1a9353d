"""Two processes (DDP and FSDP2 on the CPU) train as one does, with micro-batches of text alone among them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from torch import Tensor
from transformers import Trainer, TrainerState

import foveal
from foveal.distillation import EpicConfig, EpicTrainer
from foveal.distillation.adapters import with_adapters
from support.training import (
    conversations,
    difference,
    in_two_processes,
    losses,
    make_trainer,
    model,
    weights,
)

SCHEDULES = ("tcd", "lcd", "icd")
WHOLE: dict[str, Any] = {"per_device_train_batch_size": 4}
QUARTERS: dict[str, Any] = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
HALVES: dict[str, Any] = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
FSDP: dict[str, Any] = {"fsdp": True, "fsdp_config": {"version": 2}}
SHARDED: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"},
}
SAVING: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
BY_LENGTH: dict[str, dict[str, Any]] = {
    "by length": {"train_sampling_strategy": "group_by_length"},
    "by tokens": {"tokens_per_batch": 160},
}
TOLERANCE = 1e-6

Result = tuple[dict[str, Tensor], list[float]]


def run(folder: Path, resume: Path | None = None, **options: Any) -> EpicTrainer:
    """A finished run on 8 conversations: two steps an epoch, so that checkpoints lie within a later one."""
    trainer = make_trainer(folder, conversations(8), **options)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def result(trainer: EpicTrainer) -> Result:
    return weights(trainer), losses(trainer)


def apart(found: Result, expected: Result) -> float:
    """How far two runs are from each other, in weights and in losses (which Trainer adds up in float32)."""
    assert len(found[1]) == len(expected[1])
    of_losses = max(abs(one - other) / other for one, other in zip(found[1], expected[1], strict=True))
    return max(difference(found[0], expected[0]), of_losses)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_accumulated_micro_batches_equal_one_batch(tmp_path: Path, schedule: str) -> None:
    whole = run(tmp_path, schedule=schedule, max_steps=20, **WHOLE)
    parts = run(tmp_path, schedule=schedule, max_steps=20, **QUARTERS)
    assert apart(result(parts), result(whole)) < TOLERANCE
    assert difference(weights(whole), model().state_dict()) > 1e-2
    taught = [row["kd_loss"] for row in whole.state.log_history if "kd_loss" in row]
    assert max(taught) > 1e-3, "nothing was distilled: this test is blind"


def together(folder: Path) -> dict[str, Any]:
    """What each of two processes finds."""
    found: dict[str, Any] = {}
    for schedule in SCHEDULES:
        trainer = make_trainer(folder / schedule, conversations(8), schedule=schedule, max_steps=20, **HALVES)
        without_image = note_text_only(trainer)
        trainer.train()
        found[f"DDP {schedule}"] = result(trainer)
    found["without image"] = without_image
    with late_second() as whole:
        found["DDP saves"] = result(run(folder / "ddp", **SAVING, **HALVES))
    found["whole when it says so"] = whole
    resumed = run(folder / "again", folder / "ddp" / "checkpoint-3", **SAVING, **HALVES)
    found["DDP resumes"] = result(resumed)
    resumed = run(folder / "other", folder / "one" / "checkpoint-3", **SAVING, **HALVES)
    found["DDP resumes from one"] = result(resumed)
    for name, options in BY_LENGTH.items():
        unbroken = run(folder / name, **options, **SAVING, **HALVES)
        resumed = run(folder / f"{name} again", folder / name / "checkpoint-3", **options, **SAVING, **HALVES)
        found[name] = apart(result(resumed), result(unbroken))
    trainer = run(folder / "fsdp", **SAVING, **HALVES, **FSDP)
    trainer.save_model(str(folder / "saved"))
    found["FSDP2 saves"] = result(trainer)
    found["FSDP2"] = type(trainer.model_wrapped).__name__
    resumed = run(folder / "third", folder / "fsdp" / "checkpoint-3", **SAVING, **HALVES, **FSDP)
    found["FSDP2 resumes"] = result(resumed)
    try:
        run(folder / "fourth", folder / "ddp" / "checkpoint-3", **SAVING, **HALVES, **FSDP)
    except foveal.FovealError as error:
        found["refused"] = str(error)
    return found


@contextmanager
def late_second() -> Iterator[list[bool]]:
    """Let the second process be late to save; yields whether its file is there when a checkpoint is called whole."""
    seen: list[bool] = []
    save, call_whole = Trainer._save_rng_state, TrainerState.save_to_json

    def late(self: Trainer, folder: str) -> None:
        time.sleep(self.args.process_index * 0.3)
        save(self, folder)

    def noting(self: TrainerState, path: str) -> None:
        seen.append(Path(path).with_name("rng_state_1.pth").is_file())
        call_whole(self, path)

    Trainer._save_rng_state, TrainerState.save_to_json = late, noting  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Trainer._save_rng_state, TrainerState.save_to_json = save, call_whole  # type: ignore[method-assign]


def note_text_only(trainer: EpicTrainer) -> list[bool]:
    """Of each micro-batch to come, whether it is text alone."""
    seen: list[bool] = []
    join = trainer._stand_in.join

    def noting(inputs: dict[str, Any], labels: Tensor) -> Any:
        seen.append("pixel_values" not in inputs)
        return join(inputs, labels)

    trainer._stand_in.join = noting  # type: ignore[method-assign]
    return seen


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    alone = {name: result(run(tmp_path, schedule=name, max_steps=20, **WHOLE)) for name in SCHEDULES}
    saved = result(run(tmp_path / "one", **SAVING, **QUARTERS))
    first, second = in_two_processes(together, tmp_path)
    assert first["FSDP2"] == "FSDPLlavaForConditionalGeneration"
    both = list(zip(first["without image"], second["without image"], strict=True))
    assert {(True, False), (False, True)} <= set(both), (
        "no rank was left without an image: this test is blind"
    )

    assert first["whole when it says so"] == [True, True]
    assert first["refused"].startswith(f"{tmp_path / 'ddp' / 'checkpoint-3'} was saved without FSDP")
    assert [first[name] for name in BY_LENGTH] == [0, 0]

    expected = {f"DDP {name}": alone[name] for name in SCHEDULES}
    expected |= dict.fromkeys(["DDP saves", "DDP resumes", "DDP resumes from one"], saved)
    expected |= dict.fromkeys(["FSDP2 saves", "FSDP2 resumes"], saved)
    differences = {name: apart(first[name], wanted) for name, wanted in expected.items()}
    for name in ("ddp", "fsdp"):
        resumed = run(tmp_path / f"{name} in one", tmp_path / name / "checkpoint-3", **SAVING, **QUARTERS)
        differences[f"{name} resumed in one"] = apart(result(resumed), saved)
    assert {name: found for name, found in differences.items() if found > TOLERANCE} == {}
    assert len(differences) == 10

    plain = type(model()).from_pretrained(tmp_path / "saved", dtype=torch.float64)
    assert difference(weights_of(plain), first["FSDP2 saves"][0]) == 0
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["architectures"], config["foveal"]["method"]) == (
        ["LlavaForConditionalGeneration"],
        "dart",
    )
    loaded, _ = foveal.load(tmp_path / "ddp" / "checkpoint-6", dtype=torch.float64)
    assert difference(weights_of(loaded), first["DDP saves"][0]) == 0


def weights_of(learner: Any) -> dict[str, Tensor]:
    return dict(learner.state_dict())


# ---------------------------------------------------------------------- everything else


CHECKPOINTED: dict[str, Any] = {"activation_checkpointing": True}
FSDP_CHECKPOINTED: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {"version": 2, "activation_checkpointing": True},
}
ADAPTED: dict[str, Any] = {"projector_learning_rate": 1e-2, "lora_rank": 2, "lora_dropout": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "lcd": {"schedule": "lcd"},
    "icd": {"schedule": "icd"},
    "without a teacher": {"schedule": "direct"},
    "two forwards": {"method": "visionzip", "keep": 0.25},
    "attention": {"method": "fastv"},
    "tower": {"tower_learning_rate": 1e-2},
    "adapters": ADAPTED,
}


def cases() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, options of the run, options of the two processes)."""
    for name, options in VARIANTS.items():
        yield f"DDP {name}", options, {}
        yield f"DDP, checkpointed, {name}", options, CHECKPOINTED
        yield f"FSDP2 {name}", options, FSDP
    yield "FSDP2, checkpointed", {}, FSDP_CHECKPOINTED
    yield "FSDP2, checkpointed by the model", {}, {**FSDP, **CHECKPOINTED}


def short(folder: Path, **options: Any) -> EpicTrainer:
    learner = model()
    if "lora_rank" in options:
        torch.manual_seed(0)
        learner = with_adapters(learner, EpicConfig(output_dir=str(folder), use_cpu=True, **options)).double()
    return run(folder, learner=learner, max_steps=6, **options)


def all_together(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: result(short(folder / name, **{**options, **HALVES, **own})) for name, options, own in cases()
    }
    trainer = run(folder / "sharded", **SAVING, **HALVES, **SHARDED)
    trainer.save_model(str(folder / "saved"))
    found["sharded"] = result(trainer)
    resumed = run(folder / "more", folder / "sharded" / "checkpoint-3", **SAVING, **HALVES, **SHARDED)
    found["sharded, resumed"] = result(resumed)
    return found


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_every_way_to_train_in_two_processes(tmp_path: Path) -> None:
    alone = {name: result(short(tmp_path, **options, **WHOLE)) for name, options in VARIANTS.items()}
    plain = result(short(tmp_path, **WHOLE))
    saved = result(run(tmp_path / "one", **SAVING, **QUARTERS))
    first, _ = in_two_processes(all_together, tmp_path)
    differences = {name: apart(first[name], saved) for name in ("sharded", "sharded, resumed")}
    for name, _options, _own in cases():
        variant = next((alone[variant] for variant in VARIANTS if name.endswith(f" {variant}")), plain)
        differences[name] = apart(first[name], variant)
    assert {name: found for name, found in differences.items() if found > TOLERANCE} == {}
    consolidated = type(model()).from_pretrained(tmp_path / "saved", dtype=torch.float64)
    assert difference(weights_of(consolidated), first["sharded"][0]) == 0


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero3"])
def test_accelerate_understands_the_settings_that_come_with_foveal(name: str) -> None:
    path = Path(foveal.__file__).parent / "recipes" / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    known = vars(launch_command_parser().parse_args(["script.py"]))
    assert not (config.fsdp_config | config.deepspeed_config).keys() - known.keys()
    assert config.mixed_precision == "bf16"
    kind = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}[name]
    assert config.distributed_type == kind
    if name == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
    if name == "zero3":
        assert (config.deepspeed_config["zero_stage"], config.deepspeed_config["zero3_save_16bit_model"]) == (
            3,
            True,
        )
