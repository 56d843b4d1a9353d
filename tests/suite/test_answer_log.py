"""Answers on disk: found again by all they depend on, and by nothing less; half a line harms nobody."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import foveal
from foveal.evaluation.chat import Chat
from foveal.suite.answer_log import (
    AnswerLog,
    Given,
    digest,
    method_digest,
    setup_digest,
    weights_digest,
)
from support import tiny, vlm

YES = Given("yes", 150, 2, (16, 9), 48.5)


def test_what_was_written_is_found_by_the_next(tmp_path: Path) -> None:
    first = AnswerLog(tmp_path / "new" / "folder")
    first.add({"a": YES, "b": Given("non: «à»", 3, 1)})
    second = AnswerLog(tmp_path / "new" / "folder", rank=1)
    assert second.get("a") == YES
    assert second.get("b") == Given("non: «à»", 3, 1)
    assert second.get("c") is None
    second.add({"c": YES})
    assert len(AnswerLog(tmp_path / "new" / "folder")) == 3
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "answers-0.jsonl",
        "answers-1.jsonl",
    ]


def test_half_a_line_is_asked_anew_and_the_next_begins_its_own(tmp_path: Path) -> None:
    AnswerLog(tmp_path).add({"a": YES, "b": Given("«à» 右", 3, 1)})
    file = tmp_path / "answers-0.jsonl"
    whole = file.read_bytes()
    for cut in range(len(whole.splitlines(keepends=True)[0]) + 1, len(whole) - 1):
        file.write_bytes(whole[:cut])
        log = AnswerLog(tmp_path)
        assert (log.get("a"), log.get("b")) == (YES, None)
        log.add({"c": YES})
        again = AnswerLog(tmp_path)
        assert (again.get("a"), again.get("b"), again.get("c")) == (YES, None, YES)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(foveal.FovealError, match=r"cannot keep answers in .*file"):
        AnswerLog(tmp_path / "file")


def key(**changes: Any) -> str:
    picture = Image.new("RGB", (4, 4), changes.pop("colour", "red")).resize(changes.pop("size", (4, 4)))
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": changes.pop("text", "a?")}]
    chat = Chat.of([{"role": changes.pop("role", "user"), "content": parts}])
    given = {"settings": "s", "generation": [("max_new_tokens", 4)], **changes}
    return digest(given["settings"], chat, given["generation"])


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": "t"},
        {"text": "b?"},
        {"role": "system"},
        {"colour": "blue"},
        {"size": (2, 8)},
        {"generation": [("max_new_tokens", 5)]},
    ],
)
def test_an_answer_depends_on_everything_that_was_asked(changes: dict[str, Any]) -> None:
    assert key() == key()
    assert key(**changes) != key()


def test_other_weights_have_another_digest() -> None:
    model = tiny.llava(layers=2)
    same = copy.deepcopy(model)
    assert weights_digest(model) == weights_digest(same)
    assert weights_digest(same.float()) != weights_digest(model)
    trained = copy.deepcopy(model)
    with torch.no_grad():
        trained.get_parameter("model.language_model.norm.weight").add_(1e-6)
    assert weights_digest(trained) != weights_digest(model)
    with torch.no_grad():
        trained.get_parameter("model.language_model.norm.weight").sub_(1e-6)
        trained.get_parameter("model.language_model.embed_tokens.weight")[1, 1] += 1e-3
    assert weights_digest(trained) != weights_digest(model)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    log = AnswerLog(tmp_path)
    log._file = Path("/dev/full")
    with pytest.raises(foveal.FovealError, match=r"cannot keep answers in /dev/full .*No space left"):
        log.add({"a": YES})


@pytest.mark.parametrize(
    "change",
    [
        lambda model, processor: model.set_attn_implementation("eager"),
        lambda model, processor: setattr(model.config.text_config, "rms_norm_eps", 0.1),
        lambda model, processor: setattr(model.generation_config, "repetition_penalty", 1.5),
        lambda model, processor: setattr(processor, "chat_template", "{{ messages }}"),
        lambda model, processor: setattr(processor.image_processor, "image_mean", [0.1, 0.2, 0.3]),
        lambda model, processor: processor.tokenizer.add_tokens(["<new>"]),
    ],
)
def test_another_setup_has_another_digest(change: Any) -> None:
    model, processor = vlm.model(), copy.deepcopy(vlm.processor())
    before = setup_digest(model, processor)
    moved = vlm.model()
    moved.config._name_or_path = "elsewhere"
    assert setup_digest(moved, vlm.processor()) == before
    change(model, processor)
    assert setup_digest(model, processor) != before


METHOD = """
from dataclasses import dataclass
import foveal

@dataclass(frozen=True, kw_only=True)
class Mine(foveal.Compressor):
    def score(self, context):
        return %s
"""


def test_a_method_is_its_options_and_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    seen = [
        method_digest(method) for method in (foveal.DART(keep=4), foveal.DART(keep=4, positions="packed"))
    ]
    for score in ("1", "2"):
        (tmp_path / "own_method.py").write_text(METHOD % score)
        importlib.invalidate_caches()
        mine = importlib.import_module("own_method").Mine
        assert method_digest(mine(keep=4)) == method_digest(mine(keep=4))
        seen.append(method_digest(mine(keep=4)))
        del sys.modules["own_method"]
    assert len(set(seen)) == 4
