"""Where a compressed forward makes the host wait for the device, on tensors that pretend to lie on a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import StaticCache

import foveal
from foveal.compressors.base import TowerCompressor
from support import families
from support.clip import WordTower
from support.waits import GPU, OnDevice, Waits, on_device

Inputs = dict[str, Tensor]

READ = "frame.py:of"  # which rows are what
MARKS = "tower.py:marked"  # whether the features are those that the method chose among
QUESTION = "tower.py:_text_embeds"  # text is read on the host
OUTLIERS = "towers.py:outlier_counts"  # keep="auto"
RELEASED = "towers.py:released_budget"  # the same of the released code
SET_ORDER = "dart.py:_set_order"  # the order of a Python set

IN_LM = {
    "dart": foveal.DART(keep=5),
    "dart, packed": foveal.DART(keep=0.4, positions="packed"),
    "divprune": foveal.DivPrune(keep=5),
    "fastv": foveal.FastV(keep=5),
    "pumer": foveal.PuMer(keep=5, layers=(1, 3)),
    "pyramiddrop": foveal.PyramidDrop(keep=5, layers=(1, 3)),
    "random": foveal.Random(keep=5),
    "sparsevlm": foveal.SparseVLM(keep=5, layers=(1, 3)),
}
PRE_LM = {
    "cdpruner": (foveal.CDPruner(keep=5), [QUESTION]),
    "downsample": (foveal.Downsample(keep=6), []),
    "pooling": (foveal.AveragePooling(keep=6), []),
    "prumerge": (foveal.PruMerge(keep=5), []),
    "prumerge, auto": (foveal.PruMerge(keep="auto"), [OUTLIERS]),
    "prumerge+": (foveal.PruMergePlus(keep=5), []),
    "prumerge, parity": (foveal.PruMerge(keep=5, parity=True), []),
    "tome": (foveal.ToMe(keep=9), []),
    "trim": (foveal.TRIM(keep=5), [QUESTION]),
    "trim, auto": (foveal.TRIM(keep="auto"), [OUTLIERS, QUESTION]),
    "trim, auto, parity": (foveal.TRIM(keep="auto", parity=True), [QUESTION, RELEASED]),
    "visionzip": (foveal.VisionZip(keep=5), []),
}
CASES: dict[str, tuple[foveal.Compressor, list[str]]] = {
    **{name: (method, []) for name, method in IN_LM.items()},
    "dart, parity": (foveal.DART(keep=16, parity=True), [SET_ORDER]),
    **{name: (method, [MARKS, *more]) for name, (method, more) in PRE_LM.items()},
}
BATCHES = {"batch 1": ([1], [9]), "ragged": ([1, 2, 0], [9, 4, 12])}


class Words(WordTower):
    """On the device."""

    def __init__(self) -> None:
        super().__init__(width=24)
        self.projection = OnDevice(self.projection)

    def embed(self, questions: Sequence[str]) -> Tensor:
        return super().embed(questions).to(GPU, non_blocking=True)


def prepared(family: str, images: list[int], texts: list[int]) -> tuple[Any, Inputs]:
    """A model on the device, and inputs with the positions that it would count on the host."""
    model, inputs = families.ALL[family].build(6, "sdpa"), families.batch(family, images, texts)
    counted = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)

    def note(_decoder: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        known = kwargs.get("position_ids")
        inputs["position_ids"] = counted if known is None else known

    handle = model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return on_device(model), {name: OnDevice(value) for name, value in inputs.items()}


def compressed(model: Any, method: foveal.Compressor | None) -> Any:
    if method is None:
        return nullcontext()
    needs = isinstance(method, TowerCompressor) and method.needs_text
    return foveal.compress(model, method, text_tower=Words() if needs else None)  # type: ignore[arg-type]


@torch.no_grad()
def waited(
    model: Any, inputs: Inputs, method: foveal.Compressor | None, cache: Any = None
) -> tuple[Counter[str], Counter[str]]:
    """What waits in a prefill, and in the step behind it."""
    with Waits() as prefill, compressed(model, method):
        out = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    with Waits() as step, compressed(model, method):
        mask = inputs["attention_mask"]
        model(
            input_ids=inputs["input_ids"][:, -1:],
            attention_mask=torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1),
            position_ids=inputs["position_ids"][..., -1:] + 1,
            past_key_values=out.past_key_values,
        )
    return prefill.found, step.found


def own(found: Counter[str]) -> list[str]:
    """What Foveal waited for."""
    return sorted(name for name in found.elements() if name)


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_prefill_waits_once_and_a_step_never(family: str, name: str) -> None:
    """And as often as it does anyway: a compressed forward reads no more of transformers' own lengths and masks."""
    model, inputs = prepared(family, *BATCHES[name])
    plain, plain_step = waited(model, inputs, None)
    cases = CASES if family == "llava" else {name: CASES[name] for name in IN_LM}
    for label, (method, more) in cases.items():
        prefill, step = waited(model, inputs, method)
        assert own(prefill) == sorted([READ, *more]), label
        assert prefill[""] == plain[""], label
        assert step == plain_step, label


def emptied(cache: Any) -> Any:
    with Waits():
        cache.reset()
    return cache


@pytest.mark.parametrize("method", [foveal.DART(keep=5), foveal.PyramidDrop(keep=5, layers=(1, 3))])
def test_a_static_cache_that_is_used_again_is_asked_once_how_much_it_holds(method: Any) -> None:
    model, inputs = prepared("llava", *BATCHES["ragged"])
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=100)
    waited(model, inputs, method, cache)
    plain, _ = waited(model, inputs, None, emptied(cache))
    prefill, step = waited(model, inputs, method, emptied(cache))
    assert own(prefill) == sorted([READ, "hooks.py:_describe"])
    assert own(step) == []
    assert prefill[""] == plain[""]


def test_a_second_turn_on_a_static_cache_reads_what_the_first_left_once_a_stage() -> None:
    model, inputs = prepared("llava", *BATCHES["batch 1"])
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=120)
    rows = inputs["input_ids"].shape[1]
    waited(model, inputs, foveal.DART(keep=5), cache)
    with Waits() as found, foveal.compress(model, foveal.DART(keep=5)), torch.no_grad():
        mask = torch.cat(
            [inputs["attention_mask"], inputs["attention_mask"][:, :1], inputs["attention_mask"]], 1
        )
        positions = inputs["position_ids"] + rows + 1
        model(**{**inputs, "attention_mask": mask, "position_ids": positions}, past_key_values=cache)
    lengths = ["cache.py:physical_length", "frame.py:grow_view", "hooks.py:_describe"]
    assert own(found.found) == sorted([READ, *lengths])


def test_labels_are_not_waited_for_where_none_can_be_lost() -> None:
    model, inputs = prepared("llava", *BATCHES["ragged"])
    labels = torch.full_like(inputs["input_ids"].held, -100)
    labels[:, -1] = 30
    with Waits() as found, foveal.compress(model, foveal.DART(keep=5)), torch.no_grad():
        model(**inputs, labels=OnDevice(labels))
    assert own(found.found) == [READ]


def test_the_watch_sees_every_kind_of_wait() -> None:
    """Or the tests above would be blind."""
    with Waits() as watch:
        tensor = OnDevice(torch.arange(4))
        for wait in (
            lambda: tensor.sum().item(),
            tensor.tolist,
            lambda: bool((tensor > 1).any()),
            tensor.cpu,
            lambda: tensor[tensor > 1],
            tensor.nonzero,
            lambda: torch.equal(tensor, tensor),
            lambda: tensor.repeat_interleave(tensor),
            lambda: torch.tensor([1, 2], device=tensor.device),
            lambda: torch.arange(2).to(tensor.device),
            lambda: tensor[[0, 1]],
            lambda: tensor.masked_select(tensor > 1),
            tensor.unique,
        ):
            before = watch.found.total()
            wait()
            assert watch.found.total() > before
        before = watch.found.total()
        torch.arange(2).to(tensor.device, non_blocking=True)
        torch.full((2,), 3, device=tensor.device)
        torch.where(tensor > 1, tensor, 0).masked_fill(tensor > 2, 1).sort().values.gather(0, tensor)
        assert watch.found.total() == before
        with pytest.raises(AssertionError, match="mixes"):
            tensor + torch.arange(4)
