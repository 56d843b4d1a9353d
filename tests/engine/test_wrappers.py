"""Compression stays exact under everything that wraps, distributes, compiles, trains or shares a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import foveal
from foveal.compression import attached
from foveal.engine import refusals
from foveal.engine.families import unwrap
from support import families
from support.exactness import TOLERANCE, Inputs, compare_decode, hidden_by, oracle
from support.families import FAMILIES
from support.library import since_5_23
from support.oracle import hidden_columns
from support.tiny import causal_lm
from support.wrappers import (
    FIRST,
    SECOND,
    STAGES,
    Devices,
    backward,
    blocks,
    gradients,
    in_each_of_two,
    labels_of,
    processes,
    shard,
    spread,
    step_difference,
    trainable,
    written,
)

pytestmark = [
    pytest.mark.usefixtures("exact_softmax"),
    # PEFT asks by the old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

inference = pytest.mark.usefixtures("inference")
NAMES = ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3"]
OBSERVERS = [foveal.FastV(keep=5), foveal.DART(keep=5)]
Results = list[tuple[Tensor, list[Tensor]]]


def build(family: str, layers: int = 6, attention: str = "sdpa") -> Any:
    return FAMILIES[family].build(layers, attention)


def ragged(family: str, seed: int = 0) -> Inputs:
    return families.batch(family, [1, 2], [9, 6], seed=seed)


def generated(called: Any, inputs: Inputs, steps: int = 4) -> tuple[Tensor, Tensor]:
    """Tokens (batch, rows + steps) and (batch, steps, vocabulary) logits in full precision."""
    logits: list[Tensor] = []
    base: Any = unwrap(called)
    handle = base.lm_head.register_forward_hook(lambda *call: logits.append(call[-1][:, -1]))
    tokens = called.generate(**inputs, max_new_tokens=steps, do_sample=False)
    handle.remove()
    return tokens, torch.stack(logits, dim=1)


@torch.no_grad()
def difference_from_oracle(family: str, called: Any, run: foveal.Run) -> float:
    """Prefill and decode through `called`, which `run` compresses until then."""
    inputs = ragged(family)
    visual = families.visual(family, inputs)
    logits, hidden = called(**inputs).logits, hidden_by(run, visual)
    tokens, steps = generated(called, inputs)
    later = hidden_by(run, visual)
    assert len(run.stages) == len(run.compressors)
    run.detach()
    dropped = hidden[-1][1]
    assert not logits[dropped].any()
    alive = inputs["attention_mask"].bool() & ~dropped
    plain = called(**inputs).logits
    assert (logits - plain)[alive].abs().max() > 1e-3, "dropping tokens changes nothing: this test is blind"
    prefill = float((logits - oracle(called, inputs, hidden))[alive].abs().max())
    return max(prefill, compare_decode(family, called, inputs, later, tokens, steps))


@torch.no_grad()
def compressed(
    model: Any, inputs: Inputs, methods: Any = STAGES, called: Any = None, **options: Any
) -> tuple[Tensor, list[Tensor]]:
    """Logits through `called`, and what was kept, with `model` compressed."""
    with foveal.compress(model, methods, **options) as run:
        logits = (model if called is None else called)(**inputs).logits
        return logits, run.kept


def assert_same(found: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]]) -> None:
    """Bit for bit."""
    assert torch.equal(found[0], expected[0])
    assert_same_tokens(found[1], expected[1])


def assert_same_tokens(found: list[Tensor], expected: list[Tensor]) -> None:
    assert [kept.tolist() for kept in found] == [kept.tolist() for kept in expected]


# ---------------------------------------------------------------------- PEFT


def with_adapters(model: Any, target: str = r".*language_model.*\.(q|k|v|o|up)_proj") -> Any:
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(target_modules=target, r=4, init_lora_weights=False))


@inference
@pytest.mark.parametrize("attach_to", ["the PEFT model", "the base model"])
@pytest.mark.parametrize("family", NAMES)
def test_lora_adapters_are_active(family: str, attach_to: str, support: Any) -> None:
    model = with_adapters(build(family))
    run = foveal.attach(model if attach_to == "the PEFT model" else unwrap(model), STAGES)
    difference = difference_from_oracle(family, model, run)
    support(family, f"LoRA, attached to {attach_to}", difference)
    assert difference < TOLERANCE


@inference
@pytest.mark.parametrize("family", NAMES)
def test_disabled_adapters_leave_the_compressed_base_model(family: str, support: Any) -> None:
    base, inputs = build(family), ragged(family)
    expected = compressed(base, inputs)
    model = with_adapters(base)
    with foveal.compress(model, STAGES) as run:
        active = model(**inputs).logits
        with model.disable_adapter():
            logits, kept = model(**inputs).logits, run.kept
    assert (active - expected[0]).abs().max() > 1e-3
    assert_same_tokens(kept, expected[1])
    difference = float((logits - expected[0]).abs().max())
    support(family, "LoRA, disabled", difference)
    assert difference < TOLERANCE


@inference
@pytest.mark.parametrize("family", NAMES)
def test_merging_adapters_while_compressed(family: str, support: Any) -> None:
    model, inputs = with_adapters(build(family)), ragged(family)
    logits, kept = compressed(model, inputs)
    run = foveal.attach(model, STAGES)
    merged = model.merge_and_unload()
    assert (merged(**inputs).logits - logits).abs().max() < TOLERANCE
    assert_same_tokens(run.kept, kept)
    difference = difference_from_oracle(family, merged, run)
    support(family, "LoRA, merged", difference)
    assert difference < TOLERANCE


@inference
@pytest.mark.parametrize("method", OBSERVERS, ids=["fastv", "dart"])
@pytest.mark.parametrize("family", NAMES)
def test_methods_see_the_adapters_of_the_attention_they_observe(
    family: str, method: foveal.Compressor, support: Any
) -> None:
    base, inputs = build(family), ragged(family)
    _, without = compressed(base, inputs, method)
    model = with_adapters(base, r".*language_model.*layers\.1\.self_attn\.(q|k)_proj")
    run = foveal.attach(model, method)
    model(**inputs)
    assert [k.tolist() for k in run.kept] != [k.tolist() for k in without]
    difference = difference_from_oracle(family, model, run)
    support(family, "LoRA, observed layer", difference)
    assert difference < TOLERANCE


# ---------------------------------------------------------------------- what a wrapper may change


def calling_forward(model: Any) -> Callable[..., Any]:
    """What PEFT did for years: the module's own hooks do not run."""

    def called(**inputs: Any) -> Any:
        return model.forward(**inputs)

    return called


WAYS_IN: dict[str, Callable[[Any], Any]] = {
    "the model": lambda model: model,
    "PEFT": with_adapters,
    "a wrapper that calls forward": calling_forward,
}


@inference
@pytest.mark.parametrize("way_in", WAYS_IN)
def test_labels_reach_the_methods(way_in: str) -> None:
    model, inputs = build("llava"), families.batch("llava", [1], [9])
    called = WAYS_IN[way_in](model)
    labels = labels_of(inputs)
    other = {**inputs, "input_ids": torch.where(labels != -100, 139 - labels, inputs["input_ids"])}
    kept, lost = [], labels.clone()
    lost[:, 10] = 25
    with foveal.compress(model, foveal.DART(keep=4)) as run:
        for answers in (inputs, other):
            called(**answers, labels=labels)
            kept.append(run.kept[0].tolist())
        with pytest.raises(foveal.FovealError, match="label 10 of sample 0"):
            called(**inputs, labels=lost)
    assert kept[0] == kept[1]


@inference
@pytest.mark.parametrize("family", NAMES)
def test_features_that_someone_else_wraps_are_still_counted(family: str) -> None:
    model, inputs = build(family), ragged(family)
    expected = compressed(model, inputs)
    theirs = model.base_model.get_image_features

    @wraps(theirs)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return theirs(*args, **kwargs)

    model.base_model.get_image_features = wrapper
    assert_same(compressed(model, inputs), expected)
    assert model.base_model.get_image_features is wrapper


# ---------------------------------------------------------------------- Accelerate


def some_layers_on_disk(model: Any, folder: Path) -> None:
    layers = list(model.get_decoder().layers)
    on_disk = {layers[1], layers[2], layers[4], model.lm_head}
    places = {name: "disk" if block in on_disk else "cpu" for block, name in blocks(model).items()}
    dispatch_model(model, places, offload_dir=str(folder))


OFFLOADS: dict[str, Callable[[Any, Path], Any]] = {
    "to the CPU": lambda model, folder: cpu_offload(model, execution_device=torch.device("cpu")),
    "to disk": some_layers_on_disk,
}


@inference
@pytest.mark.filterwarnings(
    "ignore:You are calling .generate:UserWarning"
)  # older libraries ask the first weight
@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("family", NAMES)
def test_offloaded_weights(family: str, offload: str, tmp_path: Path, support: Any) -> None:
    model = build(family)
    OFFLOADS[offload](model, tmp_path)
    assert model.get_decoder().layers[2].self_attn.q_proj.weight.is_meta
    difference = difference_from_oracle(family, model, foveal.attach(model, STAGES))
    support(family, f"offloaded {offload}", difference)
    assert difference < TOLERANCE


def test_the_pretended_devices_do_not_mix() -> None:
    with Devices():
        first, second = torch.ones(2, device=FIRST), torch.ones(2, device=SECOND)
        assert (first + first.sum() + 1).device == FIRST
        assert first.to(SECOND).device == SECOND
        with pytest.raises(RuntimeError, match=r"cpu:1.*cpu:2"):
            _ = first + second
        with pytest.raises(RuntimeError, match=r"cpu:1.*cpu:2"):
            _ = first[torch.zeros(1, dtype=torch.long, device=SECOND)]
        with pytest.raises(RuntimeError, match=r"'cpu'.*cpu:1"):
            _ = torch.cat([first, torch.ones(2)])


# The first layer on the second device, and the home of the vision tower. Stages act at layers 0, 2 and 4.
HOMES = {
    "cut at 1": (1, FIRST),
    "cut at 2": (2, FIRST),
    "cut at 3": (3, FIRST),
    "cut at 4": (4, FIRST),
    "tower elsewhere": (3, SECOND),
}


@inference
@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("family", NAMES)
def test_layers_on_two_devices(family: str, home: str, monkeypatch: pytest.MonkeyPatch, support: Any) -> None:
    model, inputs = build(family), ragged(family)
    options = {"num_beams": 2, "max_new_tokens": 3, "do_sample": False}
    with foveal.compress(model, STAGES) as run:
        logits, kept, tokens = model(**inputs).logits, run.kept, model.generate(**inputs, **options)
    spread(model, *HOMES[home], monkeypatch)
    with Devices(), foveal.compress(model, STAGES) as run:
        there = {name: tensor.to(FIRST) for name, tensor in inputs.items()}
        found = model(**there).logits, run.kept
        again = model.generate(**there, **options)
        assert found[0].device == FIRST  # accelerate brings results back
    assert_same(found, (logits, kept))
    assert torch.equal(again, tokens)
    support(family, "two devices", 0.0)


@inference
def test_inputs_and_labels_elsewhere_than_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = build("llava"), ragged("llava")
    inputs["labels"] = labels_of(inputs)
    expected = compressed(model, inputs)
    spread(model, 3, FIRST, monkeypatch)
    with Devices():
        model(**inputs)
        found = compressed(model, inputs)
    assert_same(found, expected)


# ---------------------------------------------------------------------- gradient checkpointing


@since_5_23
# The checkpointed layers of a vision tower get pixels, which never need a gradient.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", NAMES)
def test_gradient_checkpointing(family: str, reentrant: bool, support: Any) -> None:
    model, inputs = build(family).train(), ragged(family)
    with foveal.compress(model, STAGES) as run:
        plain = backward(model, model, inputs)
        hidden = hidden_by(run, families.visual(family, inputs))
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        checkpointed = backward(model, model, inputs)
    model.activation_checkpointing_disable()
    assert step_difference(checkpointed, plain) < TOLERANCE
    with hidden_columns(model.get_decoder().layers, hidden):
        difference = step_difference(checkpointed, backward(model, model, inputs))
    support(family, f"gradient checkpointing, reentrant {reentrant}", difference)
    assert difference < TOLERANCE
    assert step_difference(checkpointed, backward(model, model, inputs)) > 1e-3


@dataclass(frozen=True, kw_only=True)
class Observed(foveal.Compressor):
    """Keeps the first tokens, and notes the rows of every attention it observes."""

    seen: list[int] = field(default_factory=list)

    def observe(self, attention: foveal.AttentionInputs, rows: foveal.Rows) -> Tensor:
        self.seen.append(attention.query.shape[2])
        return rows.prompt.double()

    def score(self, context: foveal.TokenContext) -> Tensor:
        return -context.layout.rows.double()


@since_5_23
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputed_layer_is_not_observed_again(reentrant: bool) -> None:
    model, inputs = build("llava").train(), ragged("llava")
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    method = Observed(keep=4)
    with foveal.compress(model, method):
        backward(model, model, inputs)
    assert method.seen == [inputs["input_ids"].shape[1]]


@since_5_23
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", OBSERVERS, ids=["fastv", "dart"])
def test_one_backward_through_two_checkpointed_forwards(method: foveal.Compressor, reentrant: bool) -> None:
    model = build("llava").train()
    batches = [ragged("llava"), families.batch("llava", [1, 1, 1], [9, 4, 5], seed=1)]

    def step() -> tuple[float, dict[str, Tensor]]:
        model.zero_grad(set_to_none=True)
        losses = [model(**inputs, labels=labels_of(inputs), use_cache=False).loss for inputs in batches]
        torch.stack(losses).sum().backward()
        return float(losses[0].detach() + losses[1].detach()), gradients(model)

    with foveal.compress(model, method):
        plain = step()
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        assert step_difference(step(), plain) < TOLERANCE


@since_5_23
def test_checkpointing_with_an_old_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_CHECKPOINTS_INSIDE_HOOKS", False)
    model, inputs = build("llava").train(), ragged("llava")
    with foveal.compress(model, foveal.Random(keep=4)) as run:
        model(**inputs)
        model.activation_checkpointing_enable()
        with pytest.raises(
            foveal.FovealError, match=r"needs transformers >= 5.23 here: upgrade it, or switch"
        ):
            model(**inputs, use_cache=False)
        model.eval()
        model(**inputs)
        assert len(run.kept[0]) == 4


# ---------------------------------------------------------------------- torch.compile


@pytest.fixture
def fresh_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


eagerly = partial(torch.compile, backend="eager")


def compile_method(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def compile_forward(model: Any) -> Any:
    model.forward = eagerly(model.forward)
    return model


def compile_decoder(model: Any) -> Any:
    model.get_decoder().compile(backend="eager")
    return model


def compile_layers(model: Any) -> Any:
    for layer in model.get_decoder().layers:
        layer.compile(backend="eager")
    return model


COMPILERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "torch.compile(model)": (eagerly, lambda called: called),
    "torch.compile(model), attached to the model": (eagerly, unwrap),
    "model.compile()": (compile_method, unwrap),
    "model.forward": (compile_forward, unwrap),
    "decoder.compile()": (compile_decoder, unwrap),
    "layer.compile()": (compile_layers, unwrap),
}


def embedded() -> tuple[Inputs, dict[str, Any]]:
    """Inputs of a bare language model, and which of them are visual tokens."""
    embeds = torch.randn(2, 30, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    visual = torch.zeros(2, 30, dtype=torch.bool)
    visual[0, 5:25], visual[1, 3:15] = True, True
    return {"inputs_embeds": embeds}, {"visual_mask": visual}


# Random changes nothing in the model but the hooks, which compiled graphs do not notice.
@inference
@pytest.mark.usefixtures("fresh_graphs")
@pytest.mark.parametrize("way", COMPILERS)
def test_compiled_graphs_are_never_stale(way: str) -> None:
    compiler, attach_to = COMPILERS[way]
    model = causal_lm(layers=1)
    inputs, visual = embedded()
    inputs = {**inputs, "use_cache": False}
    methods = [foveal.Random(keep=4, layer=0, seed=seed) for seed in (0, 1)]
    methods.append(foveal.Random(keep=7, layer=0))
    plain = model(**inputs).logits
    expected = [compressed(model, inputs, method, **visual) for method in methods]
    assert (expected[0][0] - plain)[:, -1].abs().max() > 1e-3
    called = compiler(model)
    assert torch.equal(called(**inputs).logits, plain)
    for method, results in zip(methods, expected, strict=True):
        assert_same(compressed(attach_to(called), inputs, method, called, **visual), results)
        assert torch.equal(called(**inputs).logits, plain)


@inference
@pytest.mark.usefixtures("fresh_graphs")
def test_a_compiled_vision_language_model_is_compressed(support: Any) -> None:
    model, method = build("llava", layers=2), foveal.FastV(keep=4, layer=1)
    inputs: Any = {**ragged("llava"), "use_cache": False}
    plain, expected = model(**inputs).logits, compressed(model, inputs, method)
    assert (expected[0] - plain)[:, -1].abs().max() > 1e-3
    assert_same(compressed(eagerly(model), inputs, method), expected)
    support("llava", "torch.compile", 0.0)


# ---------------------------------------------------------------------- DDP and FSDP2


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    with processes(tmp_path / "store"):
        yield


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("attach_to", ["the wrapper", "the model"])
@pytest.mark.parametrize("family", NAMES)
def test_ddp(family: str, attach_to: str, support: Any) -> None:
    model, inputs = trainable(family), ragged(family)
    plain = backward(model, model, inputs)
    with foveal.compress(model, STAGES):
        alone = backward(model, model, inputs)
    wrapped = nn.parallel.DistributedDataParallel(model)
    with foveal.compress(wrapped if attach_to == "the wrapper" else model, STAGES) as run:
        difference = step_difference(backward(wrapped, model, inputs), alone)
    support(family, f"DDP, attached to {attach_to}", difference)
    assert difference < TOLERANCE
    assert step_difference(plain, alone) > 1e-3
    assert len(run.stages) == 3


@pytest.mark.usefixtures("process_group")
def test_ddp_around_peft() -> None:
    adapted, inputs = with_adapters(trainable("llava")), ragged("llava")
    with foveal.compress(adapted, STAGES):
        alone = backward(adapted, adapted, inputs)
    wrapped = nn.parallel.DistributedDataParallel(adapted)
    with foveal.compress(wrapped, STAGES):
        assert step_difference(backward(wrapped, adapted, inputs), alone) < TOLERANCE


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "also", ["nothing else", "attention", "norm", pytest.param("layers checkpointed", marks=since_5_23)]
)
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_fsdp2(family: str, also: str, attention: str, support: Any) -> None:
    model, inputs = trainable(family, attention), ragged(family)
    plain, alone, tokens = sharded_results(model, inputs)
    decoder = model.get_decoder()
    parts = {"attention": [layer.self_attn for layer in decoder.layers], "norm": [decoder.norm]}
    shard(model, *parts.get(also, []))
    if also == "layers checkpointed":
        model.activation_checkpointing_enable({"use_reentrant": False})
    _, found, again = sharded_results(model, inputs)
    difference = step_difference(found, alone)
    support(family, f"FSDP2, {also}", difference)
    assert difference < TOLERANCE
    assert step_difference(plain, alone) > 1e-3
    assert torch.equal(again, tokens)


def sharded_results(model: Any, inputs: Inputs) -> tuple[Any, Any, Tensor]:
    """A training step of the plain and of the compressed model, and what the latter generates."""
    plain = backward(model, model, inputs)
    with foveal.compress(model, STAGES) as run:
        step = backward(model, model, inputs)
        tokens = written(model, inputs)
        assert len(run.stages) == 3
    return plain, step, tokens


def test_two_processes(tmp_path: Path, support: Any) -> None:
    torch.multiprocessing.spawn(in_each_of_two, args=(tmp_path,), nprocs=2)
    for rank in range(2):
        for name, difference in torch.load(tmp_path / f"found-{rank}").items():
            assert difference < TOLERANCE, name
            support("llava", f"{name}, two processes", difference)


# ---------------------------------------------------------------------- threads


def rounds(model: Any, inputs: Inputs, run: foveal.Run, count: int) -> Results:
    """Forward and generate in turn, each with what this thread's record says."""
    results: Results = []
    with torch.no_grad():
        for _ in range(count):
            results.append((model(**inputs).logits, run.kept))
            results.append((model.generate(**inputs, max_new_tokens=3, do_sample=False), run.kept))
    return results


def in_threads(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run all at once; an exception of a thread is raised here."""
    results: list[Any] = [None] * len(jobs)
    start = threading.Barrier(len(jobs))

    def work(index: int) -> None:
        start.wait()
        try:
            results[index] = jobs[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_two_threads_share_a_model(family: str, support: Any) -> None:
    model = build(family)
    batches = [families.batch(family, [1], [9]), ragged(family, seed=3)]
    with foveal.compress(model, STAGES) as run:
        serial = [rounds(model, inputs, run, 1) for inputs in batches]
        found = in_threads([partial(rounds, model, inputs, run, 50) for inputs in batches])
    assert [len(kept) for kept in serial[0][0][1]] != [len(kept) for kept in serial[1][0][1]]
    for results, expected in zip(found, serial, strict=True):
        assert len(results) == 100
        for index, result in enumerate(results):
            assert_same(result, expected[index % 2])
    support(family, "two threads", 0.0)


def test_a_thread_without_a_forward_reads_the_last_record() -> None:
    model, inputs = build("llava"), ragged("llava")
    with foveal.compress(model, STAGES) as run:
        (results,) = in_threads([partial(rounds, model, inputs, run, 1)])
        assert_same_tokens(run.kept, results[-1][1])
        here = rounds(model, families.batch("llava", [1], [9]), run, 1)
        in_threads([partial(rounds, model, inputs, run, 1)])
        assert_same_tokens(run.kept, here[-1][1])


@inference
def test_qwen_without_position_ids_is_not_for_threads_even_uncompressed() -> None:
    model = build("qwen2_5_vl")
    inputs, other = (families.batch("qwen2_5_vl", [images], [9]) for images in (1, 3))
    steps = []
    for between in ([], [other]):
        cache = model(**inputs, use_cache=True).past_key_values
        for interruption in between:
            model(**interruption)  # leaves its own distance of positions on the module
        steps.append(model(input_ids=torch.tensor([[30]]), past_key_values=cache).logits)
    assert not torch.equal(*steps), "the library no longer keeps positions on the module: document it"


# ---------------------------------------------------------------------- again, twice, and copies


@inference
@pytest.mark.parametrize(
    "wrap", [lambda model: model, with_adapters, eagerly], ids=["model", "peft", "compiled"]
)
def test_a_second_attach_says_to_pass_a_list(wrap: Callable[[Any], Any]) -> None:
    model, inputs = build("llava"), ragged("llava")
    wrapped = wrap(model)
    expected = compressed(model, inputs)
    with foveal.compress(model, STAGES) as run:
        with pytest.raises(foveal.FovealError, match=r"compressed already: .* pass a list of methods"):
            foveal.attach(wrapped, foveal.Random(keep=4, layer=5))
        assert_same((model(**inputs).logits, run.kept), expected)


def test_two_methods_at_one_layer_are_refused() -> None:
    model = build("llava")
    with pytest.raises(foveal.FovealError, match="two methods act at layer 2"):
        foveal.attach(model, [foveal.Random(keep=9), foveal.FastV(keep=4)])
    assert attached(model) == ()


@inference
@pytest.mark.parametrize("family", NAMES)
def test_attaching_again_gives_the_same(family: str) -> None:
    model, inputs = build(family), ragged(family)
    expected = compressed(model, inputs)
    for other in (foveal.Random(keep=4, layer=5), foveal.FastV(keep=4, layer=1)):
        assert not torch.equal(compressed(model, inputs, other)[0], expected[0])
        assert_same(compressed(model, inputs), expected)


@inference
def test_two_models_do_not_disturb_each_other() -> None:
    models = {family: build(family) for family in ("llava", "qwen3_vl")}
    methods = {"llava": STAGES, "qwen3_vl": foveal.FastV(keep=3, layer=1)}
    expected = {family: compressed(models[family], ragged(family), methods[family]) for family in models}
    runs = {family: foveal.attach(models[family], methods[family]) for family in models}
    for family in ("llava", "qwen3_vl", "qwen3_vl", "llava"):
        logits = models[family](**ragged(family)).logits
        assert_same((logits, runs[family].kept), expected[family])
    runs["llava"].detach()
    assert attached(models["llava"]) == ()
    logits = models["qwen3_vl"](**ragged("qwen3_vl")).logits
    assert_same((logits, runs["qwen3_vl"].kept), expected["qwen3_vl"])


@inference
def test_a_compressed_model_cannot_be_copied() -> None:
    model, inputs = build("llava"), ragged("llava")
    plain, expected = model(**inputs).logits, compressed(model, inputs)
    with foveal.compress(model, STAGES) as run:
        with pytest.raises(foveal.FovealError, match="detach"):
            deepcopy(model)
        assert_same((model(**inputs).logits, run.kept), expected)
    copied = deepcopy(model)
    assert torch.equal(copied(**inputs).logits, plain)
    assert_same(compressed(copied, inputs), expected)


# ---------------------------------------------------------------------- changed while compressed


@inference
@pytest.mark.parametrize(("before", "after"), [("sdpa", "eager"), ("eager", "sdpa")])
@pytest.mark.parametrize("family", NAMES)
def test_another_attention_backend_while_compressed(
    family: str, before: str, after: str, support: Any
) -> None:
    model, inputs = build(family, attention=before), families.batch(family, [1], [9])
    run = foveal.attach(model, STAGES)
    model(**inputs)
    model.set_attn_implementation(after)
    found = model(**inputs).logits, run.kept
    difference = difference_from_oracle(family, model, run)
    assert difference < TOLERANCE
    assert_same(found, compressed(model, inputs))
    support(family, f"{before} to {after} while compressed", difference)


@inference
@pytest.mark.parametrize("family", NAMES)
def test_another_precision_while_compressed(family: str, support: Any) -> None:
    model, inputs = build(family), ragged(family)
    single = {name: x.float() if x.is_floating_point() else x for name, x in inputs.items()}
    run = foveal.attach(model, STAGES)
    model(**inputs)
    kept = run.kept
    model.to(torch.float32)
    found = model(**single).logits, run.kept
    assert found[0].dtype == torch.float32
    assert_same_tokens(found[1], kept)
    difference = difference_from_oracle(family, model.to(torch.float64), run)
    support(family, "to(dtype) while compressed", difference)
    assert difference < TOLERANCE
    assert_same(found, compressed(model.to(torch.float32), single))
