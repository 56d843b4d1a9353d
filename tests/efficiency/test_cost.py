"""The closed forms against what torch counted, what the cache holds, and what was alive."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

import foveal
from engine.test_methods import METHODS
from foveal.compressors import TowerCompressor, sparsevlm, staging
from foveal.efficiency import Cost, Load, cost, model_shape
from support import families
from support.counting import counted
from support.families import FAMILIES, IMAGE, Sample

STEPS = 2
QUESTION = 7
FOUR = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl")
TILED = ("llava_next", "llava_onevision")  # newlines stand between the rows of their tiles


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take all words: how many of them matter is counted where that makes nobody wait."""

    def all_words(weights: Tensor, most: Any) -> tuple[Tensor, Tensor]:
        weights, index = weights.sort(dim=1, descending=True, stable=True)
        return index[:, : most()], weights[:, : most()]

    monkeypatch.setattr(staging, "with_weight", all_words)
    monkeypatch.setattr(sparsevlm, "with_weight", all_words)


@lru_cache
def inputs_of(family: str, batch: int, images: int, which: int) -> tuple[dict[str, Tensor], Load]:
    """Samples that are alike, each of the family's picture number `which` several times; and what a load calls it."""
    case = FAMILIES[family]
    drawn = case.samples([which + 1], [12])[0]
    pictures = [drawn.pictures[which]] * images
    text = [token for token in drawn.ids if token >= families.FIRST_TEXT]
    sample = Sample(case.layout(text, pictures), pictures)
    inputs = case.collate([sample] * batch)
    visual = int((inputs["input_ids"][0] == IMAGE).sum())
    known = case.image.lengths(pictures[0].shape)
    counted_images = images * len(known)
    tokens: int | tuple[int, int] = visual // counted_images
    if "image_grid_thw" in inputs:
        tokens = (pictures[0].shape[0] // 2, pictures[0].shape[1] // 2)
    load = Load(
        batch=batch,
        text=inputs["input_ids"].shape[1] - visual,
        images=counted_images,
        visual=tokens,
        tiles=inputs["pixel_values"].shape[1] if family in TILED else None,
        question=QUESTION,
        answer=STEPS + 1,
        bytes=8,
    )
    return inputs, load


@lru_cache
def shape_of(family: str) -> Any:
    return model_shape(families.model(family, attention=FAMILIES[family].attentions[0]))


def differences(found: Any, expected: Cost) -> dict[str, tuple[Any, Any]]:
    """What was counted and what was predicted, where they differ."""
    pairs = {item.name: (getattr(found, item.name), getattr(expected, item.name)) for item in fields(found)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def check(
    family: str,
    methods: Any = None,
    *,
    batch: int = 1,
    images: int = 1,
    which: int = 0,
    attention: str = "sdpa",
) -> Cost:
    """Every number of one prompt and its decode steps."""
    inputs, load = inputs_of(family, batch, images, which)
    expected = cost(shape_of(family), methods, load)
    found = counted(families.model(family, attention=attention), inputs, methods, steps=STEPS)
    assert differences(found, expected) == {}
    return expected


def takes(family: str, method: Any) -> bool:
    """Whether a family takes a method, whose counts do not depend on the image and which asks no text tower."""
    if not isinstance(method, TowerCompressor):
        return True
    return family == "llava" and not method.needs_text and method.keep != "auto"


# ------------------------------------------------------------------------------------------------ methods


@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family in FOUR for name in METHODS if takes(family, METHODS[name])],
)
def test_every_method_costs_what_is_counted(family: str, name: str) -> None:
    for batch in (1, 2):
        result = check(family, METHODS[name], batch=batch)
        assert result.total < cost(shape_of(family), None, inputs_of(family, batch, 1, 0)[1]).total


def test_no_method_is_left_out() -> None:
    read = {stage.card.name for several in READING.values() for stage in _listed(several)}
    here = {method.card.name for method in METHODS.values() if takes("llava", method)}
    assert here | read == set(foveal.available())


def _listed(methods: Any) -> list[Any]:
    return methods if isinstance(methods, list) else [methods]


EXTREMES = {
    "keep=1": {"keep": 1},
    "all but one": {"keep": 24},
    "all": {"keep": 1.0},
}


@pytest.mark.parametrize("budget", EXTREMES)
@pytest.mark.parametrize(
    "name", sorted({method.card.name for method in METHODS.values() if takes("llava", method)})
)
def test_extreme_budgets(name: str, budget: str) -> None:
    options: dict[str, Any] = dict(EXTREMES[budget])
    if name in ("pumer", "pyramiddrop", "sparsevlm"):
        options["layers"] = (2, 5)
    if name == "tome" and budget == "keep=1":
        options["keep"] = 7  # two blocks halve 25 patches at most
    check("llava", foveal.get(name, **options))


OPTIONS = {
    "dart, as released": foveal.DART(keep=0.5, parity=True),
    "dart, many pivots": foveal.DART(keep=20, layer=5, image_pivots=40, text_pivots=90),
    "divprune, as released": foveal.DivPrune(keep=0.5, parity=True),
    "pumer, pruning alone": foveal.PuMer(keep=5, layers=(1, 3), prune_share=1.0),
    "pumer, merging alone": foveal.PuMer(keep=5, layers=(2, 4), prune_share=0.0),
    "pyramiddrop, budgets": foveal.PyramidDrop(keep=3, layers=(1, 2, 5), budgets=(20, 0.4)),
    "sparsevlm, as released": foveal.SparseVLM(keep=5, layers=(1, 3, 4), parity=True),
    "sparsevlm, no clusters": foveal.SparseVLM(keep=5, layers=(1, 3), recycle=False),
    "prumerge, no class token": foveal.PruMerge(keep=5, query="mean"),
    "prumerge, as released": foveal.PruMerge(keep=5, parity=True),
    "visionzip, no class token": foveal.VisionZip(keep=5, query="mean", contextual=2),
    "visionzip, dominant alone": foveal.VisionZip(keep=5, contextual=0),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_change_the_work(name: str) -> None:
    check("llava", OPTIONS[name], batch=2)


LISTS = {
    "visionzip+fastv": [foveal.VisionZip(keep=12), foveal.FastV(keep=4, layer=3)],
    "divprune+sparsevlm": [foveal.DivPrune(keep=12), foveal.SparseVLM(keep=4, layers=(1, 3))],
    "dart+pumer": [foveal.DART(keep=12, layer=1), foveal.PuMer(keep=4, layers=(2, 4))],
    "random+dart+fastv": [
        foveal.Random(keep=0.5, layer=0),
        foveal.DART(keep=9),
        foveal.FastV(keep=0.5, layer=3),
    ],
}


@pytest.mark.parametrize("name", LISTS)
def test_methods_in_a_list(name: str) -> None:
    check("llava", LISTS[name], batch=2)


@pytest.mark.parametrize("name", ["divprune+sparsevlm", "dart+pumer"])
def test_features_of_deepstack_are_merged_too(name: str) -> None:
    check("qwen3_vl", LISTS[name], which=1)


@pytest.mark.parametrize("family", FOUR)
def test_several_images_of_a_sample(family: str) -> None:
    methods = (METHODS["dart-5"], METHODS["fastv-5"], METHODS["pumer-5-(1, 3)"], METHODS["divprune-5"])
    several = (*methods, foveal.SparseVLM(keep=5, layers=(1, 3)), foveal.PyramidDrop(keep=5, layers=(1, 3)))
    for method in (None, *several, *([foveal.VisionZip(keep=5)] if family == "llava" else [])):
        check(family, method, batch=2, images=2)


def test_eager_attention_counts_the_same_without_help() -> None:
    for method in (None, METHODS["fastv-5"], METHODS["visionzip-5"]):
        check("llava", method, attention="eager")


def test_a_method_without_formula_leaves_selection_open() -> None:
    inputs, load = inputs_of("llava", 1, 1, 0)
    method = Loudest(keep=5)
    expected = cost(shape_of("llava"), method, load)
    assert expected.selection is None
    assert expected.first_token == expected.tower + expected.projector + expected.prefill
    found = counted(families.model("llava"), inputs, method, steps=STEPS)
    assert differences(found, replace(expected, selection=0)) == {}


@dataclass(frozen=True, kw_only=True)
class Loudest(foveal.Compressor):
    def score(self, context: foveal.TokenContext) -> Tensor:
        return context.layout.gather(context.hidden).norm(dim=-1)


def test_raters_on_a_cpu_are_words_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    inputs, load = inputs_of("llava", 1, 1, 0)
    method = foveal.SparseVLM(keep=5, layers=(1, 3))
    found = counted(families.model("llava"), inputs, method, steps=STEPS)
    expected = cost(shape_of("llava"), method, load)
    assert set(differences(found, expected)) == {"selection", "first_token"}
    assert 0.2 * expected.selection < found.selection < expected.selection


# ------------------------------------------------------------------------------------------------ plain models


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str) -> None:
    attention = FAMILIES[family].attentions[0]
    for batch, images, which in ((1, 1, 0), (2, 1, 1), (1, 2, 0)):
        check(family, batch=batch, images=images, which=which, attention=attention)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_compressed(family: str) -> None:
    attention = FAMILIES[family].attentions[0]
    for method in (foveal.PyramidDrop(keep=0.3, layers=(1, 3)), foveal.PuMer(keep=0.3, layers=(2, 4))):
        check(family, method, batch=2, which=1, attention=attention)


# ------------------------------------------------------------------------------------------------ text towers


class Reader(foveal.TextTower):
    """CLIP's own, asked the same thing every time."""

    def questions(self, ids: Tensor) -> list[str]:
        return ["?"] * len(ids)

    def embed(self, questions: Sequence[str]) -> Tensor:
        ids = torch.full((len(questions), QUESTION), 2)
        return self.embed_ids(ids, torch.ones_like(ids, dtype=torch.bool))


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A text tower beside the tiny LLaVA, and the shape of the model with a folder that says so."""
    model = families.model("llava")
    text = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**text, "vocab_size": 30, "eos_token_id": 2, "projection_dim": 12},
        vision_config={**model.config.vision_config.to_dict(), "projection_dim": 12},
        projection_dim=12,
    )
    folder = tmp_path_factory.mktemp("model")
    config.save_pretrained(folder / "clip")
    before = model.config._name_or_path
    model.config._name_or_path = str(folder)
    shape = model_shape(model)
    model.config._name_or_path = before
    return Reader(CLIPModel(config).double(), SimpleNamespace(eos_token_id=2), None), shape


READING = {
    "trim": foveal.TRIM(keep=5),
    "trim, all": foveal.TRIM(keep=1.0),
    "trim, as released": foveal.TRIM(keep=0.2, parity=True),
    "cdpruner": foveal.CDPruner(keep=5),
    "cdpruner, 0.4": foveal.CDPruner(keep=0.4, ranking="paper"),
    "trim+pyramiddrop": [foveal.TRIM(keep=12), foveal.PyramidDrop(keep=4, layers=(1, 3, 4))],
}


@pytest.mark.parametrize("name", READING)
def test_methods_that_read_the_question(name: str, read: tuple[Any, Any]) -> None:
    text_tower, shape = read
    for batch, images in ((1, 1), (2, 2)):
        inputs, load = inputs_of("llava", batch, images, 0)
        found = counted(families.model("llava"), inputs, READING[name], text_tower, steps=STEPS)
        assert differences(found, cost(shape, READING[name], load)) == {}
        assert found.text_tower > 0


def test_weights_of_the_text_tower_count(read: tuple[Any, Any]) -> None:
    text_tower, shape = read
    weights = cost(shape, READING["trim"], Load(bytes=4)).weights
    reading = sum(p.numel() for p in text_tower.visual_projection.parameters()) + text_tower.parameters_count
    assert weights["text tower"] == 4 * reading
    assert "text tower" not in cost(shape, METHODS["visionzip-5"]).weights
    plain = cost(shape, None, Load(bytes=4)).weights
    assert sum(plain.values()) == 4 * sum(p.numel() for p in families.model("llava").parameters())


def test_a_question_needs_a_text_tower() -> None:
    with pytest.raises(foveal.FovealError, match="no CLIP text model is known"):
        cost(shape_of("llava"), foveal.TRIM(keep=5))


# ------------------------------------------------------------------------------------------------ 24 x 24 patches


def llava(
    side: int, width: int, layers: int, kind: Any = CLIPVisionConfig, strategy: str = "default", **tower: Any
) -> Any:
    """A LLaVA of (side / 14) ** 2 patches, of usual proportions."""
    torch.manual_seed(0)
    vision = kind(image_size=side, patch_size=14, **tower)
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 64 or 1,
        vocab_size=500,
    )
    rows = (side // 14) ** 2 + (kind is CLIPVisionConfig)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        image_seq_length=rows - (strategy == "default"),
        vision_feature_select_strategy=strategy,
    )
    return LlavaForConditionalGeneration(config).eval()


def prompt(model: Any, batch: int, text: int) -> dict[str, Tensor]:
    tokens, side = model.config.image_seq_length, model.config.vision_config.image_size
    ids = torch.tensor([1] + [IMAGE] * tokens + [20] * (text - 1)).expand(batch, -1)
    pixels = torch.randn(batch, 3, side, side)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


@pytest.fixture(scope="module")
def wide() -> Any:
    return llava(336, 32, 3, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2)


LARGE = {
    "prumerge+, as released": foveal.PruMergePlus(keep=0.125, parity=True),
    "prumerge+": foveal.PruMergePlus(keep=64),
    "visionzip, no class token": foveal.VisionZip(keep=64, query="mean"),
    "divprune": foveal.DivPrune(keep=200),
    "downsample": foveal.Downsample(keep=47),
    "pooling": foveal.AveragePooling(keep=47),
}


@pytest.mark.parametrize("name", LARGE)
def test_products_in_strips_and_grids(name: str, wide: Any) -> None:
    found = counted(wide, prompt(wide, 1, 9), LARGE[name])
    expected = cost(model_shape(wide), LARGE[name], Load(text=9, answer=1, bytes=4))
    assert differences(found, expected) == {}


def test_joined_features_of_several_blocks(wide: Any) -> None:
    config = LlavaConfig(**{**wide.config.to_dict(), "vision_feature_layer": [-2, -1]})
    joined = LlavaForConditionalGeneration(config).eval()
    for method in (None, foveal.AveragePooling(keep=64), foveal.FastV(keep=64)):
        found = counted(joined, prompt(joined, 1, 9), method)
        expected = cost(model_shape(joined), method, Load(text=9, answer=1, bytes=4))
        assert differences(found, expected) == {}


SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
BEFORE = (foveal.ToMe(keep=20), foveal.AveragePooling(keep=9), foveal.VisionZip(keep=5, query="mean"))


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [(CLIPVisionConfig, "full"), (SiglipVisionConfig, "full"), (SiglipVisionConfig, "default")],
)
def test_what_towers_hand_on(kind: Any, strategy: str) -> None:
    """The class token, too, or one patch less; and SigLIP's pooling head runs, though nobody reads it."""
    model = llava(84, 32, 4, kind, strategy, **SMALL)
    shape = model_shape(model)
    assert (
        shape.tile_tokens
        == model.config.image_seq_length
        == 36 + (kind is CLIPVisionConfig) - (strategy == "default")
    )
    all_patches = shape.tile_tokens == 36
    for method in (None, foveal.FastV(keep=5), foveal.DivPrune(keep=5), *(BEFORE if all_patches else ())):
        found = counted(model, prompt(model, 2, 9), method, steps=STEPS)
        expected = cost(shape, method, Load(batch=2, text=9, answer=STEPS + 1, bytes=4))
        assert differences(found, expected) == {}
    if not all_patches:
        with pytest.raises(foveal.FovealError, match="VisionZip needs a visual token for every patch"):
            cost(shape, foveal.VisionZip(keep=5, query="mean"))
        with pytest.raises(foveal.FovealError, match=r"VisionZip needs (patches only|all patches)"):
            foveal.attach(model, foveal.VisionZip(keep=5, query="mean"))


# ------------------------------------------------------------------------------------------------ memory


class Live(TorchDispatchMode):
    """Bytes of tensors that were made inside and are still alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


@pytest.fixture(scope="module")
def realistic() -> Any:
    return llava(
        336, 512, 8, hidden_size=384, intermediate_size=1536, num_hidden_layers=3, num_attention_heads=4
    )


ALIVE = {
    "plain": None,
    "fastv": foveal.FastV(keep=64),
    "pyramiddrop": foveal.PyramidDrop(keep=64),
    "visionzip": foveal.VisionZip(keep=192),
    "visionzip, the tower": foveal.VisionZip(keep=36),
}


@pytest.mark.parametrize(("name", "batch"), [*((name, 1) for name in ALIVE), ("plain", 4), ("visionzip", 4)])
def test_what_is_alive_at_the_largest_moment(name: str, batch: int, realistic: Any) -> None:
    """The prefill of 576 + 124 rows, hidden size 512: weights aside, within 2.5 %."""
    method = ALIVE[name]
    inputs = prompt(realistic, batch, 124)
    cache = DynamicCache(config=realistic.config.get_text_config())
    scope = nullcontext() if method is None else foveal.compress(realistic, method)
    with torch.no_grad(), scope, Live() as live:
        realistic(**inputs, past_key_values=cache, logits_to_keep=1)
    expected = cost(model_shape(realistic), method, Load(batch=batch, text=124, answer=1, bytes=4))
    assert expected.peak == pytest.approx(live.peak, rel=0.025)
    in_tower = expected.peak == expected.activations
    assert in_tower == (name == "visionzip, the tower")


def test_memory_is_weights_and_the_larger_of_peak_and_cache() -> None:
    shape = shape_of("llava")
    short, long = (cost(shape, None, Load(answer=answer)) for answer in (1, 5000))
    weights = sum(short.weights.values())
    assert short.memory == weights + short.peak
    assert long.memory == weights + sum(long.cache_at_end) > short.memory


# ------------------------------------------------------------------------------------------------ bad input


def test_refusals() -> None:
    shape = shape_of("llava")
    with pytest.raises(
        foveal.FovealError, match=r"TRIM with keep=\"auto\" lets the image decide .* pass a count"
    ):
        cost(shape, foveal.TRIM(keep="auto"))
    with pytest.raises(foveal.FovealError, match='PruMergePlus with keep="auto" lets the image decide'):
        cost(shape, foveal.PruMergePlus(keep="auto", parity=True))
    with pytest.raises(foveal.FovealError, match="keep=64 is more than the 25 visual tokens"):
        cost(shape, foveal.FastV(keep=64))
    with pytest.raises(foveal.FovealError, match="layer=6 is beyond the model's 6 layers"):
        cost(shape, foveal.FastV(keep=5, layer=6))
    with pytest.raises(foveal.FovealError, match="takes images of any size: say how many visual tokens"):
        cost(shape_of("qwen2_5_vl"))
    for name in ("batch", "question", "tiles"):
        with pytest.raises(foveal.FovealError, match=f"{name}=0 must be at least 1"):
            Load(**{name: 0})
    for visual in (0, (0, 4), (-4, -3)):
        with pytest.raises(foveal.FovealError, match="must be at least one visual token"):
            Load(visual=visual)
    for family in ("qwen2_5_vl", "internvl", "llava_next"):
        with pytest.raises(foveal.FovealError, match="AveragePooling needs a visual token for every patch"):
            cost(shape_of(family), foveal.AveragePooling(keep=4), Load(visual=16))
    with pytest.raises(foveal.FovealError, match="VisionZip ranks patches by the class token"):
        cost(shape_of("paligemma"), foveal.VisionZip(keep=5))
