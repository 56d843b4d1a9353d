from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from foveal.compressors import DART, CDPruner, Compressor, DivPrune, Random
from foveal.efficiency import Load, ModelShape, model_shape
from foveal.efficiency.hardware import HARDWARE, Hardware
from foveal.efficiency.reasons import REASONS, Reason, Setting, reasons
from foveal.efficiency.returns import Case

LLAVA = "llava-hf/llava-1.5-7b-hf"


@cache
def shape_of(name: str) -> ModelShape:
    return model_shape(name)


def setting(
    method: Compressor = DART(keep=64),  # noqa: B008
    hardware: str | Hardware = "a100",
    name: str = LLAVA,
    **load: int,
) -> Setting:
    device = HARDWARE[hardware] if isinstance(hardware, str) else hardware
    return Setting.of(Case(shape_of(name), Load(**load), device), method)  # type: ignore[arg-type]


def reason(name: str, of: Setting) -> Reason | None:
    return REASONS[name](of)


GOOD = setting(batch=8, answer=1)


def test_a_setting_that_gains_is_told_about_memory_only() -> None:
    assert [found.name for found in reasons(GOOD)] == []


HELD = {
    "bandwidth": setting(),
    "tower": setting(name="Qwen/Qwen2.5-VL-3B-Instruct", visual=1024),
    "answer": setting(batch=8, answer=200),
    "keep": setting(Random(keep=500), batch=8),
    "layer": setting(DART(keep=64, layer=24), batch=8),
    "text": setting(batch=8, text=1200),
    "memory": setting(),
    "launch": setting(hardware="b200"),
}


@pytest.mark.parametrize("name", HELD)
def test_each_reason_holds_where_it_should(name: str) -> None:
    found = reason(name, HELD[name])
    assert found is not None
    assert found.name == name
    assert reason(name, GOOD) is None
    assert found in reasons(HELD[name])


def gained(of: Setting, what: str) -> float:
    return float(getattr(of.plain.times, what) / getattr(of.compressed.times, what))


@pytest.mark.parametrize(
    ("name", "what"),
    [("bandwidth", "prefill"), ("tower", "first_token"), ("answer", "answer"), ("layer", "prefill")],
)
def test_no_budget_gets_beyond_a_limit(name: str, what: str) -> None:
    for keep in (64, 1):
        held = HELD[name]
        method = held.method.__class__(keep=keep, layer=held.method.layer)
        there = Setting.of(held.case, method)
        found = reason(name, there)
        assert found is not None
        assert found.limit is not None
        assert gained(there, what) <= found.limit * (1 + 1e-9)


def test_numbers_of_a_sentence() -> None:
    """13.5 GB are LLaVA's 6.74 B parameters of the language model, in 16 bits."""
    found = reason("bandwidth", HELD["bandwidth"])
    assert found is not None
    assert "at batch 1" in found.sentence
    assert "13.5 GB of weights" in found.sentence
    assert "3.4x faster at most, not the 4.1x of its FLOPs" in found.sentence
    late = reason("layer", HELD["layer"])
    assert late is not None
    assert late.sentence.startswith("24 of 32 layers see all tokens: the prefill gets 1.33x faster at most")


def test_the_limit_of_a_tower_is_amdahls() -> None:
    held = HELD["tower"]
    found = reason("tower", held)
    assert found is not None
    assert found.limit == held.plain.times.first_token / (held.plain.times.tower + held.plain.times.projector)


def test_tokens_behind_the_last_layer_are_not_late() -> None:
    """What drops nothing is told by another reason."""
    assert reason("layer", setting(Random(keep=576), batch=8)) is None


def test_selection_that_costs_much_of_what_it_saves() -> None:
    found = reason("selection", setting(CDPruner(keep=560), answer=1))
    assert found is not None
    assert "with a text tower, takes" in found.sentence
    assert reason("selection", GOOD) is None


def test_selection_that_costs_more_than_it_saves() -> None:
    """A text tower of 12 layers for 2 tokens fewer."""
    found = reason("selection", setting(CDPruner(keep=574), answer=1))
    assert found is not None
    assert "costs more time than it saves" in found.sentence
    assert found.limit == 1


def test_a_cpu_starts_its_kernels_at_once() -> None:
    assert reason("launch", setting(hardware=replace(HARDWARE["b200"], launch=0))) is None


def test_diversity_costs_little_of_a_large_model() -> None:
    assert reason("selection", setting(DivPrune(keep=64), batch=8)) is None
