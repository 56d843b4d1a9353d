"""The compressed model against the masked oracle, float64: prefill, decode, and every way to generate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

import foveal
from support import exactness
from support.exactness import STEPS, TOLERANCE
from support.oracle import closed_columns, visible_columns
from support.tiny import IMAGE, TOKENS, VOCABULARY, batch, causal_lm, llava, prepared, text_config

pytestmark = pytest.mark.usefixtures("exact_softmax", "inference")

BATCHES = {
    "one": ([1], [9]),
    "ragged": ([1, 2, 0], [9, 4, 12]),
    "equal": ([1, 1], [7, 7]),
    "no image": ([0, 0], [7, 5]),
}


def methods(layer: int) -> list[foveal.Compressor]:
    random = [foveal.Random(keep=9, layer=layer, seed=3), foveal.Random(keep=0.2, layer=layer)]
    if layer == 0:
        return random
    return [*random, foveal.FastV(keep=9, layer=layer), foveal.DART(keep=9, layer=layer)]


CASES = [
    pytest.param(method, id=f"{method.card.name}-{method.keep}-layer{method.layer}")
    for layer in (0, 1, 2, 4, 5)
    for method in methods(layer)
    if method.card
]


def decoder_layers(model: Any) -> Any:
    return model.get_decoder().layers


def oracle(model: Any, inputs: dict[str, Tensor], kept: list[Tensor], layer: int, **extra: Any) -> Tensor:
    """Logits of the unmodified model whose layers >= `layer` cannot see the tokens that were not kept."""
    visible = visible_columns(inputs["input_ids"] == IMAGE, inputs["attention_mask"], kept)
    with closed_columns(decoder_layers(model), layer, visible):
        logits: Tensor = model(**inputs, use_cache=False, **extra).logits
    return logits


def extended(inputs: dict[str, Tensor], sequences: Tensor) -> dict[str, Tensor]:
    """The prompt with what was generated behind it, and generate's own positions."""
    new = sequences.shape[1] - inputs["input_ids"].shape[1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, new), value=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {**inputs, "input_ids": sequences, "attention_mask": mask, "position_ids": positions}


def repeated(inputs: dict[str, Tensor], times: int) -> dict[str, Tensor]:
    """Each sample `times` in a row (every sample with exactly one image)."""
    return {name: tensor.repeat_interleave(times, dim=0) for name, tensor in inputs.items()}


def difference(logits: Tensor, reference: Tensor, rows: Tensor) -> float:
    return (logits - reference)[rows].abs().max().item()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("method", CASES)
def test_prefill(method: foveal.Compressor, name: str, side: str, attention: str) -> None:
    model, inputs = llava(attention=attention), batch(*BATCHES[name], side)
    images, visual = BATCHES[name][0], inputs["input_ids"] == IMAGE
    with foveal.compress(model, method) as run:
        logits = model(**inputs).logits
    kept = run.kept if sum(images) else [torch.tensor([], dtype=torch.long)] * len(images)
    per_image = round(method.keep * TOKENS) if isinstance(method.keep, float) else method.keep
    assert [len(positions) for positions in kept] == [per_image * count for count in images]
    rows = visible_columns(visual, inputs["attention_mask"], kept)
    assert difference(logits, oracle(model, inputs, kept, method.layer), rows) < TOLERANCE
    assert not logits[visual & ~rows].any()
    if sum(images):
        plain = model(**inputs).logits
        assert difference(logits, plain, rows) > 1e-4, "dropping tokens changes nothing: this test is blind"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["one", "ragged", "equal"])
@pytest.mark.parametrize("method", CASES)
def test_greedy_decode(method: foveal.Compressor, name: str, attention: str) -> None:
    model, inputs = llava(attention=attention), batch(*BATCHES[name])
    with foveal.compress(model, method) as run:
        out = generate(model, inputs)
    assert_follows_oracle(model, inputs, out, run, method.layer)


def generate(model: Any, inputs: dict[str, Tensor], **options: Any) -> Any:
    """Generate STEPS tokens; `step_logits` of the result is (batch, STEPS, vocabulary) in full precision."""
    out, steps = exactness.generate(model, inputs, output_scores=True, **options)
    out["step_logits"] = steps
    return out


def assert_follows_oracle(
    model: Any, inputs: dict[str, Tensor], out: Any, run: foveal.Run, layer: int
) -> None:
    """The logits of every step equal the oracle's on the whole sequence."""
    reference = oracle(model, extended(inputs, out.sequences), run.kept, layer)[:, -STEPS - 1 : -1]
    assert out["step_logits"].shape == reference.shape
    assert (out["step_logits"] - reference).abs().max() < TOLERANCE


def test_greedy_tokens_are_the_oracles_own_choice() -> None:
    model, inputs, method = llava(), batch([1, 1], [9, 5]), foveal.DART(keep=6)
    with foveal.compress(model, method) as run:
        out = generate(model, inputs)
    prompt, kept = inputs["input_ids"].shape[1], run.kept
    chosen = oracle(model, extended(inputs, out.sequences), kept, 2)[:, prompt - 1 : -1].argmax(-1)
    assert torch.equal(chosen, out.sequences[:, prompt:])


@pytest.mark.parametrize(
    "method", [foveal.FastV(keep=7), foveal.DART(keep=7), foveal.Random(keep=0.3, layer=0)]
)
def test_sampling_with_several_return_sequences(method: foveal.Compressor) -> None:
    model, inputs = llava(), batch([1, 1], [9, 5])
    torch.manual_seed(1)
    with foveal.compress(model, method) as run:
        out = generate(model, inputs, do_sample=True, num_return_sequences=3)
    assert len(set(map(tuple, out.sequences[:, -STEPS:].tolist()))) > 2
    assert_follows_oracle(model, repeated(inputs, 3), out, run, method.layer)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "method", [foveal.FastV(keep=7), foveal.DART(keep=7), foveal.Random(keep=0.3, layer=0)]
)
def test_beams(method: foveal.Compressor, attention: str) -> None:
    model, inputs = llava(attention=attention), batch([1, 1], [9, 5])
    options = {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.0}
    with foveal.compress(model, method) as run:
        out = generate(model, inputs, **options)
    each = [run.kept[sample * 4] for sample in (0, 0, 1, 1)]
    full = extended(repeated(inputs, 2), out.sequences)
    log_probabilities = oracle(model, full, each, method.layer)[:, -STEPS - 1 : -1].log_softmax(-1)
    of_tokens = log_probabilities.gather(2, out.sequences[:, -STEPS:, None]).sum((1, 2))
    assert (of_tokens - out.sequences_scores).abs().max() < 1e-5  # beam scores are kept in float32
    greedy = generate(model, inputs, num_beams=4, length_penalty=0.0)
    assert not torch.equal(greedy.sequences[0], out.sequences[0])


@pytest.mark.parametrize("second_image", [False, True])
@pytest.mark.parametrize(
    "method", [foveal.FastV(keep=7), foveal.DART(keep=7), foveal.Random(keep=0.3, layer=0)]
)
def test_two_turns_on_one_cache(method: foveal.Compressor, second_image: bool) -> None:
    model, first = llava(), batch([1, 1], [9, 5])
    question = batch([int(second_image)] * 2, [4, 4], seed=7)
    with foveal.compress(model, method) as run:
        out = generate(model, first)
        kept = [run.kept]
        ids = torch.cat([out.sequences, question["input_ids"]], dim=1)
        mask = torch.nn.functional.pad(
            first["attention_mask"], (0, ids.shape[1] - len(first["attention_mask"][0])), value=1
        )
        turn = {"input_ids": ids, "attention_mask": mask}
        if second_image:
            turn["pixel_values"] = question["pixel_values"]
        out = generate(model, turn, past_key_values=out.past_key_values)
        if second_image:
            kept.append(run.kept)
    pixels = first["pixel_values"]
    if second_image:
        pixels = torch.stack([first["pixel_values"], question["pixel_values"]], 1).flatten(0, 1)
    whole = extended({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}, out.sequences)
    alive = [torch.cat(turns) for turns in zip(*kept, strict=True)]
    reference = oracle(model, whole, alive, method.layer)[:, -STEPS - 1 : -1]
    assert (out["step_logits"] - reference).abs().max() < TOLERANCE


@pytest.mark.parametrize("beams", [1, 3])
def test_bare_language_model_with_inputs_embeds(beams: int) -> None:
    model = causal_lm()
    embeds = torch.randn(2, 40, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    visual = torch.zeros(2, 40, dtype=torch.bool)
    visual[0, 5:30], visual[1, 3:20] = True, True
    mask = torch.ones(2, 40, dtype=torch.long)
    with foveal.compress(model, foveal.DART(keep=6), visual_mask=visual) as run:
        inputs = {"inputs_embeds": embeds, "attention_mask": mask}
        out = generate(model, inputs, num_beams=beams, length_penalty=0.0)
    kept = run.kept[::beams]
    tokens = model.get_input_embeddings()(out.sequences)
    whole = torch.cat([embeds, tokens], dim=1)
    visible = visible_columns(
        torch.nn.functional.pad(visual, (0, STEPS)), torch.ones(2, 40 + STEPS, dtype=torch.long), kept
    )
    with closed_columns(decoder_layers(model), 2, visible):
        reference = model(inputs_embeds=whole, use_cache=False).logits[:, 39:-1]
    if beams == 1:
        assert (out["step_logits"] - reference).abs().max() < TOLERANCE
    else:
        of_tokens = reference.log_softmax(-1).gather(2, out.sequences[..., None]).sum((1, 2))
        assert (of_tokens - out.sequences_scores).abs().max() < 1e-5


def test_sliding_window_layers_count_logical_distance() -> None:
    torch.manual_seed(0)
    base = text_config().to_dict()
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    config = MistralConfig(**{name: base[name] for name in names}, vocab_size=VOCABULARY, sliding_window=16)
    model = prepared(MistralForCausalLM(config).double().eval())
    embeds = torch.randn(1, 40, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    visual = torch.zeros(1, 40, dtype=torch.bool)
    visual[0, 5:30] = True
    with foveal.compress(model, foveal.Random(keep=6, layer=1), visual_mask=visual) as run:
        out = generate(model, {"inputs_embeds": embeds})
    whole = torch.cat([embeds, model.get_input_embeddings()(out.sequences)], dim=1)
    real = torch.ones(1, 40 + STEPS, dtype=torch.long)
    visible = visible_columns(torch.nn.functional.pad(visual, (0, STEPS)), real, run.kept)
    with closed_columns(decoder_layers(model), 1, visible, window=16):
        reference = model(inputs_embeds=whole, use_cache=False).logits[:, 39:-1]
    assert (out["step_logits"] - reference).abs().max() < TOLERANCE
