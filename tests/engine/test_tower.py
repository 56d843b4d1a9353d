"""Between the tower and the decoder: from pixels as the official code, ToMe inside the tower, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import foveal
from support import families
from support.clip import text_tower
from support.exactness import generate
from support.families import FAMILIES
from support.library import OLD
from support.stages import watched

pytestmark = pytest.mark.usefixtures("inference")

GOLDEN = Path(__file__).parent.parent / "golden" / "e2e_tiny_clip.npz"
IMAGE = 5
IMAGES = {"img0": [0], "img1": [1], "img01": [0, 1]}


class GoldenTower:
    """CLIP's side of TRIM as recorded: texts are numbers of the golden data's own."""

    def __init__(self, golden: Any, vision: Any, which: list[int]) -> None:
        self.text = torch.tensor(golden["exp/text_embeds"])[which]
        self.norm = vision.post_layernorm
        self.projection = torch.tensor(golden["w/vision/visual_projection.weight"]).double()

    def questions(self, ids: Tensor) -> list[str]:
        return [""] * len(ids)

    def embed(self, questions: list[str]) -> Tensor:
        return self.text

    def project(self, features: Tensor) -> Tensor:
        return self.norm(features) @ self.projection.T


@pytest.fixture(scope="module")
def golden() -> Any:
    return np.load(GOLDEN)


@pytest.fixture(scope="module")
def model(golden: Any) -> Any:
    """A LLaVA whose tower holds the recorded weights."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=24,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=32,
        eos_token_id=None,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, image_seq_length=576)
    model = LlavaForConditionalGeneration(config).double().eval()
    model.set_attn_implementation("eager")  # as recorded: it rounds its soft-max to float32
    tower: Any = model.model.vision_tower
    prefix = "w/vision/"
    weights = {
        name.removeprefix(prefix).removeprefix("vision_model."): torch.tensor(golden[name]).double()
        for name in golden.files
        if name.startswith(prefix)
    }
    weights.pop("visual_projection.weight")
    missing, unexpected = tower.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all("position_ids" in name for name in missing)
    return model


def inputs_of(golden: Any, which: list[int]) -> dict[str, Tensor]:
    up = np.kron(golden["base"].astype(np.float32), np.ones((1, 1, 14, 14), np.float32))
    texture = np.tile(golden["tex"].astype(np.float32), (1, 24, 24))
    pixels = torch.tensor(up + texture * (1 + np.float32(0.5) * up)).double()[which]
    ids = torch.tensor([[1, *[IMAGE] * 576, 7, 8]] * len(which))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def projected_rows(model: Any, method: foveal.Compressor, inputs: dict[str, Tensor], tower: Any) -> Any:
    """What the projector was given, and where it went."""
    given: list[Tensor] = []
    with foveal.compress(model, method, text_tower=tower), watched(model) as seen:
        linear = model.model.multi_modal_projector.linear_1
        handle = linear.register_forward_pre_hook(lambda _module, args: given.append(args[0]))
        model(**inputs)
        handle.remove()
    return given[0], seen.selections[0]


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("mode", ["TRIM:-1", "TRIM:0.2"])
def test_trim_from_pixels_through_the_model(model: Any, golden: Any, mode: str, images: str) -> None:
    which = IMAGES[images]
    keep: Any = "auto" if mode.endswith("-1") else float(mode.split(":")[1])
    tower = GoldenTower(golden, model.model.vision_tower, which)
    rows, selection = projected_rows(
        model, foveal.TRIM(keep=keep, parity=True), inputs_of(golden, which), tower
    )
    name = f"exp/trim/{mode}/{images}"
    np.testing.assert_allclose(rows, golden[f"{name}/out"], atol=1e-9)
    places = selection.mix[:, :-1].argmax(dim=2)
    np.testing.assert_array_equal(places, golden[f"{name}/kept"])


@pytest.mark.parametrize("images", ["img0", "img1"])
@pytest.mark.parametrize("config", ["pm|True|0.125", "pmp|True|0.125", "pmp|False|0.125"])
def test_prumerge_from_pixels_through_the_model(model: Any, golden: Any, config: str, images: str) -> None:
    kind, adaptive, ratio = config.split("|")
    method = {"pm": foveal.PruMerge, "pmp": foveal.PruMergePlus}[kind]
    keep: Any = "auto" if adaptive == "True" else float(ratio)
    rows, _ = projected_rows(model, method(keep=keep, parity=True), inputs_of(golden, IMAGES[images]), None)
    np.testing.assert_allclose(rows, golden[f"exp/{config}/{images}/out"], atol=1e-9)


# ---------------------------------------------------------------------- ToMe


def merged_by_hand(model: Any, pixels: Tensor, method: foveal.ToMe) -> tuple[Tensor, list[list[int]]]:
    """The projector's input for one image, and the patches in each of its rows, with plain loops."""
    tower = model.base_model.vision_tower
    has_class = hasattr(tower.embeddings, "class_embedding")
    hidden = tower.embeddings(pixels)
    hidden = (tower.pre_layrnorm(hidden) if has_class else hidden)[0]
    members = [[index - has_class] for index in range(len(hidden))]
    layer = getattr(model.config, "vision_feature_layer", -1)
    blocks = list(tower.encoder.layers)[: len(tower.encoder.layers) + layer + 1]
    for block, removed in zip(blocks, method.removals(len(hidden) - has_class, len(blocks)), strict=True):
        hidden, members = block_by_hand(block, hidden, members, removed, method.proportional, has_class)
    if not has_class:
        hidden = tower.post_layernorm(hidden)
    return hidden[has_class:], members[has_class:]


def block_by_hand(
    block: Any, hidden: Tensor, members: list[list[int]], removed: int, proportional: bool, has_class: bool
) -> tuple[Tensor, list[list[int]]]:
    attention, normed = block.self_attn, block.layer_norm1(hidden)
    heads, width = attention.num_heads, attention.head_dim
    q, k, v = (
        layer(normed).view(len(hidden), heads, width).transpose(0, 1)
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    scores = q @ k.transpose(1, 2) * width**-0.5
    if proportional:
        scores = scores + torch.tensor([float(len(m)) for m in members], dtype=torch.float64).log()
    out = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(hidden), -1)
    hidden = hidden + attention.out_proj(out)

    keys = torch.nn.functional.normalize(k.mean(dim=0), dim=-1)
    sources = [index for index in range(0, len(hidden), 2) if not (has_class and index == 0)]
    targets = list(range(1, len(hidden), 2))
    best = {s: max(targets, key=lambda t: (float(keys[s] @ keys[t]), -t)) for s in sources}
    ranked = sorted(sources, key=lambda s: (-float(keys[s] @ keys[best[s]]), s))[:removed]
    groups = {index: [index] for index in range(len(hidden)) if index not in ranked}
    for source in ranked:
        groups[best[source]].append(source)
    rows, joined = [], []
    for group in groups.values():
        sizes = [len(members[index]) for index in group]
        total = sum(size * hidden[index] for size, index in zip(sizes, group, strict=True))
        rows.append(total / sum(sizes))
        joined.append(sorted(m for index in group for m in members[index]))
    hidden = torch.stack(rows)
    return hidden + block.mlp(block.layer_norm2(hidden)), joined


@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("keep", [7, 12, 24])
@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_tome_merges_in_the_tower_as_by_hand(family: str, keep: int, proportional: bool) -> None:
    model, inputs = families.model(family), families.batch(family, [1, 1], [5, 7])
    method = foveal.ToMe(keep=keep, proportional=proportional)
    with foveal.compress(model, method) as run, watched(model) as seen:
        model(**inputs)
        sources = run.stages[0].sources
    assert sources is not None
    for image in range(2):
        rows, members = merged_by_hand(model, inputs["pixel_values"][image : image + 1], method)
        assert len(rows) == keep
        assert (seen.features[0][image] - rows).abs().max() < 1e-10
        assert [row.nonzero()[:, 0].tolist() for row in sources[image]] == members


def test_tome_says_how_few_tokens_a_tower_can_leave() -> None:
    model = families.model("llava")  # 25 patches, two blocks before the features
    inputs = families.batch("llava", [1], [5])
    with foveal.compress(model, foveal.ToMe(keep=7)):
        model(**inputs)
    with pytest.raises(foveal.FovealError, match="leaves 7"):
        foveal.attach(model, foveal.ToMe(keep=6))
    assert not foveal.compression.attached(model)


# ---------------------------------------------------------------------- what methods are given


@pytest.mark.parametrize(
    ("method", "layer"),
    [(foveal.VisionZip(keep=6), -2), (foveal.PruMerge(keep=6), -1)],
    ids=["visionzip", "prumerge"],
)
def test_methods_are_given_the_attention_of_their_layer(method: Any, layer: int) -> None:
    """VisionZip asks the layer that the features leave, PruMerge the one behind it."""
    model, inputs = families.model("llava"), families.batch("llava", [1, 1], [5, 7])
    tower, caught = model.base_model.vision_tower, {}
    attention = tower.encoder.layers[layer].self_attn
    handles = [
        getattr(attention, name).register_forward_hook(
            lambda _module, _args, output, name=name: caught.update({name: output})
        )
        for name in ("q_proj", "k_proj")
    ]
    with watched(model) as plain:
        model(**inputs)
    for handle in handles:
        handle.remove()
    shape = (2, -1, attention.num_heads, attention.head_dim)
    query, key = (caught[name].view(shape).transpose(1, 2) for name in ("q_proj", "k_proj"))
    expected = method.choose(
        foveal.TowerContext(
            features=plain.features[0],
            grid=(5, 5),
            class_token=plain.class_tokens[0],
            attention=foveal.AttentionInputs(query, key, None, attention.scale, causal=False),
        )
    )
    with foveal.compress(model, method), watched(model) as seen:
        model(**inputs)
    assert torch.equal(seen.selections[0].kept, expected.kept)
    assert torch.allclose(seen.selections[0].mix, expected.mix)  # type: ignore[arg-type]


def test_cdpruner_is_given_what_the_projector_made() -> None:
    model, inputs = families.model("llava"), families.batch("llava", [1, 1], [5, 7])
    stand_in: Any = text_tower(model)
    with watched(model) as plain:
        model(**inputs)
    features = plain.features[0]
    method = foveal.CDPruner(keep=6)
    expected = method.choose(
        foveal.TowerContext(
            features=model.base_model.multi_modal_projector(features),
            grid=(5, 5),
            image_embeds=stand_in.project(features),
            text_embeds=stand_in.embed(stand_in.questions(inputs["input_ids"])),
        )
    )
    with foveal.compress(model, method, text_tower=stand_in), watched(model) as seen:
        model(**inputs)
    assert torch.equal(seen.selections[0].kept, expected.kept)


# ---------------------------------------------------------------------- questions


def test_questions_come_from_the_prompt_or_from_the_run() -> None:
    model, inputs = families.model("llava"), families.batch("llava", [1, 1], [6, 9])
    tower = text_tower(model)
    asked = tower.questions(inputs["input_ids"])
    with foveal.compress(model, foveal.TRIM(keep=6), text_tower=tower) as run:
        model(**inputs)
        kept = run.kept
        run.questions = asked
        model(**inputs)
        assert all(torch.equal(a, b) for a, b in zip(run.kept, kept, strict=True))
        run.questions = ["25 30", "31"]
        model(**inputs)
        assert not all(torch.equal(a, b) for a, b in zip(run.kept, kept, strict=True))
        run.questions = ["25"]
        with pytest.raises(foveal.FovealError, match="1 texts for 2 samples"):
            model(**inputs)


def test_generate_asks_the_question_of_its_own_prompt() -> None:
    model, tower = families.model("llava"), text_tower(families.model("llava"))
    first, second = (families.batch("llava", [1], [9], seed=seed) for seed in (0, 1))
    second["pixel_values"] = first["pixel_values"]
    with foveal.compress(model, foveal.TRIM(keep=6), text_tower=tower) as run:
        kept = []
        for inputs in (first, second, first):
            generate(model, inputs)
            kept.append(run.stages[0].sources[0])  # type: ignore[index]
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])


def test_each_image_of_a_sample_is_compared_with_its_question() -> None:
    model, tower = families.model("llava"), text_tower(families.model("llava"))
    case = FAMILIES["llava"]
    samples = case.samples([2, 1], [9, 6])
    with foveal.compress(model, foveal.TRIM(keep=6), text_tower=tower) as run:
        model(**case.collate(samples))
        together = run.stages[0].sources
        alone = []
        for sample in samples:
            model(**case.collate([sample]))
            alone += run.stages[0].sources or []
    assert together is not None
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_beams_follow_the_tokens_that_were_chosen() -> None:
    model, inputs = families.model("llava"), families.batch("llava", [1, 1], [6, 9])
    with foveal.compress(model, foveal.VisionZip(keep=6)) as run:
        model(**inputs)
        kept = run.kept
        generate(model, inputs, num_beams=3)
        assert all(torch.equal(a, kept[row // 3]) for row, a in enumerate(run.kept))
        if not OLD:  # where every beam's image is encoded
            assert run.stages[0].sources is None  # which beam shows which image is not known


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "family", ["qwen2_vl", "internvl", "gemma3", "idefics3", "mistral3", "llava_onevision", "llava_next"]
)
def test_families_whose_patches_are_no_tokens_are_refused(family: str) -> None:
    model = families.model(family)
    with pytest.raises(foveal.FovealError, match="visual token for every patch"):
        foveal.attach(model, foveal.AveragePooling(keep=4))


@pytest.mark.parametrize("method", [foveal.PruMerge, foveal.PruMergePlus, foveal.VisionZip])
def test_a_tower_without_class_token_is_refused_unless_asked_otherwise(method: Any) -> None:
    model = families.model("paligemma")
    with pytest.raises(foveal.FovealError, match=r'class token \(CLS\).*query="mean"'):
        foveal.attach(model, method(keep=4))
    with foveal.compress(model, method(keep=4, query="mean")):
        model(**families.batch("paligemma", [1], [5]))


def test_embeddings_instead_of_pixels_are_refused() -> None:
    model, inputs = families.model("llava"), families.batch("llava", [1], [5])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    mask = inputs["input_ids"] == families.IMAGE
    with (
        foveal.compress(model, foveal.VisionZip(keep=4), visual_mask=mask),
        pytest.raises(foveal.FovealError, match="pass pixel_values inside the block"),
    ):
        model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])


def test_features_of_another_call_are_told_apart() -> None:
    model = families.model("llava")
    first, second = (families.batch("llava", [1, 1], [5, 5], seed=seed) for seed in (0, 1))
    embeds = model.get_input_embeddings()(first["input_ids"])
    mask = first["input_ids"] == families.IMAGE
    with foveal.compress(model, foveal.VisionZip(keep=4)) as run:
        model(**first)
        kept = run.kept
        features = torch.cat(list(model.get_image_features(first["pixel_values"]).pooler_output))
        model.get_image_features(second["pixel_values"])
        run.visual_mask = mask
        model(
            inputs_embeds=embeds.masked_scatter(mask[..., None], features),
            attention_mask=first["attention_mask"],
        )
        assert all(torch.equal(a, b) for a, b in zip(run.kept, kept, strict=True))
        assert run.stages[0].sources is None  # those of the second images would be wrong
        with pytest.raises(foveal.FovealError, match="pass pixel_values inside the block"):
            model(inputs_embeds=embeds, attention_mask=first["attention_mask"])


def test_the_question_of_an_earlier_block_is_forgotten() -> None:
    model, inputs = families.model("llava"), families.batch("llava", [1], [5])
    tower = text_tower(model)
    with foveal.compress(model, foveal.TRIM(keep=4), text_tower=tower):
        model(**inputs)
    with (
        foveal.compress(model, foveal.TRIM(keep=4), text_tower=tower),
        pytest.raises(foveal.FovealError, match="no input_ids came with the image"),
    ):
        model.get_image_features(inputs["pixel_values"])


def test_a_class_token_among_the_visual_tokens_is_refused() -> None:
    model = families.model("llava")
    model.config.vision_feature_select_strategy = "full"
    try:
        with pytest.raises(foveal.FovealError, match="class token is passed on"):
            foveal.attach(model, foveal.VisionZip(keep=4))
    finally:
        model.config.vision_feature_select_strategy = "default"


@pytest.mark.parametrize("layer", [0, -3])
def test_features_in_front_of_the_first_block_are_refused(layer: int) -> None:
    model = families.ALL["llava"].build(4, "sdpa")
    del model.base_model.vision_tower.encoder.layers[2:]
    model.config.vision_feature_layer = layer
    with pytest.raises(foveal.FovealError, match=f"vision_feature_layer={layer} is before the first"):
        foveal.attach(model, foveal.VisionZip(keep=5))


def test_tome_refuses_features_of_another_layer_than_the_configs() -> None:
    model, inputs = families.model("llava"), families.batch("llava", [1], [5])
    with foveal.compress(model, foveal.ToMe(keep=9)):
        with pytest.raises(foveal.FovealError, match=r"config\.vision_feature_layer"):
            model(**inputs, vision_feature_layer=-1)
        with pytest.raises(foveal.FovealError, match="class token is passed on"):
            model(**inputs, vision_feature_select_strategy="full")
        model(**inputs)


def test_a_language_model_has_no_tower() -> None:
    model = families.model("llava").get_decoder()
    with pytest.raises(foveal.FovealError):
        foveal.attach(model, foveal.VisionZip(keep=4), visual_mask=torch.ones(1, 4, dtype=torch.bool))


def test_questions_need_a_method_that_reads_them() -> None:
    with (
        foveal.compress(families.model("llava"), foveal.DART(keep=4)) as run,
        pytest.raises(foveal.FovealError, match="no method here reads questions"),
    ):
        run.questions = ["where is it?"]
