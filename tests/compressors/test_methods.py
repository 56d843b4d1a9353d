"""What is true of every method, and what is particular to one."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import foveal
from support.clip import text_tower
from support.tiny import IMAGE, TOKENS, batch, llava

pytestmark = pytest.mark.usefixtures("inference")

NAMES = foveal.available()


def kept_by(method: foveal.Compressor, seed: int = 0) -> list[list[int]]:
    model, inputs = llava(), batch([1, 2], [9, 4], seed=seed)
    with foveal.compress(model, method, text_tower=text_tower(model)) as run:
        model(**inputs)
    return [kept.tolist() for kept in run.stages[-1].kept_in_image]


COUNTS = {keep: keep for keep in (1, 5, TOKENS)} | {0.25: 9, 0.01: 1, 0.99: 36}
EXACT = dict.fromkeys(NAMES, COUNTS) | {
    "downsample": {1: 1, 5: 4, 6: 6, 0.25: 9, TOKENS: TOKENS},  # the largest grid of cells that fits
    "pooling": {1: 1, 5: 4, 6: 6, 0.25: 9, TOKENS: TOKENS},
    "tome": {9: 9, 20: 20, 0.25: 9, TOKENS: TOKENS},  # two blocks halve twice at most
}


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_a_card_and_keeps_exactly_the_count(name: str) -> None:
    for keep, expected in EXACT[name].items():
        method = foveal.get(name, keep=keep)
        assert method.card is not None
        assert method.card.name == name
        kept = kept_by(method)
        assert [len(image) for image in kept] == [expected] * 3
        assert all(image == sorted(set(image)) for image in kept)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_call_keeps_the_same_tokens(name: str) -> None:
    assert kept_by(foveal.get(name, keep=9)) == kept_by(foveal.get(name, keep=9))


@pytest.mark.parametrize("name", ["fastv", "random"])
def test_a_smaller_keep_is_a_subset(name: str) -> None:
    few, many = kept_by(foveal.get(name, keep=5)), kept_by(foveal.get(name, keep=12))
    assert all(set(a) < set(b) for a, b in zip(few, many, strict=True))


def test_random_follows_its_seed() -> None:
    method = foveal.Random(keep=12)
    assert kept_by(method) != kept_by(replace(method, seed=1))
    drawn = torch.zeros(TOKENS)
    for seed in range(60):
        drawn[kept_by(replace(method, seed=seed))[0]] += 1
    assert 5 < drawn.min() <= drawn.max() < 40


@pytest.mark.parametrize("parity", [False, True])
def test_dart_keeps_its_pivots_whatever_the_budget(parity: bool) -> None:
    wide = kept_by(foveal.DART(keep=4))[0]
    for keep in (5, 9, 20):
        kept = kept_by(foveal.DART(keep=keep, parity=parity))[0]
        if keep >= 8 or not parity:
            assert set(wide) <= set(kept)
        assert len(kept) == (keep // 8 * 8 + 4 if parity else keep)


def test_dart_without_text_behind_the_image_uses_image_pivots_alone() -> None:
    model, inputs = llava(), batch([1], [3])
    ids = inputs["input_ids"]
    inputs["input_ids"] = torch.cat([ids[ids != IMAGE], ids[ids == IMAGE]])[None]
    with foveal.compress(model, foveal.DART(keep=9)) as run:
        model(**inputs)
    assert len(run.kept[0]) == 9


def test_a_users_own_method_is_one_dataclass_with_one_method() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Loudest(foveal.Compressor):
        def score(self, context: foveal.TokenContext) -> Tensor:
            return context.layout.gather(context.hidden).norm(dim=-1)

    kept = kept_by(Loudest(keep=6))
    assert [len(image) for image in kept] == [6, 6, 6]
    assert kept != kept_by(foveal.Random(keep=6))


def test_a_method_without_a_rule_says_so() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Nothing(foveal.Compressor):
        pass

    with pytest.raises(NotImplementedError, match=r"Nothing must define score\(\) or select\(\)"):
        kept_by(Nothing(keep=6))


PACKED = {name for name in NAMES if name not in {"dart", "fastv", "random", "pumer"}}


@pytest.mark.parametrize("name", NAMES)
def test_positions_are_those_of_the_official_code_by_default(name: str) -> None:
    assert foveal.get(name, keep=4).positions == ("packed" if name in PACKED else "original")


def test_defaults_are_the_papers() -> None:
    assert foveal.DART(keep=4).layer == foveal.FastV(keep=4).layer == 2
    assert (foveal.DART(keep=4).image_pivots, foveal.DART(keep=4).text_pivots) == (4, 4)
    assert [stage.layer for stage in foveal.PyramidDrop(keep=72).stages(32)] == [8, 16, 24]
    assert [stage.layer for stage in foveal.SparseVLM(keep=72).stages(32)] == [3, 7, 16]
    assert foveal.PruMerge(keep=4).neighbours == 32
    assert foveal.VisionZip(keep=64).contextual == 10 / 64
    assert foveal.TRIM(keep=4).ranking == foveal.CDPruner(keep=4).ranking == "released"
    assert foveal.ToMe(keep=4).proportional
    assert foveal.PuMer(keep=4).prune_share == 0.4


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_made_again_from_its_options(name: str) -> None:
    method = foveal.get(name, keep=0.25)
    assert foveal.get(name, **json.loads(json.dumps(method.options()))) == method


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dart", {"layer": 1.5}, "layer=1.5 of DART must be a whole number"),
        ("dart", {"layer": "2"}, "layer='2' of DART must be a whole number"),
        ("dart", {"parity": "no"}, "parity='no' of DART must be True or False"),
        ("dart", {"image_pivots": 2.5}, "image_pivots=2.5 of DART must be a whole number"),
        ("random", {"seed": "a"}, "seed='a' of Random must be a whole number"),
        ("pumer", {"prune_share": "a"}, "prune_share='a' of PuMer must be a number"),
        ("pyramiddrop", {"layers": 3}, "layers=3 must be several whole numbers"),
        ("pyramiddrop", {"layers": [1.5, 2]}, "must be several whole numbers"),
        ("trim", {"layer": 2}, "TRIM has no layer=2: it acts before the decoder"),
        ("sparsevlm", {"layer": 2}, "SparseVLM has no layer=2: it acts at several layers"),
        ("dart", {"keep": "auto"}, "a method with a budget of its own"),
        ("trim", {"ranking": "best"}, "ranking='best' is neither"),
        ("visionzip", {"query": "last"}, "query='last' is neither"),
        ("fastv", {"positions": "new"}, "positions='new' is neither"),
    ],
)
def test_a_bad_option_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(foveal.FovealError, match=re.escape(message)):
        foveal.get(name, **{"keep": 4, **options})


def test_attention_of_large_keys_in_half_precision_is_that_of_the_backend() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 6, 64, generator=draw).half() * 200 for _ in range(2))
    rows = foveal.AttentionInputs(query, key, None, 64**-0.5).row(torch.tensor([5]))
    assert (query[:, :, 5:].float() @ key.float().mT).abs().max() > torch.finfo(torch.half).max
    assert rows.isfinite().all()
    wide = (query[:, :, 5:].double() @ key.double().mT * 64**-0.5).softmax(dim=-1)[:, :, 0]
    torch.testing.assert_close(rows.double(), wide, atol=1e-3, rtol=1e-3)


def test_numpy_counts_are_counts() -> None:
    assert foveal.DART(keep=np.int64(9)) == foveal.DART(keep=9)


@pytest.mark.parametrize("method", [["dart"], foveal.DART, None, 3])
def test_what_is_no_method_is_refused(method: Any) -> None:
    with pytest.raises(foveal.FovealError, match="is no method"):
        foveal.attach(llava(), method)
