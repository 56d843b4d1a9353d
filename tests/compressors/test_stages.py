"""Methods with several stages: budgets, raters, clusters and merging, against brute force."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import foveal
from foveal.compressors.context import AttentionInputs, Rows, Selection, TokenContext, VisualLayout
from foveal.compressors.pumer import PuMer
from foveal.compressors.pyramiddrop import PyramidDrop
from foveal.compressors.sparsevlm import SparseVLM, rater_affinity
from foveal.compressors.staging import FallingCompressor, Stage, geometric, scaled_layers, text_attention
from foveal.errors import FovealError
from support.tiny import TOKENS, batch, llava

METHODS = [PyramidDrop, SparseVLM, PuMer]
MERGING = [SparseVLM, PuMer]
HEADS, GROUPS, WIDTH, FEATURES = 4, 2, 6, 8
PADDING = 1e3

# Samples as runs of rows: text is positive, an image negative.
ONE = [[5, -40, 9]]
MANY = [[3, -40, 90], [2, -25, 4, -12, 7, -1, 5], [4], [6, -33, 1], [2, -18]]


@dataclass(frozen=True)
class Scene:
    """What reaches a stage, made by hand."""

    hidden: Tensor
    attention: AttentionInputs
    rows: Rows
    layout: VisualLayout

    def context(self, observed: Tensor | None = None, whole: tuple[int, ...] | None = None) -> TokenContext:
        return TokenContext(
            hidden=self.hidden,
            layout=self.layout,
            visual=self.rows.visual,
            prompt=self.rows.prompt,
            observed=observed,
            final_norm=torch.nn.Identity(),
            whole_lengths=whole or self.layout.lengths,
        )


def scene(samples: list[list[int]], seed: int = 0, answers: int = 0, first: int = 0) -> Scene:
    """Rows padded on the left; the last `answers` text rows of each sample are no prompt.

    A sample's values depend on its own place, counted from `first`, alone.
    """
    lengths = [sum(map(abs, sample)) for sample in samples]
    longest, image = max(lengths), 0
    numbers = torch.full((len(samples), longest), -1)
    real = torch.zeros_like(numbers, dtype=torch.bool)
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        real[row, longest - length :] = True
        at = longest - length
        for run in sample:
            if run < 0:
                numbers[row, at : at - run] = image
                image += 1
            at += abs(run)

    def values(offset: int, *shape: int) -> Tensor:
        filled = torch.full((len(samples), longest, *shape), PADDING, dtype=torch.float64)
        for row, length in enumerate(lengths):
            draw = torch.Generator().manual_seed(1000 * seed + 10 * (row + first) + offset)
            filled[row, longest - length :] = torch.randn(length, *shape, generator=draw, dtype=torch.float64)
        return filled

    row = torch.arange(longest)
    mask = (row[:, None] >= row) & real[:, None, :] & real[:, :, None]
    text = real & (numbers < 0)
    prompt = real & (row < longest - answers)
    texts = int(text.sum(dim=1).max())
    return Scene(
        hidden=values(1, FEATURES),
        attention=AttentionInputs(
            query=values(2, HEADS, WIDTH).transpose(1, 2),
            key=values(3, GROUPS, WIDTH).transpose(1, 2) / 20,
            mask=mask[:, None],
            scaling=20,
        ),
        rows=Rows(prompt=prompt, visual=numbers >= 0, words=text, most=texts),
        layout=VisualLayout.of(numbers, tuple(numbers[numbers >= 0].bincount().tolist())),
    )


def stage_of(method: FallingCompressor, number: int = 2, depth: int = 32) -> Stage:
    stage = method.stages(depth)[number]
    assert isinstance(stage, Stage)
    return stage


def decide(stage: Stage, made: Scene, whole: tuple[int, ...] | None = None) -> Selection:
    method = stage.method
    rows = replace(made.rows, read=method.read(made.context())) if method.reads() else made.rows
    return stage.select(made.context(stage.observe(made.attention, rows), whole))


def probabilities(made: Scene, sample: int) -> Tensor:
    """(queries, keys) attention averaged over heads, by the textbook."""
    query, key = made.attention.query[sample], made.attention.key[sample]
    key = key.repeat_interleave(HEADS // GROUPS, dim=0)
    scores = query @ key.transpose(1, 2)
    assert isinstance(made.attention.mask, Tensor)
    scores = scores * made.attention.scaling
    return scores.masked_fill(~made.attention.mask[sample], float("-inf")).softmax(dim=-1).mean(dim=0)


def best(scores: Tensor, count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda token: -scores[token].item())[:count])


# ---------------------------------------------------------------------- layers and budgets


@given(
    whole=st.lists(st.integers(1, 3000), min_size=1, max_size=4),
    share=st.floats(0.001, 1),
    stages=st.integers(1, 6),
)
def test_the_budget_falls_to_the_exact_end(whole: list[int], share: float, stages: int) -> None:
    keep = [max(1, int(share * tokens)) for tokens in whole]
    falling = [geometric(keep, whole, number, stages) for number in range(stages)]
    assert falling[-1] == tuple(keep)
    for end, tokens, image in zip(keep, whole, zip(*falling, strict=True), strict=True):
        steps = [tokens, *image]
        assert steps == sorted(steps, reverse=True)
        assert min(steps) == end
        if end == tokens:
            assert set(steps) == {tokens}
        for before, after in pairwise(steps):
            assert abs(after - before * (end / tokens) ** (1 / stages)) <= 1


def test_the_papers_halves() -> None:
    assert [geometric([72], [576], number, 3) for number in range(3)] == [(288,), (144,), (72,)]


def test_default_layers_at_the_papers_depth() -> None:
    layers = {method: [stage.layer for stage in method(keep=1).stages(32)] for method in METHODS}
    assert layers == {PyramidDrop: [8, 16, 24], SparseVLM: [3, 7, 16], PuMer: [8, 16, 24]}
    assert [stage.layer for stage in SparseVLM(keep=1).stages(6)] == [1, 2, 3]


@given(depth=st.integers(4, 100))
def test_default_layers_exist_at_any_depth(depth: int) -> None:
    for layers in ((8, 16, 24), (3, 7, 16)):
        scaled = scaled_layers(layers, depth)
        assert list(scaled) == sorted(set(scaled))
        assert scaled[0] >= 1
        assert scaled[-1] < depth


@pytest.mark.parametrize("method", METHODS)
def test_a_decoder_too_shallow(method: type[FallingCompressor]) -> None:
    with pytest.raises(FovealError, match=r"3 layers is too shallow for 3 stages .*pass layers="):
        method(keep=4).stages(3)
    assert len(method(keep=4, layers=[1, 2]).stages(3)) == 2


@pytest.mark.parametrize("method", METHODS)
def test_stages_are_what_the_method_was_made_with(method: type[FallingCompressor]) -> None:
    for positions in ("packed", "original"):
        made = method(keep=0.5, layers=[1, 4], per_frame=True, positions=positions)
        for layer, stage in zip((1, 4), made.stages(6), strict=True):
            assert (stage.keep, stage.layer, stage.per_frame, stage.positions) == (
                0.5,
                layer,
                True,
                positions,
            )
    assert method(keep=3).positions == ("original" if method is PuMer else "packed")
    again = method(**method(keep=3, layers=[2, 3], budgets=[9]).options())
    assert again == method(keep=3, layers=(2, 3), budgets=(9,))
    hash(again)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, "keep=0"),
        ({"keep": "auto"}, "budget of its own"),
        ({"keep": 4, "layers": []}, "ascending"),
        ({"keep": 4, "layers": [3, 3]}, "ascending"),
        ({"keep": 4, "layers": [0, 3]}, "the first must be at least 1"),
        ({"keep": 4, "budgets": [9]}, "must name 2 budgets"),
        ({"keep": 4, "layers": [2, 3], "budgets": [9, 8]}, "must name 1 budgets"),
        ({"keep": 4, "budgets": [9, 0]}, "neither a count"),
        ({"keep": 4, "budgets": [1.5, 4]}, "neither a count"),
        ({"keep": 4, "budgets": [True, True]}, "neither a count"),
        ({"keep": 4, "budgets": ["9", 8]}, "neither a count"),
        ({"keep": 4, "budgets": [9, 10]}, "must fall"),
        ({"keep": 4, "budgets": [9, 3]}, "must fall"),
        ({"keep": 0.25, "budgets": [0.5, 0.2]}, "must fall"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_bad_options(method: type[FallingCompressor], options: dict[str, Any], message: str) -> None:
    with pytest.raises(FovealError, match=message):
        method(**options)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_bad_prune_share(share: float) -> None:
    with pytest.raises(FovealError, match="prune_share"):
        PuMer(keep=4, prune_share=share)


def targets(
    method: FallingCompressor, number: int, reaching: list[int], whole: tuple[int, ...]
) -> tuple[int, ...]:
    made = scene([[1, *(-tokens for tokens in reaching), 2]])
    return stage_of(method, number).targets(made.context(whole=whole))


def test_budgets_are_counts_or_fractions_rounded_down() -> None:
    method = PyramidDrop(keep=7, budgets=[0.29, 10])
    assert targets(method, 0, [100, 40], (100, 40)) == (28, 11)  # 0.29 * 100 is below 29
    assert targets(method, 1, [28, 11], (100, 40)) == (10, 10)
    assert targets(method, 2, [10, 10], (100, 40)) == (7, 7)


def test_no_stage_leaves_fewer_than_keep_or_more_than_reach_it() -> None:
    method = PyramidDrop(keep=30, budgets=[50, 0.2])
    assert targets(method, 0, [100, 40, 31], (100, 40, 31)) == (50, 40, 31)
    assert targets(method, 1, [50, 40, 20], (100, 40, 31)) == (30, 30, 20)
    with pytest.raises(FovealError, match="keep=30 is more than the 29"):
        targets(method, 0, [29], (29,))


def test_a_fraction_is_one_of_the_original_tokens() -> None:
    assert targets(PyramidDrop(keep=0.125), 2, [144, 20], (576, 40)) == (72, 5)


# ---------------------------------------------------------------------- every method


@pytest.mark.parametrize("keep", [1, 2, 3, 11, 0.03, 0.3, 0.7])
@pytest.mark.parametrize("method", METHODS)
def test_exact_counts_for_ragged_images(method: type[FallingCompressor], keep: int | float) -> None:
    samples = [[3, -40, 9], [2, -25, 4, -12, 7, -11, 5], [4], [6, -33, 1], [2, -18]]
    made = scene(samples)
    lengths = made.layout.lengths
    assert lengths == (40, 25, 12, 11, 33, 18)
    expected = tuple(keep if isinstance(keep, int) else max(1, int(keep * n + 0.5)) for n in lengths)
    chosen = decide(stage_of(method(keep=keep)), made)
    assert chosen.counts == expected
    assert tuple(chosen.kept.sum(dim=1).tolist()) == expected
    assert not (chosen.kept & ~made.layout.valid).any()
    if chosen.mix is not None:
        assert_merges(chosen)


def assert_merges(chosen: Selection) -> None:
    """Every kept token is the mean of some tokens, and no token is part of two."""
    assert chosen.counts is not None
    assert chosen.mix is not None
    mix = chosen.mix
    assert mix.shape == (len(chosen.counts), max(chosen.counts), chosen.kept.shape[1])
    assert mix.isfinite().all()
    assert (mix >= 0).all()
    assert ((mix > 0).sum(dim=1) <= 1).all()
    there = torch.arange(mix.shape[1]) < torch.tensor(chosen.counts)[:, None]
    torch.testing.assert_close(mix.sum(dim=2), there.to(mix.dtype))
    largest = mix.amax(dim=2, keepdim=True)
    assert ((mix == 0) | (mix == largest)).all()


@pytest.mark.parametrize("method", METHODS)
def test_keeping_all_changes_nothing(method: type[FallingCompressor]) -> None:
    made = scene(MANY)
    for number in range(3):
        chosen = decide(stage_of(method(keep=1.0), number), made)
        assert chosen.counts == made.layout.lengths
        assert chosen.mix is None
        assert torch.equal(chosen.kept, made.layout.valid)


@pytest.mark.parametrize("method", METHODS)
def test_an_image_that_is_small_already_stays_whole_beside_others(method: type[FallingCompressor]) -> None:
    made = scene([[2, -30, 3], [4, -6, 3]])
    chosen = decide(stage_of(method(keep=8)), made, whole=(60, 20))
    assert chosen.counts == (8, 6)
    assert chosen.kept[1].tolist() == [True] * 6 + [False] * 24
    if chosen.mix is not None:
        assert torch.equal(chosen.mix[1, :6, :6], torch.eye(6, dtype=chosen.mix.dtype))
        assert_merges(chosen)


@pytest.mark.parametrize("positions", ["packed", "original"])
@pytest.mark.parametrize("method", METHODS)
def test_samples_do_not_depend_on_their_batch(method: type[FallingCompressor], positions: Any) -> None:
    made = scene(MANY)
    stage = stage_of(method(keep=0.2, positions=positions), 1)
    together, image = decide(stage, made), 0
    for place, sample in enumerate(MANY):
        images = sum(run < 0 for run in sample)
        if not images:
            continue
        alone = decide(stage, scene([sample], first=place))
        assert alone.counts is not None
        assert together.counts is not None
        assert alone.counts == together.counts[image : image + images]
        kept, tokens = max(alone.counts), alone.kept.shape[1]
        assert torch.equal(alone.kept, together.kept[image : image + images, :tokens])
        if together.mix is not None:
            mix = alone.mix
            if mix is None:  # nothing was merged there
                mix = torch.zeros(images, kept, tokens, dtype=together.mix.dtype)
                for own, line in zip(mix, alone.kept, strict=True):
                    own[torch.arange(int(line.sum())), line.nonzero()[:, 0]] = 1
            torch.testing.assert_close(together.mix[image : image + images, :kept, :tokens], mix)
        image += images
    assert image == len(made.layout.lengths)


@pytest.mark.parametrize("method", METHODS)
def test_answers_and_padding_have_no_say(method: type[FallingCompressor]) -> None:
    stage, made = stage_of(method(keep=0.3)), scene(MANY[:2], answers=3)
    assert made.rows.visual.any()
    outside = ~made.rows.prompt
    assert outside[0, -3:].all()
    assert outside[1, :5].all()
    query = made.attention.query.masked_fill(outside[:, None, :, None], -7)
    hidden = made.hidden.masked_fill(outside[:, :, None], -7)
    other = replace(made, hidden=hidden, attention=replace(made.attention, query=query))
    first, second = decide(stage, made), decide(stage, other)
    assert torch.equal(first.kept, second.kept)
    assert first.scores is not None
    assert second.scores is not None
    torch.testing.assert_close(first.scores, second.scores)
    # They would have: the same rows of text, all of the prompt.
    third = decide(stage, replace(other, rows=scene(MANY[:2]).rows))
    assert third.scores is not None
    apart = (first.scores - third.scores).abs().nan_to_num().amax(dim=1)
    assert (apart[:3] > 1e-4).all()


@pytest.mark.parametrize("method", METHODS)
def test_an_image_that_no_text_sees_is_scored_by_the_last_prompt_row(method: type[FallingCompressor]) -> None:
    for first, second in ((9, 20), (20, 9)):
        made = scene([[3, -first, 5, -second]])
        chosen = decide(stage_of(method(keep=9)), made)
        assert chosen.scores is not None
        torch.testing.assert_close(chosen.scores[1, :second], probabilities(made, 0)[-1, -second:])
        assert chosen.scores[1, :second].unique().numel() == second


def test_text_attention_weighs_rows_and_skips_filler() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 6, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    attention = AttentionInputs(query=query, key=key, mask=None, scaling=0.7, causal=False)
    visual = torch.tensor([[False, True, True, False, False, False]])
    rows = Rows(prompt=torch.ones_like(visual), visual=visual, words=~visual, most=6)
    weights = torch.tensor([[0.5, 9, 9, 0.2, 0, 0.3]])
    full = (query @ key.transpose(2, 3) * 0.7).softmax(dim=3).mean(dim=1)[0]
    total, last = text_attention(attention, rows, weights).unbind(dim=2)
    torch.testing.assert_close(total[0], 0.5 * full[0] + 0.2 * full[3] + 0.3 * full[5], atol=1e-7, rtol=0)
    torch.testing.assert_close(last[0], full[5])


def test_one_word_is_no_rater_and_the_last_prompt_row_scores() -> None:
    made = scene([[3, -20, 1]])
    stage = stage_of(SparseVLM(keep=9))
    assert not stage.method.read(made.context()).any()
    chosen = decide(stage, made)
    assert chosen.scores is not None
    torch.testing.assert_close(chosen.scores[0], probabilities(made, 0)[-1, 3:23])


def test_a_sample_without_words_beside_one_with_some() -> None:
    affinity, words = rater_affinity(scene([[3, -9], [3, -9, 4]]).context())
    assert words.sum(dim=1).tolist() == [0, 4]
    torch.testing.assert_close(affinity.sum(dim=1), torch.tensor([0.0, 1.0], dtype=affinity.dtype))


def test_a_batch_without_any_text() -> None:
    made = scene([[-20], [-20]])
    for method in METHODS:
        assert decide(stage_of(method(keep=9)), made).counts == (9, 9)


# ---------------------------------------------------------------------- one by one


def test_pyramiddrop_takes_the_last_prompt_row() -> None:
    made = scene(ONE, answers=2)
    chosen = decide(stage_of(PyramidDrop(keep=7)), made)
    expected = best(probabilities(made, 0)[-3, 5:45], 7)
    assert chosen.kept[0].nonzero()[:, 0].tolist() == expected


def raters(made: Scene, sample: int) -> list[int]:
    """Word by word."""
    visual = made.rows.visual[sample].nonzero()[:, 0].tolist()
    prompt = made.rows.prompt[sample].nonzero()[:, 0].tolist()
    words = [row for row in prompt if row not in visual and row > visual[0]]
    hidden = made.hidden[sample]
    spread = torch.stack([hidden[words] @ hidden[token] for token in visual]).softmax(dim=1).mean(dim=0)
    return [word for word, value in zip(words, spread, strict=True) if value > spread.mean()]


def test_sparsevlm_finds_raters_and_averages_them() -> None:
    made = scene(MANY)
    stage = stage_of(SparseVLM(keep=5))
    weights = stage.method.read(made.context())
    rows = replace(made.rows, read=weights)
    observed = stage.observe(made.attention, rows)
    for sample in (0, 1):
        found = raters(made, sample)
        assert 0 < len(found) < sum(made.rows.prompt[sample]) - sum(made.rows.visual[sample])
        assert weights[sample].nonzero()[:, 0].tolist() == found
        torch.testing.assert_close(observed[sample, :, 0], probabilities(made, sample)[found].mean(dim=0))
    assert len(raters(made, 0)) > 20
    assert max(raters(made, 0)) - min(raters(made, 0)) > 70  # several blocks of rows


@given(length=st.integers(1, 400), data=st.data())
@settings(max_examples=300)
def test_sparsevlm_splits_the_budget_exactly(length: int, data: st.DataObject) -> None:
    target = data.draw(st.integers(1, length))

    def clusters(kept: int) -> int:
        return int((int(0.3 * (length - kept)) + 1) / 10) + 1

    kept, merged = stage_of(SparseVLM(keep=1))._split(length, target)
    assert kept + merged == target
    assert kept >= 1
    if target == length:
        assert merged == 0
    elif 1 + clusters(1) > target:
        assert kept == 1
    else:
        assert merged == clusters(kept)
        assert kept + 1 == length or kept + 1 + clusters(kept + 1) > target
    assert stage_of(SparseVLM(keep=1, recycle=False))._split(length, target) == (target, 0)


def merged_of(mix: Tensor) -> set[tuple[int, ...]]:
    return {tuple(row.nonzero()[:, 0].tolist()) for row in mix}


def test_sparsevlm_merges_the_best_of_the_dropped() -> None:
    made = scene([[5, -90, 9]])
    chosen = decide(stage_of(SparseVLM(keep=20)), made)
    assert chosen.mix is not None
    assert chosen.scores is not None
    scores = probabilities(made, 0)[raters(made, 0)].mean(dim=0)[5:95]
    torch.testing.assert_close(chosen.scores[0], scores)
    kept = 17
    assert kept + int((int(0.3 * 73) + 1) / 10) + 1 == 20
    own = best(scores, kept)
    assert [tuple(row.nonzero()[:, 0].tolist()) for row in chosen.mix[0, :kept]] == [
        (token,) for token in own
    ]
    clusters = merged_of(chosen.mix[0, kept:])
    assert len(clusters) == 3
    together = sorted(token for cluster in clusters for token in cluster)
    assert together == sorted(set(best(scores, kept + 22)) - set(own))


def test_sparsevlm_at_original_positions_leaves_every_token_where_it_stood() -> None:
    made = scene(MANY)
    packed = decide(stage_of(SparseVLM(keep=0.4), 1), made)
    original = decide(stage_of(SparseVLM(keep=0.4, positions="original"), 1), made)
    assert packed.counts == original.counts
    assert packed.counts is not None
    assert torch.equal(packed.kept, original.kept)
    moved = 0
    for image, count in enumerate(packed.counts):
        assert packed.mix is not None
        assert original.mix is not None
        assert merged_of(packed.mix[image, :count]) == merged_of(original.mix[image, :count])
        slots = original.kept[image].nonzero()[:, 0]
        assert (original.mix[image, torch.arange(count), slots] > 0).all()
        moved += int((packed.mix[image, torch.arange(count), slots] == 0).sum())
    assert moved > 0


def test_sparsevlm_without_recycling_keeps_the_best() -> None:
    made = scene([[5, -90, 9]])
    chosen = decide(stage_of(SparseVLM(keep=20, recycle=False)), made)
    assert chosen.mix is None
    assert chosen.scores is not None
    assert chosen.kept[0].nonzero()[:, 0].tolist() == best(chosen.scores[0], 20)


def test_sparsevlm_parity_has_its_clusters_on_top() -> None:
    made = scene([[5, -90, 9], [2, -1, 3], [2, -2, 3]])
    chosen = decide(stage_of(SparseVLM(keep=1, budgets=[60, 20], parity=True), 1), made)
    assert chosen.counts == (23, 1, 2)  # of two tokens one is dropped, and is its own cluster
    assert chosen.mix is not None
    sums = chosen.mix.sum(dim=2)
    assert (sums[0, :20] == 1).all()
    assert ((1 - sums[0, 20:23]) * 1e6 < 1.01).all()
    assert (sums[0, 20:23] < 1).all()
    assert sums[1].tolist() == [1] + [0] * 22
    assert sums[2, 0] == 1
    assert 0 < 1 - sums[2, 1] < 1e-5


def pumer_by_loops(made: Scene, keep: int, share: float) -> list[set[int]]:
    """The members of every kept token of the only image, in raster order."""
    visual = made.rows.visual[0].nonzero()[:, 0]
    text = (made.rows.prompt & ~made.rows.visual)[0].nonzero()[:, 0]
    scores = probabilities(made, 0)[text].mean(dim=0)[visual]
    surplus = len(visual) - keep
    pruned = max(int(share * surplus + 0.5), len(visual) - 2 * keep)
    left = best(scores, len(visual) - pruned)
    keys = made.attention.key[0].mean(dim=0)[visual]
    keys = keys / keys.norm(dim=1, keepdim=True)
    sources, targets = left[::2], left[1::2]
    pairs = []
    for source in sources if targets else []:
        likeness = [(keys[source] @ keys[target]).item() for target in targets]
        partner = max(range(len(targets)), key=likeness.__getitem__)
        pairs.append((likeness[partner], source, targets[partner]))
    members = {token: {token} for token in left}
    for _, source, target in sorted(pairs, reverse=True)[: surplus - pruned]:
        members[target].add(source)
        del members[source]
    return [members[token] for token in sorted(members)]


@pytest.mark.parametrize("share", [0.0, 0.4, 0.75, 1.0])
@pytest.mark.parametrize("keep", [1, 3, 19, 20, 21, 33, 39])
def test_pumer_prunes_and_merges(keep: int, share: float) -> None:
    made = scene(ONE, seed=keep)
    chosen = decide(stage_of(PuMer(keep=keep, prune_share=share)), made)
    expected = pumer_by_loops(made, keep, share)
    assert len(expected) == keep
    slots = chosen.kept[0].nonzero()[:, 0].tolist()
    if chosen.mix is None:
        assert [{slot} for slot in slots] == expected
        return
    assert [set(row.nonzero()[:, 0].tolist()) for row in chosen.mix[0]] == expected
    assert all(slot in members for slot, members in zip(slots, expected, strict=True))
    assert_merges(chosen)
    if keep == 33 and share == 0.4:
        assert sum(map(len, expected)) == 37
        assert max(map(len, expected)) > 1


# ---------------------------------------------------------------------- inside a model


@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize("method", METHODS)
def test_in_a_model_every_image_ends_with_exactly_keep(method: type[FallingCompressor]) -> None:
    model, inputs = llava(), batch([1, 2, 0], [9, 4, 6])
    for keep in (1, 5, 0.25):
        with foveal.compress(model, method(keep=keep)) as run:
            assert model(**inputs).logits.isfinite().all()
        final = keep if isinstance(keep, int) else 9
        counts = [[len(image) for image in stage.kept_in_image] for stage in run.stages]
        expected = [geometric([final], [TOKENS], number, 3)[0] for number in range(3)]
        assert counts == [[count] * 3 for count in expected]


@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize("method", METHODS)
def test_in_a_model_keeping_all_is_the_model_itself(method: type[FallingCompressor]) -> None:
    model, inputs = llava(), batch([1, 2, 0], [9, 4, 6])
    dense = model(**inputs).logits
    with foveal.compress(model, method(keep=TOKENS)):
        assert torch.equal(model(**inputs).logits, dense)


@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize("method", METHODS)
def test_in_a_model_samples_do_not_depend_on_their_batch(method: type[FallingCompressor]) -> None:
    model, inputs = llava(), batch([2, 1], [4, 9])
    with foveal.compress(model, method(keep=6)):
        together = model(**inputs).logits[:, -1]
        for sample, images in ((0, slice(0, 2)), (1, slice(2, 3))):
            real = inputs["attention_mask"][sample].bool()
            alone = model(
                input_ids=inputs["input_ids"][sample : sample + 1, real],
                attention_mask=inputs["attention_mask"][sample : sample + 1, real],
                pixel_values=inputs["pixel_values"][images],
            ).logits[0, -1]
            torch.testing.assert_close(alone, together[sample], atol=1e-5, rtol=0)
