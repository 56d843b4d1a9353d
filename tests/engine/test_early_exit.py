"""The tower's last layers are left out where nobody sees them, and nothing that is seen changes.

Before 5.23, transformers does not tell the tower which hidden states it will use, and all layers run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import foveal
from foveal.compressors.base import TowerCompressor
from support import families
from support.clip import text_tower
from support.library import OLD, since_5_23

BATCH = ([1, 2, 0], [9, 5, 12])
METHODS = {
    "dart": foveal.DART(keep=0.4),
    "fastv": foveal.FastV(keep=0.4),
    "tome": foveal.ToMe(keep=0.4),
    "trim": foveal.TRIM(keep=0.4),
    "visionzip": foveal.VisionZip(keep=0.4),
}


def prepared(features: Any = -2) -> tuple[Any, dict[str, Tensor]]:
    """A model of its own, whose features come from the last tower layer but one."""
    model = families.ALL["llava"].build(4, "sdpa")
    model.config.vision_feature_layer = features
    width = model.base_model.vision_tower.config.hidden_size
    if isinstance(features, list):
        first = model.base_model.multi_modal_projector.linear_1
        wide = nn.Linear(width * len(features), first.out_features).double()
        model.base_model.multi_modal_projector.linear_1 = wide
    return model, families.batch("llava", *BATCH)


def tower_layers(model: Any) -> Any:
    return model.base_model.vision_tower.encoder.layers


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """The tower layers whose MLP runs, without a hook that would be noticed."""
    ran: list[int] = []

    def counting(index: int, forward: Any) -> Any:
        def count(hidden: Tensor) -> Tensor:
            ran.append(index)
            return forward(hidden)  # type: ignore[no-any-return]

        return count

    layers = tower_layers(model)
    for index, layer in enumerate(layers):
        layer.mlp.forward = counting(index, layer.mlp.forward)
    try:
        yield ran
    finally:
        for layer in layers:
            del layer.mlp.forward


@contextmanager
def watched(module: nn.Module) -> Iterator[None]:
    """A hook of somebody else's, which makes all of the tower run."""
    handle = module.register_forward_hook(lambda *_: None)
    try:
        yield
    finally:
        handle.remove()


def compressed(model: Any, method: Any) -> Any:
    needs = isinstance(method, TowerCompressor) and method.needs_text
    return foveal.compress(model, method, text_tower=text_tower(model) if needs else None)


def run(model: Any, inputs: dict[str, Tensor], method: Any) -> dict[str, Tensor]:
    """Everything that a step makes."""
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -1] = inputs["input_ids"][:, -1]
    model.zero_grad(set_to_none=True)
    with compressed(model, method):
        out = model(**inputs, labels=labels, use_cache=False)
        out.loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return {"loss": out.loss, "logits": out.logits, "images": out.image_hidden_states, **found}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit, the marks of dropped tokens included."""
    return one.keys() == other.keys() and all(
        torch.equal(one[name].nan_to_num(), other[name].nan_to_num()) for name in one
    )


@since_5_23
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_nothing_that_is_seen_changes(method: Any) -> None:
    model, inputs = prepared()
    with watched(tower_layers(model)[-1]), counted(model) as all_ran:
        whole = run(model, inputs, method)
    with counted(model) as ran:
        assert same(run(model, inputs, method), whole)
    assert 2 in all_ran
    assert 2 not in ran
    assert ran.count(0) == all_ran.count(0)


@since_5_23
def test_nothing_that_is_seen_changes_in_training() -> None:
    model, inputs = prepared()
    model.train()
    method = foveal.DART(keep=0.4)
    with watched(model.base_model.vision_tower), counted(model) as all_ran:
        whole = run(model, inputs, method)
    with counted(model) as ran:
        assert same(run(model, inputs, method), whole)
    assert 2 in all_ran
    assert 2 not in ran


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "paligemma"])
def test_other_families_run_all_layers(family: str) -> None:
    model = families.ALL[family].build(4, "sdpa")
    inputs = families.batch(family, *BATCH)
    with torch.no_grad(), foveal.compress(model, foveal.DART(keep=0.4)), counted(model) as ran:
        model(**inputs)
    assert sorted(set(ran)) == list(range(len(tower_layers(model))))


@since_5_23
@pytest.mark.parametrize(("features", "layers"), [(-1, 3), (1, 1), ([-3, -2], 2), ([1, -1], 3)])
def test_as_many_layers_run_as_the_features_need(features: Any, layers: int) -> None:
    model, inputs = prepared(features)
    method = foveal.FastV(keep=0.4)
    with counted(model) as ran:
        found = run(model, inputs, method)
    assert sorted(set(ran)) == list(range(layers))
    with watched(tower_layers(model)[-1]):
        assert same(run(model, inputs, method), found)


def test_features_asked_for_in_the_call() -> None:
    model, inputs = prepared()
    with torch.no_grad(), foveal.compress(model, foveal.FastV(keep=0.4)), counted(model) as ran:
        model(**inputs, vision_feature_layer=-1)
        assert sorted(set(ran)) == [0, 1, 2]


def test_a_method_that_looks_into_the_last_layer() -> None:
    model, inputs = prepared()
    with torch.no_grad(), foveal.compress(model, foveal.PruMerge(keep=5)), counted(model) as ran:
        model(**inputs)
    assert sorted(set(ran)) == [0, 1, 2]


@since_5_23
def test_generate_leaves_early() -> None:
    model, inputs = prepared()
    method = foveal.DART(keep=5)
    with foveal.compress(model, method), counted(model) as ran:
        found = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert sorted(set(ran)) == [0, 1]
    with foveal.compress(model, method), watched(tower_layers(model)[-1]):
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), found)


@pytest.mark.parametrize("direct", ["tower", "base", "top"])
def test_others_who_ask_the_tower_get_all_of_it(direct: str) -> None:
    model, inputs = prepared()
    ask = {
        "tower": model.base_model.vision_tower,
        "base": model.base_model.get_image_features,
        "top": model.get_image_features,
    }[direct]
    options = {"output_hidden_states": -2} if direct == "tower" else {}
    with torch.no_grad():
        plain = ask(inputs["pixel_values"], **options)
        with foveal.compress(model, foveal.DART(keep=5)):
            model(**inputs)
            ask = model.base_model.get_image_features if direct == "base" else ask
            inside = ask(inputs["pixel_values"], **options)
    assert torch.equal(inside.last_hidden_state, plain.last_hidden_state)


@pytest.mark.parametrize("place", ["encoder", "post_layernorm", "encoder.layers.2.mlp"])
def test_what_hooks_of_others_see(place: str) -> None:
    model, inputs = prepared()
    seen: list[Tensor] = []

    def note(_module: Any, _args: Any, output: Any) -> None:
        seen.append(output if isinstance(output, Tensor) else output.last_hidden_state)

    handle = model.base_model.vision_tower.get_submodule(place).register_forward_hook(note)
    with torch.no_grad():
        model(**inputs)
        with foveal.compress(model, foveal.DART(keep=5)):
            model(**inputs)
    handle.remove()
    assert torch.equal(*seen)


def test_a_tower_cannot_be_copied_inside() -> None:
    """Its forward would be that of the original, and its weights nobody's."""
    model, _ = prepared()
    tower = model.base_model.vision_tower
    with foveal.compress(model, foveal.DART(keep=5)):
        for part in (tower, tower_layers(model)[-1]):
            with pytest.raises(foveal.FovealError, match="a compressed model cannot be copied"):
                deepcopy(part)
    deepcopy(tower)


@pytest.mark.parametrize("first", [0, 1])
def test_models_that_share_a_tower_are_compressed_independently(first: int) -> None:
    model, inputs = prepared()
    other, _ = prepared()
    other.base_model.vision_tower = model.base_model.vision_tower
    modules = list(model.base_model.vision_tower.modules())
    with torch.no_grad():
        other(**inputs)  # the library installs its own hooks
        before = [dict(vars(module)) for module in modules]
        runs = [foveal.attach(each, foveal.DART(keep=5)) for each in (model, other)]
        runs.pop(first).detach()
        left = (other, model)[first]
        with counted(model) as ran:
            found = left(**inputs).logits
        assert (2 in ran) == OLD
        runs.pop().detach()
        assert [vars(module) for module in modules] == before
        with foveal.compress(left, foveal.DART(keep=5)):
            assert torch.equal(left(**inputs).logits, found)


@since_5_23
@pytest.mark.parametrize("place", ["attention", "adapter"])
def test_layers_that_draw_random_numbers_run(place: str) -> None:
    """Or the decoder's own draws would be others."""
    model, inputs = prepared()
    model.train()
    if place == "attention":
        model.base_model.vision_tower.config.attention_dropout = 0.1
    else:
        tower_layers(model)[-1].mlp.fc1 = nn.Sequential(tower_layers(model)[-1].mlp.fc1, nn.Dropout(0.1))
    with torch.no_grad(), foveal.compress(model, foveal.DART(keep=5)), counted(model) as ran:
        model(**inputs)
        assert 2 in ran
        ran.clear()
        model.eval()(**inputs)
        assert 2 not in ran


@since_5_23
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model, inputs = prepared()
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    method = foveal.DART(keep=5)
    with watched(tower_layers(model)[-1]):
        whole = run(model, inputs, method)
    with counted(model) as ran:
        assert same(run(model, inputs, method), whole)
    assert 2 not in ran


def test_a_compiled_tower_is_one_graph() -> None:
    torch.compiler.reset()
    model, inputs = prepared()
    method = foveal.DART(keep=5)
    with torch.no_grad():
        with foveal.compress(model, method):
            eager = model(**inputs).logits
        model.base_model.vision_tower.compile(fullgraph=True, backend="eager")
        with foveal.compress(model, method):
            assert (model(**inputs).logits - eager).abs().max() < 1e-10
    torch.compiler.reset()


def test_a_forward_that_fails_leaves_nothing_behind() -> None:
    model, inputs = prepared()
    pixels = inputs["pixel_values"]
    with torch.no_grad():
        plain = model.get_image_features(pixels)
        with foveal.compress(model, foveal.DART(keep=5)):
            with pytest.raises(ValueError, match="match"):
                model(**{**inputs, "pixel_values": pixels[:1]})
            assert torch.equal(model.get_image_features(pixels).last_hidden_state, plain.last_hidden_state)
