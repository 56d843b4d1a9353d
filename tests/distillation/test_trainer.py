"""EpicTrainer: the same trajectories as what it must equal, logs, resuming, and what it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer

import foveal
from foveal.distillation import EpicConfig, EpicTrainer
from foveal.loading import recorded_compressor
from support.tiny import IMAGE, TOKENS, llava

STEPS = 6


def dataset(size: int = 24) -> list[dict[str, Tensor]]:
    """One image each, a prompt, and answers of 1 to 3 tokens."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for index in range(size):
        text = torch.randint(10, 100, (8,), generator=generator)
        ids = torch.cat([torch.tensor([1]), torch.full((TOKENS,), IMAGE), text])
        labels = torch.full_like(ids, -100)
        answers = 1 + index % 3
        labels[-answers:] = ids[-answers:]
        pixels = torch.randn(3, 24, 24, generator=generator, dtype=torch.float64)
        samples.append({"input_ids": ids, "labels": labels, "pixel_values": pixels})
    return samples


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


def train(
    path: Path, trainer: type[Trainer] = EpicTrainer, resume: str | None = None, **options: Any
) -> Trainer:
    config = EpicConfig(
        **{
            "output_dir": str(path),
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            **options,
        }
    )
    model = llava().train()
    run = trainer(model=model, args=config, train_dataset=dataset(), data_collator=collate)
    run.train(resume_from_checkpoint=resume)
    return run


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


def difference(one: Trainer, other: Trainer) -> float:
    left, right = weights(one), weights(other)
    return max((left[name] - right[name]).abs().max().item() for name in left)


def test_without_compression_it_is_the_plain_trainer(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", Trainer)
    # The library's loss rounds logits to float32.
    options = {"tower_learning_rate": 1e-2}
    assert difference(train(tmp_path / "none", schedule="none", **options), plain) < 1e-5
    assert difference(train(tmp_path / "direct", schedule="direct", **options), plain) > 1e-4


@pytest.mark.parametrize("schedule", ["direct", "none"])
def test_accumulated_micro_batches_equal_one_batch(tmp_path: Path, schedule: str) -> None:
    whole = train(tmp_path / "whole", schedule=schedule)
    parts = train(
        tmp_path / "parts", schedule=schedule, per_device_train_batch_size=1, gradient_accumulation_steps=4
    )
    assert difference(whole, parts) < 1e-9
    losses = [[row["loss"] for row in run.state.log_history if "loss" in row] for run in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_log_tells_the_schedule(tmp_path: Path) -> None:
    rows = [row for row in train(tmp_path, schedule="tcd").state.log_history if "loss" in row]
    assert len(rows) == STEPS
    for step, row in enumerate(rows):
        removed, t = 1 - row["student_keep"], step / (STEPS - 1)
        assert 0.5 * t - 1e-6 <= removed <= 0.05 + 0.85 * t + 1e-6
        assert row["gap"] == pytest.approx(row["teacher_keep"] - row["student_keep"], abs=1e-6)
        assert row["loss"] == pytest.approx(0.3 * row["sft_loss"] + 0.7 * row["kd_loss"], abs=1e-4)
    assert rows[-1]["kd_loss"] > 0


def test_lambda_one_trains_on_the_teacher_alone(tmp_path: Path) -> None:
    rows = train(tmp_path, schedule="tcd", distill_weight=1.0).state.log_history
    assert all(row["loss"] == pytest.approx(row["kd_loss"], abs=1e-4) for row in rows if "kd_loss" in row)


@pytest.mark.parametrize("method", ["dart", "random"])
def test_a_resumed_run_follows_the_same_trajectory(tmp_path: Path, method: str) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "method": method, "gradient_accumulation_steps": 2}
    unbroken = train(tmp_path, per_device_train_batch_size=2, **options)
    again = train(tmp_path, per_device_train_batch_size=2, resume=str(tmp_path / "checkpoint-2"), **options)
    assert difference(unbroken, again) == 0
    tail = [[row for row in run.state.log_history if row.get("step", 0) > 2] for run in (unbroken, again)]
    assert [row["student_keep"] for row in tail[0][:-1]] == [row["student_keep"] for row in tail[1][:-1]]


def test_evaluation_uses_the_compression_the_model_is_meant_for(tmp_path: Path) -> None:
    run = train(tmp_path, schedule="direct", keep=0.25)
    run.args.keep = 0.25
    metrics = run.evaluate(dataset(4))
    batch = collate(dataset(4))
    model = run.model.eval()
    with torch.no_grad(), foveal.compress(model, foveal.DART(keep=0.25)):
        expected = model(**batch).loss.item()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_checkpoint_is_ordinary_and_names_its_compressor(tmp_path: Path) -> None:
    run = train(tmp_path, method="fastv", layer=3, keep=0.25)
    run.save_model(str(tmp_path / "saved"))
    plain = type(run.model).from_pretrained(tmp_path / "saved", dtype=torch.float64)
    assert torch.equal(plain.lm_head.weight, run.model.lm_head.weight)
    assert recorded_compressor(plain) == foveal.FastV(keep=0.25, layer=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "icd2"}, "unknown schedule 'icd2'"),
        ({"distill_weight": 1.2}, "distill_weight=1.2"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"method": "dartt"}, "unknown method 'dartt'"),
        ({"keep": 0.0}, "keep=0.0"),
        ({"gap_end": 1.0}, "gap="),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(foveal.FovealError, match=message):
        EpicConfig(output_dir=str(tmp_path), use_cpu=True, **options)


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    config = EpicConfig(output_dir=str(tmp_path), use_cpu=True)
    assert (config.weight(0.3), config.layer, config.method, config.schedule) == (0.7, 2, "dart", "tcd")
    assert (config.learning_rate, config.warmup_steps, config.weight_decay) == (2e-5, 0.03, 0.0)
    assert config.lr_scheduler_type == "cosine"
