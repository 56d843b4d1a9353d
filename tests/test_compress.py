"""compress, attach and detach: what they restore, report and refuse."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

import foveal
from support.tiny import IMAGE, TOKENS, batch, causal_lm, llava

pytestmark = pytest.mark.usefixtures("inference")

METHODS = [foveal.Random(keep=9), foveal.FastV(keep=9), foveal.DART(keep=9)]


def hooks_of(model: nn.Module) -> list[tuple[str, list[Any]]]:
    """Hooks by module; transformers installs some of its own at the first forward."""
    return [
        (name, [*m._forward_pre_hooks.values(), *m._forward_hooks.values()])
        for name, m in model.named_modules()
    ]


def state_of(model: nn.Module) -> list[tuple[str, list[str], int]]:
    """Attributes and configs of every module, by identity."""
    return [(name, sorted(m.__dict__), id(getattr(m, "config", None))) for name, m in model.named_modules()]


@pytest.mark.parametrize("method", METHODS)
def test_leaving_the_block_restores_the_model(method: foveal.Compressor) -> None:
    model, inputs = llava(), batch([1], [9])
    before = model(**inputs).logits
    state, hooks = state_of(model), hooks_of(model)
    with foveal.compress(model, method):
        assert hooks_of(model) != hooks
        assert not torch.equal(model(**inputs).logits, before)
    assert hooks_of(model) == hooks
    assert state_of(model) == state
    assert torch.equal(model(**inputs).logits, before)


def test_an_exception_restores_the_model_too() -> None:
    model, inputs = llava(), batch([1], [9])
    before = model(**inputs).logits
    state, hooks = state_of(model), hooks_of(model)
    too_many = pytest.raises(foveal.FovealError, match="keep=99 is more than the 36 visual tokens")
    with too_many, foveal.compress(model, foveal.FastV(keep=99)):
        model(**inputs)
    assert hooks_of(model) == hooks
    assert state_of(model) == state
    assert torch.equal(model(**inputs).logits, before)


def test_a_failed_forward_leaves_nothing_for_the_next() -> None:
    model, inputs = llava(), batch([1], [9])
    text = batch([0], [9])
    expected = model(**text).logits
    with foveal.compress(model, "dart", keep=30):
        with pytest.raises(ValueError, match="do not match"):
            model(**{**inputs, "pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1)})
        assert torch.equal(model(**text).logits, expected)


@pytest.mark.parametrize("keep", [TOKENS, 1.0])
@pytest.mark.parametrize("method", ["random", "fastv", "dart"])
def test_keeping_all_tokens_is_the_plain_model_bit_for_bit(method: str, keep: float) -> None:
    model, inputs = llava(dtype=torch.float32), batch([1, 2, 0], [9, 4, 12])
    inputs["pixel_values"] = inputs["pixel_values"].float()
    plain = model(**inputs).logits
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    with foveal.compress(model, method, keep=keep) as run:
        assert torch.equal(model(**inputs).logits, plain)
        assert [len(kept) for kept in run.kept] == [TOKENS, 2 * TOKENS, 0]
        assert torch.equal(model.generate(**inputs, max_new_tokens=6, do_sample=False), tokens)


@pytest.mark.parametrize("method", METHODS)
def test_a_ragged_batch_keeps_what_each_sample_keeps_alone(method: foveal.Compressor) -> None:
    model = llava()
    together = batch([1, 2, 0], [9, 4, 12])
    with foveal.compress(model, method) as run:
        model(**together)
        ragged = [image.tolist() for image in run.stages[0].kept_in_image]
    assert run.stages[0].image_samples == [0, 1, 1]
    pixels, alone = list(together["pixel_values"]), []
    for sample, images in ((0, 1), (1, 2)):
        real = together["attention_mask"][sample].bool()
        one = {name: together[name][sample, real][None] for name in ("input_ids", "attention_mask")}
        one["pixel_values"] = torch.stack([pixels.pop(0) for _ in range(images)])
        with foveal.compress(model, method) as run:
            model(**one)
        alone += [image.tolist() for image in run.stages[0].kept_in_image]
    assert ragged == alone


def test_the_record_says_which_tokens_stayed() -> None:
    model, inputs = llava(), batch([1, 2], [9, 4])
    with foveal.compress(model, foveal.FastV(keep=5)) as run:
        model(**inputs)
    stage = run.stages[0]
    assert stage.layer == 2
    assert len(stage.kept_in_image) == 3
    for sample, kept in enumerate(run.kept):
        assert bool((inputs["input_ids"][sample, kept] == IMAGE).all())
    first = int((inputs["input_ids"][0] == IMAGE).nonzero()[0])
    assert (stage.kept_in_image[0] + first).tolist() == run.kept[0].tolist()
    assert stage.scores is not None
    best = stage.scores[0].topk(5).indices.sort().values
    assert torch.equal(best, stage.kept_in_image[0])


def test_adjacent_images_are_told_apart_by_the_familys_token_count() -> None:
    model, inputs = llava(), batch([2], [4])
    ids = inputs["input_ids"]
    text, images = ids[ids != IMAGE], ids[ids == IMAGE]
    inputs["input_ids"] = torch.cat([text[:2], images, text[2:]])[None]
    with foveal.compress(model, foveal.Random(keep=5)) as run:
        model(**inputs)
    assert [len(kept) for kept in run.stages[0].kept_in_image] == [5, 5]


def test_attach_and_detach() -> None:
    model, inputs = llava(), batch([1], [9])
    plain = model(**inputs).logits
    run = foveal.attach(model, foveal.Random(keep=9))
    assert not torch.equal(model(**inputs).logits, plain)
    run.detach()
    run.detach()
    assert torch.equal(model(**inputs).logits, plain)
    foveal.attach(model, "random", keep=9).detach()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks by the old name
def test_a_lora_model_is_compressed_in_generate_too() -> None:
    base, inputs = llava(), batch([1], [9])
    with foveal.compress(base, foveal.DART(keep=4)):
        expected = base.generate(**inputs, max_new_tokens=8, do_sample=False)
    wrapped = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    with foveal.compress(wrapped, foveal.DART(keep=4)) as run:
        tokens = wrapped.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(tokens, expected)
    assert len(run.kept[0]) == 4


def test_attaching_to_the_base_model_compresses_too() -> None:
    model, inputs = llava(), batch([1], [9])
    with foveal.compress(model, foveal.DART(keep=4)):
        expected = model(**inputs).logits
    with foveal.compress(model.model, foveal.DART(keep=4)) as run:
        assert torch.equal(model(**inputs).logits, expected)
    assert len(run.kept[0]) == 4


def test_a_compressed_model_may_run_inside_another() -> None:
    model, judge = llava(), llava()
    inputs, others = batch([1], [9]), batch([1, 2], [6, 7], seed=4)

    @dataclass(frozen=True, kw_only=True)
    class Judged(foveal.Compressor):
        def score(self, context: foveal.TokenContext) -> Tensor:
            judge(**others)
            return context.layout.gather(context.hidden)[..., 0]

    @dataclass(frozen=True, kw_only=True)
    class Alone(foveal.Compressor):
        def score(self, context: foveal.TokenContext) -> Tensor:
            return context.layout.gather(context.hidden)[..., 0]

    with foveal.compress(model, Alone(keep=4)):
        expected = model(**inputs).logits
    with foveal.compress(model, Judged(keep=4)), foveal.compress(judge, "dart", keep=5):
        assert torch.equal(model(**inputs).logits, expected)


def test_a_failed_forward_says_nothing_about_the_next_call_of_the_decoder() -> None:
    model, inputs = llava(), batch([1], [9])
    embeds = torch.randn(1, inputs["input_ids"].shape[1], 32, dtype=torch.float64)
    plain = model.get_decoder()(inputs_embeds=embeds).last_hidden_state
    with foveal.compress(model, "dart", keep=4):
        with pytest.raises(ValueError, match="do not match"):
            model(**{**inputs, "pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1)})
        assert torch.equal(model.get_decoder()(inputs_embeds=embeds).last_hidden_state, plain)


def test_an_image_that_is_masked_out_does_not_count() -> None:
    model, inputs = llava(), batch([2], [9])
    first = (inputs["input_ids"][0] == IMAGE).nonzero()[:TOKENS, 0]
    inputs["attention_mask"][0, first] = 0
    with foveal.compress(model, foveal.Random(keep=3)) as run:
        model(**inputs)
    assert [len(kept) for kept in run.stages[0].kept_in_image] == [3]
    assert run.kept[0].min() > first.max()


def test_a_mask_with_a_bias_on_its_diagonal_marks_no_padding() -> None:
    model, inputs = llava(attention="eager"), batch([1], [9])
    rows = inputs["input_ids"].shape[1]
    mask = torch.full((rows, rows), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1) - 0.25
    with foveal.compress(model, foveal.Random(keep=3)) as run:
        model(**{**inputs, "attention_mask": mask[None, None]})
    assert len(run.kept[0]) == 3


def test_interleaved_caches_do_not_disturb_each_other() -> None:
    model = llava()
    first, second = batch([1], [9]), batch([1, 1], [4, 6], seed=3)
    step = torch.tensor([[17]])

    def decode(inputs: dict[str, Tensor], cache: Any) -> Tensor:
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        rows = step.expand(len(mask), 1)
        logits: Tensor = model(
            input_ids=rows, attention_mask=mask, past_key_values=cache, use_cache=True
        ).logits
        return logits

    with foveal.compress(model, foveal.DART(keep=4)):
        alone = decode(first, model(**first, use_cache=True).past_key_values)
        cache_1 = model(**first, use_cache=True).past_key_values
        cache_2 = model(**second, use_cache=True).past_key_values
        between = decode(first, cache_1)
        decode(second, cache_2)
    assert torch.equal(alone, between)


def test_cropping_generated_tokens_is_fine_and_cropping_the_prompt_is_refused() -> None:
    model, inputs = llava(), batch([1], [9])
    with foveal.compress(model, foveal.DART(keep=4)):
        cache = model(**inputs, use_cache=True).past_key_values
        length = cache.get_seq_length()
        assert length == inputs["input_ids"].shape[1]
        step = {"attention_mask": torch.ones(1, length + 1), "past_key_values": cache, "use_cache": True}
        once = model(input_ids=torch.tensor([[17]]), **step).logits
        cache.crop(-1)
        assert cache.get_seq_length() == length
        assert torch.equal(model(input_ids=torch.tensor([[17]]), **step).logits, once)
        with pytest.raises(foveal.FovealError, match="reaches into the compressed prompt"):
            cache.crop(-40)


@pytest.mark.parametrize("name", ["ragged", "one"])
def test_hidden_states_line_up_with_the_input(name: str) -> None:
    model, inputs = llava(), batch(*{"ragged": ([1, 2, 0], [9, 4, 12]), "one": ([1], [9])}[name])
    plain = model(**inputs, output_hidden_states=True).hidden_states
    stages = [foveal.Random(keep=20, layer=1), foveal.FastV(keep=7, layer=4)]
    with foveal.compress(model, stages) as run:
        out = model(**inputs, output_hidden_states=True)
    assert torch.equal(model.lm_head(out.hidden_states[-1]), out.logits)
    assert [state.shape for state in out.hidden_states] == [state.shape for state in plain]
    alive = [(state != 0).any(-1) & (inputs["input_ids"] == IMAGE) for state in out.hidden_states]
    per_image = [int(rows.sum()) // int(alive[0].sum() // TOKENS) for rows in alive]
    assert per_image == [TOKENS, TOKENS, 20, 20, 20, 7, 7]
    assert torch.equal(alive[-1][0].nonzero()[:, 0], run.kept[0])
    assert all(torch.equal(*pair) for pair in zip(plain[:2], out.hidden_states[:2], strict=True))


@pytest.mark.parametrize("static", [False, True])
def test_a_cache_made_under_compression_works_only_there(static: bool) -> None:
    model, inputs = llava(), batch([1], [9])
    length = inputs["input_ids"].shape[1]
    config = model.config.get_text_config()

    def prefill() -> Any:
        cache = StaticCache(config, max_cache_len=length + 8) if static else DynamicCache(config=config)
        return model(**inputs, past_key_values=cache, use_cache=True).past_key_values

    def step(cache: Any) -> Tensor:
        positions = torch.tensor([[length]])
        logits: Tensor = model(
            input_ids=torch.tensor([[17]]), position_ids=positions, past_key_values=cache, use_cache=True
        ).logits
        return logits

    made, later = foveal.DART(keep=4), foveal.Random(keep=4, layer=3)
    with foveal.compress(model, made):
        cache, branch = prefill(), prefill()
        copied = copy.deepcopy(branch)
        expected = step(cache)
        assert torch.equal(step(copied), expected)
    plain = step(prefill())
    assert (plain - expected).abs().max() > 1e-4
    refusal = "this cache holds a compressed prompt: go on inside foveal.compress"
    with pytest.raises(foveal.FovealError, match=refusal):
        step(branch)
    with foveal.compress(model, later), pytest.raises(foveal.FovealError, match=refusal):
        step(branch)
    with foveal.compress(model, foveal.FastV(keep=9, layer=1)):
        assert torch.equal(step(branch), expected)


def test_tokens_by_layer() -> None:
    model, inputs = llava(), batch([1, 2], [9, 7])
    stages = [foveal.Random(keep=0.5, layer=0), foveal.DART(keep=6, layer=3)]
    with foveal.compress(model, stages) as run:
        with pytest.raises(foveal.FovealError, match="nothing was compressed yet"):
            run.tokens_by_layer  # noqa: B018
        model(**inputs)
        assert run.tokens_by_layer == [18, 18, 18, 6, 6, 6]


def test_labels_behind_dropped_tokens_are_refused() -> None:
    model, inputs = llava(), batch([1], [9])
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -3:] = inputs["input_ids"][:, -3:]
    with foveal.compress(model, foveal.DART(keep=4)):
        assert torch.isfinite(model(**inputs, labels=labels).loss)
        labels[:, 10] = 7
        with pytest.raises(foveal.FovealError, match=r"label 10 of sample 0 .* set it to -100"):
            model(**inputs, labels=labels)


def test_answers_do_not_choose_the_tokens() -> None:
    model, inputs = llava(), batch([1], [12])
    other = inputs["input_ids"].clone()
    other[:, -4:] = (other[:, -4:] + 31) % 100 + 10
    labels = torch.full_like(other, -100)
    labels[:, -4:] = 1
    for method in ("dart", "fastv"):
        kept = []
        for ids in (inputs["input_ids"], other):
            with foveal.compress(model, method, keep=4) as run:
                model(**{**inputs, "input_ids": ids}, labels=labels)
            kept.append(run.kept[0].tolist())
        assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: foveal.DART(keep=0), "keep=0 must be at least 1"),
        (lambda: foveal.DART(keep=1.5), r"fraction must be in \(0, 1\]"),
        (lambda: foveal.DART(keep=True), "no number"),
        (lambda: foveal.FastV(keep=4, layer=0), "layer=0 is too low for FastV"),
        (lambda: foveal.DART(keep=4, image_pivots=0), "image_pivots=0 must be at least 1"),
        (lambda: foveal.Random(keep=4, layer=-1), "layer=-1 is too low"),
        (lambda: foveal.get("fastvv", keep=4), "unknown method 'fastvv': choose one of cdpruner, dart"),
        (lambda: foveal.get("dart", keep=4, ratio=2), "unexpected keyword argument 'ratio'"),
        (lambda: foveal.get("dart"), "missing .* 'keep'"),
        (lambda: foveal.attach(llava(), foveal.DART(keep=4, layer=6)), "layer=6 is beyond .* layers 0 to 5"),
        (lambda: foveal.attach(llava(), foveal.DART(keep=4), layer=3), r"options \['layer'\]"),
        (lambda: foveal.attach(causal_lm(), foveal.DART(keep=4)), "has no image token"),
        (lambda: foveal.attach(nn.Linear(2, 2), foveal.DART(keep=4)), "Linear is no transformers model"),
    ],
)
def test_bad_options_name_the_culprit(make: Any, message: str) -> None:
    with pytest.raises(foveal.FovealError, match=message):
        make()


def test_compressing_twice_is_refused() -> None:
    model = llava()
    first = foveal.attach(model, foveal.Random(keep=4))
    with pytest.raises(foveal.FovealError, match="compressed already"):
        foveal.attach(model, foveal.DART(keep=4))
    first.detach()
    foveal.attach(model, foveal.DART(keep=4)).detach()


def test_embeddings_without_a_mask_are_refused() -> None:
    model, inputs = llava(), batch([1], [9])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with (
        foveal.compress(model, foveal.Random(keep=4)),
        pytest.raises(foveal.FovealError, match="pass visual_mask"),
    ):
        model(inputs_embeds=embeds)


def test_a_mask_of_the_wrong_shape_is_refused() -> None:
    model = causal_lm()
    mask = torch.zeros(1, 12, dtype=torch.bool)
    with foveal.compress(model, foveal.Random(keep=4), visual_mask=mask) as run:
        with pytest.raises(foveal.FovealError, match=r"visual_mask has shape \(1, 12\)"):
            model(inputs_embeds=torch.zeros(1, 13, 32, dtype=torch.float64))
        run.visual_mask = torch.ones(1, 13, dtype=torch.bool)
        model(inputs_embeds=torch.zeros(1, 13, 32, dtype=torch.float64))


def test_the_record_before_any_forward() -> None:
    with (
        foveal.compress(llava(), foveal.Random(keep=4)) as run,
        pytest.raises(foveal.FovealError, match="nothing was compressed yet"),
    ):
        _ = run.kept
