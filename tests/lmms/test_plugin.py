"""lmms-eval finds the model, hands it arguments and gets what it wants back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmms_eval.tasks
import pytest
import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.models import get_model
from loguru import logger
from PIL import Image

import foveal
from foveal.compression import attached
from foveal.loading import record_compressor
from foveal.suite import answering
from foveal.suite.answering import Answerer
from foveal.suite.benchmarks import BENCHMARKS
from foveal.suite.lmms import FovealModel
from foveal.suite.tasks import task_config


def made(arguments: str = "", **additional: Any) -> FovealModel:
    return FovealModel.create_from_arg_string(arguments, additional)


def test_the_entry_point_is_found() -> None:
    assert get_model("foveal") is FovealModel


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", ()),
        ("method=none", ()),
        ("method=dart,keep=64,layer=2", (foveal.DART(keep=64, layer=2),)),
        ("method=dart,keep=1/9", (foveal.DART(keep=1 / 9),)),
        ("method=dart,keep=0.25,positions=packed", (foveal.DART(keep=0.25, positions="packed"),)),
        ("method=dart,keep=16,parity=True", (foveal.DART(keep=16, parity=True),)),
        ("method=DART,keep=1.0,image_pivots=2", (foveal.DART(keep=1.0, image_pivots=2),)),
        ("method=random,keep=16,seed=5", (foveal.Random(keep=16, seed=5),)),
        ("method=fastv,keep=16,seed=5", (foveal.FastV(keep=16),)),
        ("method=prumerge,keep=auto", (foveal.PruMerge(keep="auto"),)),
        ("method=pyramiddrop,keep=16,layers=[2,4,5]", (foveal.PyramidDrop(keep=16, layers=(2, 4, 5)),)),
        (
            "stages=[{method: random, keep: 0.5, layer: 0}, {method: dart, keep: 1/9, layer: 3}]",
            (foveal.Random(keep=0.5, layer=0), foveal.DART(keep=1 / 9, layer=3)),
        ),
    ],
)  # fmt: skip
def test_arguments_make_methods(arguments: str, expected: tuple[Any, ...]) -> None:
    assert made(arguments).answerer.methods == expected


def test_other_arguments() -> None:
    model = made(
        "dtype=bfloat16,attn_implementation=eager,max_new_tokens=3,seed=4,device=cpu", batch_size="8"
    )
    answerer = model.answerer
    assert (answerer.batch_size, answerer.max_new_tokens, answerer.seed) == (8, 3, 4)
    assert answerer.model.dtype == torch.bfloat16
    assert answerer.model.config._attn_implementation == "eager"
    assert model.device == torch.device("cpu")
    spread = made("device_map=auto").answerer.model
    assert spread.hf_device_map == {"": "cpu"}


def test_a_checkpoint_keeps_its_own_method_unless_another_is_asked_for(tmp_path: Path) -> None:
    model, processor = foveal.load()
    record_compressor(model, foveal.FastV(keep=9))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert made(f"pretrained={tmp_path}").answerer.methods == (foveal.FastV(keep=9),)
    assert made(f"pretrained={tmp_path},method=none").answerer.methods == ()
    assert made(f"pretrained={tmp_path},method=dart,keep=4").answerer.methods == (foveal.DART(keep=4),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("keep=64", "keep: belongs to a method"),
        ("method=none,layer=2", "layer: belongs to a method"),
        ("method=dart", "method=dart needs a budget"),
        ("method=dart,keep=many", "^keep=many: pass a number of tokens"),
        ("method=dart,keep=16,colour=red", "colour"),
        ("method=magic,keep=16", "unknown method 'magic'"),
        ("method=dart,keep=16,layer=99", "layer=99"),
        ("stages=dart", "pass a list such as"),
        ("method=dart,stages=[{method: dart}]", "method: belongs to a method"),
        ("dtype=int8", "dtype=int8: pass float32"),
        ("device_map=balanced", "device_map=balanced: only auto"),
        ("attn_implementation=magic", "attn_implementation=magic"),
        ("batch_size=auto", "batch_size=auto: pass a whole number"),
        ("pretrained=/no/such/folder", "cannot load a vision-language model"),
    ],
)
def test_bad_arguments_are_named(arguments: str, message: str) -> None:
    with pytest.raises(foveal.FovealError, match=message):
        made(arguments)


def instance(arguments: tuple[Any, ...], **metadata: Any) -> Instance:
    return Instance("generate_until", arguments, 0, {"task": "t", "doc_id": 0, "repeats": 1, **metadata})


def request(row: int, chat: bool = True, **metadata: Any) -> Instance:
    """As a chat task makes it, or as a task that was loaded for models without chat."""
    wanted = {"max_new_tokens": 4}
    if chat:
        return instance(("is there a cat?", messages, wanted, row, "t", "test"), **metadata)
    return instance(
        ("is there a cat?", wanted, lambda document: [document["image"]], row, "t", "test"), **metadata
    )


def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
    parts = [{"type": "image", "url": document["image"]}, {"type": "text", "text": "is there a cat?"}]
    return [{"role": "user", "content": parts}]


DOCUMENTS = [
    {"image": Image.new("RGB", (60 + 9 * row, 50), colour)} for row, colour in enumerate(("red", "blue"))
]


def plugin(loaded: tuple[Any, Any], *methods: Any, **options: Any) -> FovealModel:
    model = FovealModel(Answerer(*loaded, methods, batch_size=2), **options)
    model.task_dict = {"t": {"test": [*DOCUMENTS, {"image": "gone.png"}]}}
    return model


def test_both_kinds_of_requests_ask_the_same(loaded: tuple[Any, Any]) -> None:
    expected = plugin(loaded).generate_until([request(0), request(1)])
    assert plugin(loaded).generate_until([request(0, chat=False), request(1, chat=False)]) == expected
    assert all(isinstance(answer, GenerationResult) and answer.text for answer in expected)
    assert expected[0].token_counts.input_tokens > 144
    assert 0 < expected[0].token_counts.output_tokens <= 4


def test_padding_of_other_processes_is_not_asked(loaded: tuple[Any, Any]) -> None:
    told: list[tuple[int, int]] = []
    model = plugin(loaded, report=lambda done, total: told.append((done, total)))
    answers = model.generate_until([request(0), request(0, __padding_only__=True)])
    assert told == [(1, 1)]
    assert [bool(answer.text) for answer in answers] == [True, False]
    assert model.generate_until([]) == []


def test_a_question_that_fails_has_no_answer_and_is_told(loaded: tuple[Any, Any]) -> None:
    told: list[str] = []
    sink = logger.add(told.append, level="ERROR", format="{message}")
    answers = plugin(loaded).generate_until([request(2), request(1)])
    logger.remove(sink)
    assert answers[0] == GenerationResult(text="")
    assert answers[1].text
    assert told == ["not answered, counted as wrong: t 2: no such image: gone.png\n"]


def test_a_system_prompt_is_said_first(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    encode = answering.encode

    def reading(processor: Any, chats: Any) -> Any:
        inputs = encode(processor, chats)
        seen.extend(processor.batch_decode(inputs["input_ids"], skip_special_tokens=True))
        return inputs

    monkeypatch.setattr(answering, "encode", reading)
    plugin(loaded, system_prompt="be brief").generate_until([request(0)])
    assert "be brief" in seen[0]


def test_the_model_is_let_go(loaded: tuple[Any, Any]) -> None:
    model = plugin(loaded, foveal.DART(keep=9))
    model.generate_until([request(0)])
    model.clean()
    assert not hasattr(model, "answerer")
    shared = plugin(loaded, shared=True)
    shared.clean()
    assert shared.generate_until([request(0)])
    assert attached(loaded[0]) == ()


def test_other_kinds_of_tasks_are_refused(loaded: tuple[Any, Any]) -> None:
    for refused in (plugin(loaded).loglikelihood, plugin(loaded).generate_until_multi_round):
        with pytest.raises(foveal.FovealError, match=r"t: asks for .* leave the task out"):
            refused([request(0)])


def test_the_command_line(scenes: Path, tmp_path: Path) -> None:
    config = task_config(BENCHMARKS["pope"], scenes)
    source = {"dataset_path": config["dataset_path"], "dataset_kwargs": config["dataset_kwargs"]}
    (tmp_path / "tasks").mkdir()
    include = str(Path(lmms_eval.tasks.__path__[0]) / "pope" / "pope.yaml")
    lines = {"include": include, "task": "scene_pope", "dataset_name": None, **source}
    (tmp_path / "tasks" / "scene_pope.yaml").write_text(json.dumps(lines))
    command = [sys.executable, "-m", "lmms_eval", "--model", "foveal", "--batch_size", "4", "--limit", "6"]
    command += ["--model_args", "method=dart,keep=16,layer=2,max_new_tokens=4", "--tasks", "scene_pope"]
    command += ["--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out")]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").rglob("*results.json")
    results = json.loads(file.read_text())
    assert 0 <= results["results"]["scene_pope"]["pope_accuracy,none"] <= 1
    assert results["throughput"]["avg_visual_tokens_kept"] == 16
    assert results["throughput"]["avg_visual_tokens_per_layer"] == 48
    assert "temperature" not in done.stderr
