"""The recipe: stages freeze what they must, learn, and go on after a kill along the same trajectory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from foveal.mini.architecture import build_llava
from foveal.mini.learner import Learner, make_batch
from foveal.mini.packing import IGNORE, Codec
from foveal.mini.stages import STAGES, Lesson, Stage, lesson
from foveal.mini.tokenizer import build_tokenizer
from foveal.mini.train import Trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")


def micro(name: str) -> Stage:
    return replace(STAGES[name], steps=4, batch=2, length=200 if STAGES[name].length else 0)


def run(folder: Path, stages: list[Stage]) -> Trainer:
    trainer = Trainer(folder, save_every=2, probed=2)
    assert trainer.run(stages)
    return trainer


@pytest.mark.parametrize("name", ["mixture", "clip"])
def test_a_killed_run_goes_on_to_identical_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stages = [micro("tower"), micro(name)]
    whole = run(tmp_path / "whole", stages)
    step = Trainer._step

    def dying(self: Trainer, learner: Any, optimizer: Any, stage: Stage, number: int) -> dict[str, float]:
        if stage.name == name and number == 3:
            raise KeyboardInterrupt
        return step(self, learner, optimizer, stage, number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", dying)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", stages)
    resumed = run(tmp_path / "killed", stages)
    for one, two in ((whole.learner, resumed.learner), (whole.contrast, resumed.contrast)):
        for key, value in one.state_dict().items():
            assert torch.equal(value, two.state_dict()[key]), key
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()
    ]
    assert steps == [2, 4, 2, 4]


def test_stops_when_the_time_is_up_and_saves(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, max_minutes=0.0, probed=2)
    assert not trainer.run([micro("tower")])
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (state["stage"], state["step"], state["done"]) == ("tower", 1, [])


def test_the_tower_stage_leaves_the_decoder_alone_and_learns() -> None:
    learner = Learner(build_llava(build_tokenizer()), Codec(build_tokenizer()))
    learner.select(STAGES["tower"])
    trained = {name for name, part in learner.named_parameters() if part.requires_grad}
    assert any("vision_tower.encoder.layers.3" in name for name in trained)
    assert not any("language_model" in name or "layers.4" in name or "projector" in name for name in trained)
    learner.select(STAGES["mixture"])
    trained = {name for name, part in learner.named_parameters() if part.requires_grad}
    assert any("language_model.layers.7" in name for name in trained)
    assert not any("vision_tower.encoder.layers.4" in name for name in trained)


def test_rates_warm_up_and_fall() -> None:
    stage = replace(STAGES["mixture"], steps=1000, floor=0.1)
    rates = [stage.rate_at(step) for step in range(1000)]
    assert rates[0] == pytest.approx(stage.rate / 100)
    assert max(rates) == rates[99] == pytest.approx(stage.rate)
    assert rates[-1] == pytest.approx(stage.rate / 10, rel=0.01)
    assert rates[100:] == sorted(rates[100:], reverse=True)


def test_samples_are_fixed_by_seed_stage_and_number() -> None:
    codec = Codec(build_tokenizer())

    def sample(stage: str, seed: int, index: int) -> tuple[bytes, list[list[int]]]:
        item: Lesson = lesson(STAGES[stage], codec, seed, index)
        return item.image.tobytes(), [segment.ids for segment in item.segments]

    assert sample("lists", 0, 5) == sample("lists", 0, 5)
    different = [sample("lists", 0, 5), sample("lists", 0, 6), sample("lists", 1, 5), sample("mixture", 0, 5)]
    assert len({image for image, _ in different}) == 4


def test_the_mixture_has_easy_vqa_and_conversations() -> None:
    codec = Codec(build_tokenizer())
    lessons = [lesson(STAGES["mixture"], codec, 0, index) for index in range(200)]
    easy = sum(item.scene is None for item in lessons)
    assert 20 < easy < 65
    ends = build_tokenizer().eos_token_id
    turns = [segment.labels.count(ends) for item in lessons for segment in item.segments]
    assert set(turns) == {0, 1, 2, 3}  # an item has no end
    assert all(segment.labels[-1] != IGNORE for item in lessons for segment in item.segments)


def test_guidance_falls_as_attention_goes_to_the_object_named() -> None:
    codec = Codec(build_tokenizer())
    learner = Learner(build_llava(build_tokenizer()), codec)
    stage = STAGES["items"]
    batch = make_batch([lesson(stage, codec, 0, index) for index in range(2)], codec.prefix, 300)
    learner.select(stage)
    optimizer = torch.optim.AdamW([part for part in learner.parameters() if part.requires_grad], lr=3e-4)
    seen = []
    for _ in range(6):
        losses = learner(batch, 0.0, 1.0)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(float(losses["guide"]))
    assert seen[0] > 3.0
    assert seen[-1] < seen[0]
    assert "guide" not in learner(batch, 0.0)


@pytest.mark.parametrize("name", ["tower", "mixture"])
@pytest.mark.parametrize("easy", [False, True])
def test_every_trained_parameter_gets_a_gradient(name: str, easy: bool) -> None:
    codec = Codec(build_tokenizer())
    learner = Learner(build_llava(build_tokenizer()), codec)
    stage = replace(STAGES[name], easy=float(easy), pages=0.0)
    learner.select(stage)
    batch = make_batch([lesson(stage, codec, 0, 0)], codec.prefix, 200 if stage.length else 0)
    assert (batch.patches[0] == IGNORE).all() == easy
    learner(batch, 1.0, stage.guided)["loss"].backward()
    assert all(part.grad is not None for part in learner.parameters() if part.requires_grad)
