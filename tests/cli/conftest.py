"""Small checkpoints on disk, and a way to run the command line in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from foveal.cli import main
from support import vlm


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA with its processor."""
    folder = tmp_path_factory.mktemp("llava")
    vlm.model().float().save_pretrained(folder)
    vlm.processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that knows no pictures."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = vlm.processor().tokenizer
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    vlm.picture(0, (123, 77)).save(path)
    return path


@dataclass
class Ran:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def command(*arguments: object, columns: int = 200) -> Ran:
        words = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["foveal", *words])
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as ended:
            main(words)
        printed = capsys.readouterr()
        return Ran(int(ended.value.code or 0), printed.out, printed.err)

    return command
