from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from foveal.suite.benchmarks import SUITES, average
from foveal.suite.published import is_published_model, published_rows, rows_beside


def test_every_row_has_the_ten_columns_and_a_source() -> None:
    assert len(published_rows()) == 24
    for row in published_rows():
        assert set(row.scores) == {benchmark.column for benchmark in SUITES["epic10"]}
        assert row.source.startswith("arXiv:2510.00515 ")


@pytest.mark.parametrize("row", published_rows(), ids=lambda row: f"{row.method}-{row.visual_tokens}")
def test_the_papers_average_is_that_of_its_columns(row: Any) -> None:
    """In all 24 rows: no difference is larger than rounding to one decimal explains."""
    assert average(row.scores) == pytest.approx(row.average, abs=0.0501)


def test_a_wrong_divisor_would_show() -> None:
    """MME/20 in place of MME/28 moves the average by 2.5 points."""
    row = published_rows()[0]
    wrong = replace(row, scores={**row.scores, "mme": row.scores["mme"] * 28 / 20})
    assert abs(average(wrong.scores) - wrong.average) > 2


def test_both_ways_to_count_tokens() -> None:
    """Layer averages of EPIC's budgets at layer 2 of 32."""
    seen = {row.visual_tokens: row.seen for row in published_rows() if row.method == "EPIC-TCD"}
    assert seen == {256: 276, 192: 216, 128: 156, 64: 96, 36: 69.75}
    pooled = next(row for row in published_rows() if row.method == "Average-Pooling")
    assert pooled.seen == pooled.visual_tokens == 64


def found(kept: float | None, whole: float = 576) -> list[tuple[str, int]]:
    return [(row.method, row.visual_tokens) for row in rows_beside(kept, whole)]


EPIC = ("EPIC-TCD", "EPIC-LCD", "EPIC-ICD")


def test_the_same_budget_where_there_is_one() -> None:
    at_64 = [(name, 64) for name in ("Average-Pooling", "MQT-LLaVA", *EPIC)]
    assert found(64) == at_64
    assert found(16, whole=144) == at_64
    assert found(128) == [("MQT-LLaVA", 128), ("TokenPacker", 144), *((name, 128) for name in EPIC)]


def test_the_nearest_budget_where_there_is_none() -> None:
    assert found(18) == [(name, 36) for name in ("MQT-LLaVA", *EPIC)]
    assert found(3) == [("MQT-LLaVA", 2)]
    assert found(500) == [(name, 256) for name in ("MQT-LLaVA", *EPIC)]


def test_all_tokens_stand_beside_the_whole_model() -> None:
    assert found(None) == found(576) == found(144, whole=144) == [("LLaVA-v1.5", 576)]


def llava(**text: int) -> LlavaConfig:
    shape = {"hidden_size": 4096, "num_hidden_layers": 32} | text
    return LlavaConfig(
        text_config=LlamaConfig(**shape), vision_config=CLIPVisionConfig(image_size=336, patch_size=14)
    )


@pytest.mark.parametrize(
    ("name", "config", "known"),
    [
        ("my-epic-run", llava(), True),
        ("my-13b", llava(hidden_size=5120, num_hidden_layers=40), False),
        ("llava-hf/llava-1.5-7b-hf", LlamaConfig(), True),
        ("vicuna", LlamaConfig(), False),
    ],
)
def test_the_published_model_is_known_by_name_or_shape(name: str, config: Any, known: bool) -> None:
    assert is_published_model(name, config) is known
