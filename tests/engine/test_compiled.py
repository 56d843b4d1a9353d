"""Compiled decode steps on a static cache: one graph without breaks, shared by all prompts, and never a stale one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from transformers import CompileConfig

import foveal
from support import families
from support.exactness import STEPS, TOLERANCE, generate
from support.families import FAMILIES, SLIDING
from support.stages import decided, decisions

pytestmark = pytest.mark.usefixtures("exact_softmax", "inference")

BATCHES = {"batch 1": ([1], [9]), "ragged": ([1, 2, 0], [9, 4, 12])}
METHODS = [
    foveal.FastV(keep=0.3, layer=1),
    [foveal.Random(keep=0.6, layer=0), foveal.DART(keep=5, layer=3)],
    [foveal.DivPrune(keep=0.6), foveal.SparseVLM(keep=5, layers=(2, 4))],  # which pack positions
]
# Eager experts loop over data, which no graph can; grouped ones know no float64.
STATIC = [name for name in FAMILIES if name not in SLIDING | {"qwen3_vl_moe"}]
CASES = [
    pytest.param(
        family,
        name,
        id=f"{family}-{name}",
        # Tracing takes seconds a graph.
        marks=() if (family, name) in {("llava", "ragged"), ("qwen3_vl", "batch 1")} else pytest.mark.nightly,
    )
    for family in STATIC
    for name in BATCHES
]


@pytest.fixture(autouse=True)
def no_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(graphs: list[Any]) -> dict[str, Any]:
    """Options of generate that compile its decode steps, also on a CPU, and collect their graphs."""

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    config = CompileConfig(fullgraph=True, backend=backend, mode=None)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def fresh(family: str) -> Any:
    """A model whose compiled call no other test has used."""
    return FAMILIES[family].build(6, "sdpa")


@pytest.mark.parametrize(("family", "name"), CASES)
def test_one_graph_for_all_prompts_and_no_stale_one(family: str, name: str, support: Any) -> None:
    model = fresh(family)
    graphs: list[Any] = []
    options, worst = compiled(graphs), 0.0
    for count, methods in enumerate([*METHODS, None], 1):
        for seed in (0, 1):
            inputs = families.batch(family, *BATCHES[name], seed=seed)
            with foveal.compress(model, methods) if methods else nullcontext() as run:
                out, steps = generate(model, inputs, **options)
                found = decisions(run, families.visual(family, inputs)) if run else []
            whole = families.extended(family, inputs, out.sequences)
            with decided(model, whole["attention_mask"], found):
                oracle = model(**whole, use_cache=False).logits[:, -STEPS - 1 : -1]
            worst = max(worst, float((steps - oracle).abs().max()))
            assert len(graphs) == count, "one graph for each set of hooks, none for another prompt"
    support(family, "compiled decode", worst)
    assert worst < TOLERANCE


def test_layers_compiled_one_by_one() -> None:
    """Hooks stay outside: rows are gathered between graphs, and prompts of other lengths need no new ones."""
    model = families.model("llava")
    inputs = [families.batch("llava", *BATCHES["batch 1"]), families.batch("llava", [1], [14])]
    inputs += [families.batch("llava", [1], [17])]
    plain = [_logits(model, batch) for batch in inputs]
    graphs: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    layers = model.model.language_model.layers
    counts = []
    try:
        for layer in layers:
            layer.forward = torch.compile(layer.forward, backend=backend, dynamic=True)
        for batch, expected in zip(inputs, plain, strict=True):
            assert torch.equal(_logits(model, batch), expected)
            counts.append(len(graphs))
    finally:
        for layer in layers:
            del layer.forward
    assert counts[0] > 0
    assert counts[1] == counts[2]


def _logits(model: Any, batch: Any) -> Any:
    with foveal.compress(model, foveal.DART(keep=5, layer=2)):
        return model(**batch, use_cache=False).logits
