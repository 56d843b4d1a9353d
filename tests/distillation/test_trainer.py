"""EpicTrainer: the same trajectories as what it must equal, logs, resuming, and what it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

import foveal
from foveal.distillation import EpicConfig, EpicTrainer, meters
from foveal.loading import recorded_compressor
from support import training
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
        ({"on_bad_sample": "ignore"}, "unknown on_bad_sample 'ignore'"),
        ({"tokens_per_batch": 0}, "tokens_per_batch=0"),
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


# ---------------------------------------------------------------------- on conversations


def test_a_data_set_of_text_alone_trains(tmp_path: Path) -> None:
    trainer = training.make_trainer(tmp_path, training.conversations(8, text_only=lambda _: True))
    before = training.weights(trainer)
    trainer.train()
    assert training.losses(trainer)[-1] < training.losses(trainer)[0]
    changed = {
        name for name, tensor in training.weights(trainer).items() if not torch.equal(tensor, before[name])
    }
    assert "lm_head.weight" in changed
    assert not any("multi_modal_projector" in name for name in changed)


def test_text_alone_has_nothing_to_distil(tmp_path: Path) -> None:
    trainer = training.make_trainer(
        tmp_path, training.conversations(8, text_only=lambda _: True), schedule="tcd"
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert all(row["kd_loss"] == pytest.approx(0, abs=1e-12) for row in rows)


def bad(samples: list[Any], *places: int) -> list[Any]:
    """The samples with a missing picture at some places."""
    return [{**x, "images": [Path("nowhere.png")]} if i in places else x for i, x in enumerate(samples)]


def test_a_bad_sample_stops_the_run(tmp_path: Path) -> None:
    trainer = training.make_trainer(tmp_path, bad(training.conversations(8), 0))
    with pytest.raises(foveal.FovealError, match=r"nowhere\.png"):
        trainer.train()


def test_bad_samples_are_skipped_and_counted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"on_bad_sample": "skip", "max_steps": 4, "per_device_train_batch_size": 2}
    (tmp_path / "skipped.jsonl").write_text("of an earlier run")
    training.make_trainer(tmp_path, bad(training.conversations(4), 0, 3), **options).train()
    assert f"2 samples were skipped, see {tmp_path / 'skipped.jsonl'}" in caplog.messages


def test_a_step_of_bad_samples_alone_changes_nothing(tmp_path: Path) -> None:
    samples = bad(training.conversations(4), 0, 1, 3)[:2]
    options = {"on_bad_sample": "skip", "max_steps": 2, "logging_nan_inf_filter": False}
    trainer = training.make_trainer(tmp_path, samples, **options)
    before = training.weights(trainer)
    with pytest.raises(foveal.FovealError, match="nothing was learnt: every sample was skipped"):
        trainer.train()
    assert training.difference(training.weights(trainer), before) == 0
    assert training.losses(trainer) == [0, 0]


def sizes_of_batches(trainer: EpicTrainer) -> list[tuple[int, int]]:
    """(samples, rows) of each micro-batch of an epoch."""
    return [tuple(batch["input_ids"].shape) for batch in trainer.get_train_dataloader()]


def test_batches_have_a_budget_of_tokens(tmp_path: Path) -> None:
    trainer = training.make_trainer(tmp_path, training.conversations(24), tokens_per_batch=160)
    sizes = sizes_of_batches(trainer)
    assert sum(samples for samples, _ in sizes) == 24
    assert all(samples * rows <= 160 for samples, rows in sizes)
    assert max(samples for samples, _ in sizes) > 2
    trainer.train()
    assert len(training.losses(trainer)) == 6


def test_conversations_are_grouped_by_length(tmp_path: Path) -> None:
    def padding(strategy: str) -> int:
        trainer = training.make_trainer(
            tmp_path, training.conversations(120), train_sampling_strategy=strategy
        )
        return sum(int((1 - batch["attention_mask"]).sum()) for batch in trainer.get_train_dataloader())

    assert padding("group_by_length") < padding("random") / 2


@pytest.mark.parametrize(
    "options", [{"tokens_per_batch": 160}, {"train_sampling_strategy": "group_by_length"}]
)
def test_batches_by_length_resume_in_a_later_epoch(tmp_path: Path, options: dict[str, Any]) -> None:
    options |= {"save_strategy": "steps", "save_steps": 5, "max_steps": 8}
    unbroken, again = (
        training.make_trainer(tmp_path, training.conversations(8), **options) for _ in range(2)
    )
    unbroken.train()
    assert unbroken.state.epoch > 1
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert training.difference(training.weights(unbroken), training.weights(again)) == 0


def test_a_token_budget_needs_conversations(tmp_path: Path) -> None:
    with pytest.raises(foveal.FovealError, match="tokens_per_batch needs conversations and VisionCollator"):
        train(tmp_path, tokens_per_batch=100)


# ---------------------------------------------------------------------- best, early, logged


def graded(trainer: EpicTrainer, grades: list[float]) -> None:
    """Let evaluations say these losses, one after the other."""
    evaluate, left = trainer.evaluation_loop, iter(grades)

    def grade(*args: Any, **kwargs: Any) -> Any:
        output = evaluate(*args, **kwargs)
        output.metrics["eval_loss"] = next(left)
        return output

    trainer.evaluation_loop = grade  # type: ignore[method-assign]


EVALUATED: dict[str, Any] = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "load_best_model_at_end": True,
    "eval_dataset": training.conversations(2),
}


def test_the_best_model_is_there_at_the_end(tmp_path: Path) -> None:
    trainer = training.make_trainer(tmp_path, save_total_limit=1, **EVALUATED)
    graded(trainer, [3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    best = type(trainer.model).from_pretrained(tmp_path / "checkpoint-2", dtype=torch.float64)
    last = training.make_trainer(tmp_path / "other")
    last.train()
    found = training.weights(trainer)
    assert training.difference(found, best.state_dict()) == 0
    assert training.difference(found, training.weights(last)) > 1e-3


def test_it_stops_early_and_a_resumed_run_counts_on(tmp_path: Path) -> None:
    options = {**EVALUATED, "patience": 3, "max_steps": 9}
    trainer = training.make_trainer(tmp_path, **options)
    graded(trainer, [3.0, 1.0, *[2.0] * 7])
    trainer.train()
    assert trainer.state.global_step == 5
    again = training.make_trainer(tmp_path, **options)
    graded(again, [2.0] * 7)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.state.global_step == 5
    assert training.difference(training.weights(trainer), training.weights(again)) == 0


def test_what_is_logged_can_be_drawn(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    class Board(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            seen.append(dict(logs))

    own = {"eval_dataset": training.conversations(2), "eval_strategy": "steps", "eval_steps": 2}
    trainer = training.make_trainer(tmp_path, schedule="lcd", logging_steps=2, callbacks=[Board()], **own)
    trainer.train()
    names = {"student_keep", "teacher_keep", "gap", "layer", "sft_loss", "kd_loss"}
    rates = {"samples_per_second", "tokens_per_second"}
    training_logs = [logs for logs in seen if "loss" in logs]
    assert len(training_logs) == 3
    assert set().union(*training_logs) > names | rates
    assert all(logs.keys() >= rates for logs in training_logs)
    assert all(type(value) in (int, float) for logs in seen for value in logs.values())
    assert sum("eval_loss" in logs for logs in seen) == 3


def test_evaluation_and_saving_do_not_count_as_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(meters.time, "perf_counter", lambda: clock[0])
    options = {**EVALUATED, "logging_steps": 3, "max_steps": 3}
    trainer = training.make_trainer(tmp_path, **options)

    def slow(method: Any, seconds: float) -> Any:
        def slowed(*args: Any, **kwargs: Any) -> Any:
            clock[0] += seconds
            return method(*args, **kwargs)

        return slowed

    trainer.training_step = slow(trainer.training_step, 1)  # type: ignore[method-assign]
    trainer.evaluation_loop = slow(trainer.evaluation_loop, 100)  # type: ignore[method-assign]
    trainer.save_model = slow(trainer.save_model, 100)  # type: ignore[method-assign]
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "loss" in row]
    assert row["samples_per_second"] == pytest.approx(3 * 4 / 3)


def test_patience_needs_evaluations(tmp_path: Path) -> None:
    with pytest.raises(foveal.FovealError, match="patience counts evaluations: set eval_strategy"):
        training.make_trainer(tmp_path, patience=2)


def test_several_gpus_in_one_process_are_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = EpicConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    config.device  # noqa: B018 (counts the GPUs)
    config._n_gpu = 2
    EpicTrainer(model=llava(), args=config, data_collator=collate)
    assert config.n_gpu == 1
    assert "training on 1 of 2 GPUs: start with `torchrun --nproc_per_node 2` to use all" in caplog.messages


def test_a_teacher_that_sees_all_is_logged_as_one(tmp_path: Path) -> None:
    rows = [row for row in train(tmp_path, teacher="all").state.log_history if "loss" in row]
    assert all(row["teacher_keep"] == 1 for row in rows)
    assert all(row["gap"] == pytest.approx(1 - row["student_keep"]) for row in rows)


def test_prediction_has_losses_alone(tmp_path: Path) -> None:
    trainer = train(tmp_path, max_steps=1)
    found = trainer.predict(dataset(4))
    assert found.predictions is None
    assert found.metrics["test_loss"] == pytest.approx(trainer.evaluate(dataset(4))["eval_loss"])


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({"label_smoothing_factor": 0.1}, {}),
        ({"torch_compile": True}, {}),
        ({}, {"compute_metrics": lambda _: {}}),
        ({}, {"compute_loss_func": lambda *_: 0}),
    ],
)
def test_what_would_have_no_effect_is_refused(
    tmp_path: Path, options: dict[str, Any], more: dict[str, Any]
) -> None:
    config = EpicConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **options)
    name = next(iter({**options, **more}))
    with pytest.raises(foveal.FovealError, match=f"cannot do anything with {name}"):
        EpicTrainer(llava(), config, collate, dataset(), **more)


def test_a_teacher_shallower_than_the_path_is_refused(tmp_path: Path) -> None:
    teacher = llava(layers=4)
    teacher.save_pretrained(tmp_path / "teacher")
    training.processor().save_pretrained(tmp_path / "teacher")
    options = {"teacher_model": str(tmp_path / "teacher"), "max_steps": 2}
    with pytest.raises(foveal.FovealError, match="teacher_model has 4 decoder layers and the student 6"):
        train(tmp_path, schedule="lcd", **options)
    rows = train(tmp_path, schedule="tcd", **options).state.log_history
    assert rows[0]["kd_loss"] > 0


def test_a_second_run_of_a_trainer_begins_anew(tmp_path: Path) -> None:
    trainer = train(tmp_path, logging_steps=4)
    again = trainer.state.log_history[0]
    trainer.train()
    assert trainer.state.log_history[0]["student_keep"] == again["student_keep"]


def test_an_evaluation_batch_of_bad_samples_alone_does_not_count(tmp_path: Path) -> None:
    trainer = training.make_trainer(tmp_path, on_bad_sample="skip", per_device_eval_batch_size=2)
    samples = training.conversations(4, text_only=lambda _: False)
    expected = trainer.evaluate(samples[2:])["eval_loss"]
    assert trainer.evaluate(bad(samples, 0, 1))["eval_loss"] == pytest.approx(expected)
