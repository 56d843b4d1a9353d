"""The roofline against arithmetic by hand: LLaVA-1.5-7B has 32 layers, 4096 wide, 11008 inside, 32064 words."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import inf
from statistics import median

import pytest

from foveal.compressors import DART, TRIM, Random
from foveal.efficiency import Cost, Load, ModelShape, cost, model_shape
from foveal.efficiency.configs import empty_model, read_config
from foveal.efficiency.hardware import HARDWARE, Hardware
from foveal.efficiency.roofline import Times, roofline

A100 = HARDWARE["a100"]
LAYER = 4 * 4096**2 + 3 * 4096 * 11008
HEAD = 4096 * 32064
NORMS = 2 * 4096
TOKEN = 32 * 2 * 4096 * 2  # bytes of keys and values
ROWS = 576 + 62


@cache
def shape_of(name: str) -> ModelShape:
    return model_shape(name)


LLAVA = "llava-hf/llava-1.5-7b-hf"


def timed(load: Load, method: object = None, hardware: Hardware = A100, name: str = LLAVA) -> Times:
    shape = shape_of(name)
    return roofline(cost(shape, method, load), shape, load, hardware)  # type: ignore[arg-type]


def test_the_prefill_of_638_rows_is_bound_by_products() -> None:
    """A layer does 262 GFLOPs in 0.84 ms; its weights would be read in 0.2 ms."""
    times = timed(Load(text=62))
    flops = 2 * LAYER * ROWS + 4 * 4096 * ROWS * ROWS / 2  # half of the rectangle is hidden
    assert times.layers == pytest.approx([flops / 312e12] * 32)
    assert flops / 312e12 > 4 * 2 * LAYER / 2039e9
    assert times.head == pytest.approx(2 * (HEAD + 32064) / 2039e9)  # one row: bound by its weights


def test_decoding_is_bound_by_weights_and_cache() -> None:
    """13.2 GB of weights and 0.3 GB of keys and values at 2039 GB/s."""
    times = timed(Load(text=62, answer=4))
    weights = 2 * (32 * LAYER + HEAD)
    through = 2 * 32064 + 2 * 2 * 4096 * 32
    expected = [(weights + through + TOKEN * (ROWS + 1 + step)) / 2039e9 for step in range(3)]
    assert times.steps == pytest.approx(expected)
    assert 6.6e-3 < times.next_token == median(times.steps) < 6.7e-3


def test_a_short_prefill_is_bound_by_weights() -> None:
    """62 + 64 rows: 2 FLOPs for every two bytes and row, where an A100 has 153 for each byte."""
    times = timed(Load(text=62), Random(keep=64, layer=1))
    rows = 62 + 64
    moved = 2 * (LAYER + NORMS) + TOKEN / 32 * rows + 2 * 2 * 4096 * rows
    assert times.layers[1:] == pytest.approx([moved / 2039e9] * 31)
    assert times.layers[0] == timed(Load(text=62)).layers[0]


def test_a_batch_reads_weights_once() -> None:
    one, eight = timed(Load(answer=2)), timed(Load(answer=2, batch=8))
    assert eight.steps[0] < 1.2 * one.steps[0]
    assert sum(eight.layers) == pytest.approx(8 * sum(one.layers))


def test_towers_and_projector_by_their_products_or_weights() -> None:
    shape, load = shape_of(LLAVA), Load()
    method = TRIM(keep=64)
    counted = cost(shape, method, load)
    times = roofline(counted, shape, load, A100)
    assert times.tower == counted.tower / 312e12
    assert times.text_tower == counted.weights["text tower"] / 2039e9  # 20 words
    assert times.projector == pytest.approx((2 * 20_979_712 + 64 * 8192) / 2039e9)


def test_selection_gathers_the_rows_in_front_and_behind() -> None:
    quick = replace(A100, peak=inf)
    plain, dart = timed(Load(text=62), hardware=quick), timed(Load(text=62), DART(keep=64), quick)
    assert plain.selection == 0
    assert dart.selection == pytest.approx((ROWS + 62 + 64) * 8192 / 2039e9)
    two = timed(Load(text=62, batch=3), [Random(keep=100, layer=0), Random(keep=64, layer=2)], quick)
    assert two.selection == pytest.approx(3 * (ROWS + 162 + 162 + 126) * 8192 / 2039e9)


def test_sums() -> None:
    times = Times(1, 2, 4, 8, (16, 32), 64, (128, 256, 512))
    assert times.prefill == 16 + 32 + 64
    assert times.first_token == 127
    assert (times.next_token, times.answer) == (256, 127 + 896)
    assert replace(times, steps=()).next_token == 0


@pytest.mark.parametrize("tied", [False, True])
def test_experts_are_read_as_far_as_rows_can_touch_them(tied: bool) -> None:
    """Qwen3-VL-30B-A3B: 128 experts of 3 * 2048 * 768 in each of 48 layers, 8 for a row."""
    name = "Qwen/Qwen3-VL-30B-A3B-Instruct"
    attention, router, expert = 2 * 2048 * 4096 + 2 * 2048 * 512, 2048 * 128, 3 * 2048 * 768
    head = 2048 * 151936
    slow = replace(A100, peak=inf)
    config = read_config(name)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    shape = model_shape(empty_model(config))

    def weights(batch: int, rows: int) -> float:
        """Bytes of a step, less those of keys and values and of what goes through."""
        load = Load(batch=batch, answer=2, text=rows - 4, visual=4)
        moved = roofline(cost(shape, None, load), shape, load, slow).steps[0] * 2039e9
        kept = batch * 48 * 2 * 4 * 128 * 2 * (rows + 1)
        return moved - kept - 2 * batch * (151936 + 2 * 2048 * 48)

    one = 48 * (attention + router + 8 * expert) + head
    assert weights(1, 20) == pytest.approx(2 * one, rel=1e-3)
    everything = 48 * (attention + router + 128 * expert) + head
    assert weights(64, 20) == pytest.approx(2 * everything, rel=1e-3)


def test_windows_bound_what_is_kept_and_read() -> None:
    shape, load = shape_of("google/gemma-3-4b-it"), Load(text=4000, answer=3)
    counted: Cost = cost(shape, None, load)
    assert counted.cache[0] < counted.cache[5]
    times = roofline(counted, shape, load, replace(A100, peak=inf))
    grown = sum(counted.cache_at_end) - sum(counted.cache)
    assert (times.steps[1] - times.steps[0]) * A100.bandwidth == pytest.approx(grown / 2)
