"""What is true of every method, and what is particular to one."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
