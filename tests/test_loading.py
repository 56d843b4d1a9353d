"""load(): any checkpoint, and the compressor that its config names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

import foveal
from foveal.loading import record_compressor, recorded_compressor
from support import vlm


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = vlm.model()
    record_compressor(model, foveal.DART(keep=0.25, layer=3))
    model.save_pretrained(tmp_path)
    vlm.processor().save_pretrained(tmp_path)
    return tmp_path


def test_a_recorded_compressor_is_attached(checkpoint: Path) -> None:
    model, processor = foveal.load(checkpoint)
    assert not model.training
    assert recorded_compressor(model) == foveal.DART(keep=0.25, layer=3)
    with pytest.raises(foveal.FovealError, match="compressed already"):
        foveal.attach(model, foveal.Random(keep=4))
    foveal.detach(model)
    foveal.detach(model)
    foveal.attach(model, foveal.Random(keep=4)).detach()
    assert processor.image_token == "<image>"


def test_the_plain_model_on_request_and_without_foveal(checkpoint: Path) -> None:
    model, _ = foveal.load(checkpoint, compressed=False, dtype=torch.float32)
    assert model.dtype == torch.float32
    foveal.attach(model, foveal.Random(keep=4)).detach()
    plain = AutoModelForImageTextToText.from_pretrained(checkpoint)
    assert torch.equal(plain.lm_head.weight.float(), model.lm_head.weight)


def test_a_model_without_a_record_stays_plain(tmp_path: Path) -> None:
    vlm.model().save_pretrained(tmp_path)
    vlm.processor().save_pretrained(tmp_path)
    model, _ = foveal.load(tmp_path)
    assert recorded_compressor(model) is None
    foveal.attach(model, foveal.Random(keep=4)).detach()


@pytest.mark.parametrize("what", ["missing", "empty"])
def test_what_cannot_be_loaded_is_named(tmp_path: Path, what: str) -> None:
    if what == "empty":
        (tmp_path / what).mkdir()
    with pytest.raises(foveal.FovealError, match=f"cannot load a vision-language model from '.*{what}'"):
        foveal.load(tmp_path / what)
