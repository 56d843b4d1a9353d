"""TRIM, PruMerge, PruMerge+ and VisionZip against what the official implementations kept and computed."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from foveal import FovealError
from foveal.compressors.context import AttentionInputs, Selection, TowerContext
from foveal.compressors.prumerge import PruMerge, PruMergePlus
from foveal.compressors.trim import TRIM
from foveal.compressors.visionzip import VisionZip, zip_tokens

pytestmark = pytest.mark.usefixtures("inference")

GOLDEN = Path(__file__).parent.parent / "golden"
TRIM_FILES = ("random_n576_s0", "random_n64_s0", "batch3_n64", "nooutlier_n64")
PRUMERGE_FILES = ("random_n576_s0", "random_n144_s0", "zero_n64")
TRIM_CASES = [
    (file, str(mode)) for file in TRIM_FILES for mode in np.load(GOLDEN / f"trim_{file}.npz")["modes"]
]
PRUMERGE_CASES = [
    (file, str(config))
    for file in PRUMERGE_FILES
    for config in np.load(GOLDEN / f"prumerge_{file}.npz")["configs"]
]
DTYPES = {"float64": torch.float64, "float32": torch.float32}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
PIXELS = (
    1e-7  # eager attention of a tower rounds its soft-max to float32, a little differently on another machine
)


def load(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / f"{name}.npz"))


def close(actual: Tensor, expected: np.ndarray, tolerance: float) -> None:
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(
        actual.double().numpy(), expected.astype(np.float64), rtol=tolerance, atol=tolerance * scale
    )


def merged(selection: Selection, features: Tensor, class_token: Tensor | None = None) -> Tensor:
    """(images, kept, width): what the projector is given. All images of one count."""
    assert selection.mix is not None
    assert selection.counts is not None
    assert selection.kept.sum(dim=1).tolist() == list(selection.counts)
    if class_token is not None:
        features = torch.cat([features, class_token[:, None]], dim=1)
    return selection.mix.to(features.dtype) @ features


def main_token(selection: Selection, extra: int = 1) -> np.ndarray:
    """(images, kept - extra) the token that weighs most in each row of the mix."""
    assert selection.mix is not None
    rows = selection.mix.shape[1] - extra
    return selection.mix[:, :rows].argmax(dim=2).numpy()


def trim_keep(mode: str) -> Any:
    ratio = mode.split(":")[1]
    return "auto" if ratio == "-1" else float(ratio)


def trim_context(golden: dict[str, np.ndarray], dtype: str) -> TowerContext:
    """Only scoring passes the layer norm and the projection; float16 means features rounded to it."""
    wide = DTYPES.get(dtype, torch.float32)
    weight, bias, projection, text, features = (
        torch.tensor(golden[key]).to(wide) for key in ("ln_weight", "ln_bias", "proj_weight", "u", "x")
    )
    if dtype == "float16":
        features = features.half().to(wide)
    normed = functional.layer_norm(features, weight.shape, weight, bias, float(golden["ln_eps"]))
    side = int(features.shape[1] ** 0.5)
    return TowerContext(
        features=features, grid=(side, side), image_embeds=normed @ projection.T, text_embeds=text
    )


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize(("file", "mode"), TRIM_CASES)
def test_trim_parity(file: str, mode: str, dtype: str) -> None:
    golden = load(f"trim_{file}")
    expected = {key.rsplit("/", 1)[1]: golden[key] for key in golden if key.startswith(f"{dtype}/{mode}/")}
    context = trim_context(golden, dtype)
    if "error" in expected:
        with pytest.raises(FovealError, match="keep="):
            TRIM(keep=trim_keep(mode), parity=True).choose(context)
        return
    selection = TRIM(keep=trim_keep(mode), parity=True).choose(context)
    np.testing.assert_array_equal(main_token(selection), expected["kept"])
    out = merged(selection, context.features)
    assert out.shape[1] == int(expected["n_keep"]) + 1
    if dtype == "float64":
        close(out, expected["out"], 1e-12)
    else:  # the official function returns float16
        np.testing.assert_array_equal(out[:, :-1].half().numpy(), expected["out"][:, :-1])
        close(out, expected["out"], 1e-3)
    if "score" in expected:
        assert selection.scores is not None
        close(selection.scores, expected["score"], 1e-12 if dtype == "float64" else 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("file", "mode"), [case for case in TRIM_CASES if case[0].startswith("random") and case[1] != "TRIM:0.0"]
)
def test_trim_clean_counts_the_mean_token_and_is_else_the_same(file: str, mode: str, dtype: str) -> None:
    golden = load(f"trim_{file}")
    context = trim_context(golden, dtype)
    count = int(golden[f"{dtype}/{mode}/n_keep"]) + 1
    for keep in {count, "auto" if mode == "TRIM:-1" else count}:
        selection = TRIM(keep=keep).choose(context)
        np.testing.assert_array_equal(main_token(selection), golden[f"{dtype}/{mode}/kept"])
        assert selection.counts == (count,)


def class_attention(
    query: np.ndarray | Tensor, key: np.ndarray | Tensor, heads: int, dtype: torch.dtype
) -> Any:
    """As an engine hands it over: heads apart."""

    def split(rows: np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(rows).to(dtype).unflatten(2, (heads, -1)).transpose(1, 2)

    query, key = split(query), split(key)
    return AttentionInputs(query=query, key=key, mask=None, scaling=query.shape[-1] ** -0.5, causal=False)


def prumerge(config: str) -> Any:
    method, adaptive, ratio = config.split("|")
    made = {"pm": PruMerge, "pmp": PruMergePlus}[method]
    return made(keep="auto" if adaptive == "True" else float(ratio), parity=True)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("file", "config"), PRUMERGE_CASES)
def test_prumerge_parity(file: str, config: str, dtype: str, heads: int) -> None:
    golden = load(f"prumerge_{file}")
    features = torch.tensor(golden["feats"]).to(DTYPES[dtype])
    side = int(features.shape[1] ** 0.5)
    attention = class_attention(golden["q_cls"], golden["k"], heads, features.dtype)
    context = TowerContext(features=features, grid=(side, side), attention=attention)
    name = f"{dtype}/{config}"
    if f"{name}/error" in golden:
        with pytest.raises(FovealError, match="released PruMerge"):
            prumerge(config).choose(context)
        return
    selection = prumerge(config).choose(context)
    tolerance = TOLERANCE[features.dtype]
    np.testing.assert_array_equal(main_token(selection), golden[f"{name}/idx"])
    close(merged(selection, features), golden[f"{name}/out"], tolerance)
    assert selection.scores is not None
    close(selection.scores, golden[f"{dtype}/cls_attn"], tolerance * 1e-2)
    if f"{name}/neighbors" in golden:
        assert selection.mix is not None
        for row, own, near in zip(
            selection.mix[0], golden[f"{name}/idx"][0], golden[f"{name}/neighbors"][0], strict=False
        ):
            assert set(row.nonzero()[:, 0].tolist()) == {int(own), *near.tolist()}
        rest = np.flatnonzero(selection.mix[0, -1].numpy())
        np.testing.assert_array_equal(rest, np.sort(golden[f"{name}/compl"][0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_prumerge_clean_is_the_released_rule_in_raster_order(dtype: str) -> None:
    golden = load("prumerge_random_n576_s0")
    features = torch.tensor(golden["feats"]).to(DTYPES[dtype])
    attention = class_attention(golden["q_cls"], golden["k"], 4, features.dtype)
    context = TowerContext(features=features, grid=(24, 24), attention=attention)
    for config, keeps in (("pm|True|0.125", ("auto", 42)), ("pm|False|0.125", (73, 73 / 576))):
        name = f"{dtype}/{config}"
        order = golden[f"{name}/idx"][0].argsort()
        expected = golden[f"{name}/out"][:, [*order, -1]]
        for keep in keeps:
            selection = PruMerge(keep=keep).choose(context)
            np.testing.assert_array_equal(main_token(selection)[0], golden[f"{name}/idx"][0][order])
            close(merged(selection, features), expected, TOLERANCE[features.dtype])


def test_prumerge_plus_clean_takes_the_same_outliers_and_three_samples_for_each() -> None:
    golden = load("prumerge_random_n576_s0")
    attention = class_attention(golden["q_cls"], golden["k"], 4, torch.float64)
    features = torch.tensor(golden["feats"]).double()
    selection = PruMergePlus(keep="auto").choose(
        TowerContext(features=features, grid=(24, 24), attention=attention)
    )
    tokens = main_token(selection)[0].tolist()
    assert len(set(tokens)) == len(tokens) == 4 * 41
    assert set(golden["float64/pm|True|0.125/idx"][0].tolist()) <= set(tokens)


@pytest.mark.parametrize("dtype", DTYPES)
def test_visionzip(dtype: str) -> None:
    golden = load("visionzip")
    hidden, metric, probabilities = (
        torch.tensor(golden[f"n576_{key}"]).to(DTYPES[dtype]) for key in ("hidden", "metric", "cls_attn")
    )
    selection = zip_tokens(probabilities[..., 1:], metric[:, 1:], 54, 10, class_token=True)
    check_zipped(selection, hidden, golden)

    context = TowerContext(
        features=hidden[:, 1:],
        grid=(24, 24),
        class_token=hidden[:, 0],
        attention=attention_that_gives(probabilities, metric),
    )
    for method in (
        VisionZip(keep=64),
        VisionZip(keep=64 / 576),
        VisionZip(keep=64, contextual=10),
    ):
        check_zipped(method.choose(context), hidden, golden)


def check_zipped(selection: Selection, hidden: Tensor, golden: dict[str, np.ndarray]) -> None:
    expected = np.sort(golden["n576_d54_c10_all_indices"][0])
    np.testing.assert_array_equal(main_token(selection, extra=10)[0, 1:] + 1, expected[1:])
    assert selection.mix is not None
    assert selection.mix[0, 0].nonzero().tolist() == [[576]]  # the class token first, and alone
    out = merged(selection, hidden[:, 1:], hidden[:, 0])
    # Stored in float32, which is as far as float64 can be compared.
    close(out, golden["n576_d54_c10_out"], 1e-6 if hidden.dtype == torch.float64 else 1e-5)


def attention_that_gives(probabilities: Tensor, metric: Tensor) -> AttentionInputs:
    """Queries and keys of a class token with these soft-max rows, whose keys have this mean over heads.

    Head h reads its logarithms from a channel of its own, which the other heads cancel in the mean.
    """
    heads, width = probabilities.shape[1], metric.shape[2]
    logits = probabilities.log()
    sign = torch.eye(heads) - (1 - torch.eye(heads)) / (heads - 1)
    own = sign[:, None].to(metric.dtype) * logits.transpose(1, 2)[:, None]
    key = torch.cat([metric[:, None].expand(-1, heads, -1, -1), own], dim=-1)
    query = torch.zeros_like(key)
    query[:, :, 0, width:] = torch.eye(heads, dtype=metric.dtype)
    return AttentionInputs(query=query, key=key, mask=None, scaling=1.0, causal=False)


class TinyCLIP:
    """What both towers of the recorded model compute, from its pixels."""

    def __init__(self, golden: dict[str, np.ndarray]) -> None:
        vision, text = (ast.literal_eval(str(golden[key])) for key in ("vision_config", "text_config"))
        for config in (vision, text):
            # Recorded so: eager attention rounds its soft-max to float32.
            assert config.pop("attn_implementation") == "eager"
        self.vision = self.tower(CLIPVisionModelWithProjection, CLIPVisionConfig(**vision), golden, "vision")
        self.text = self.tower(CLIPTextModelWithProjection, CLIPTextConfig(**text), golden, "text")
        self.heads = vision["num_attention_heads"]
        self.caught: dict[str, Tensor] = {}
        for name, module in self.vision.named_modules():
            if name.endswith(("layers.23.self_attn.q_proj", "layers.23.self_attn.k_proj")):
                module.register_forward_hook(
                    lambda _, __, output, name=name[-6:]: self.caught.update({name: output})
                )
        with torch.no_grad():
            self.hidden = self.vision(pixels(golden), output_hidden_states=True).hidden_states[-2]
            features = self.hidden[:, 1:]
            self.text_embeds = self.text(
                input_ids=torch.tensor(golden["input_ids"]),
                attention_mask=torch.tensor(golden["attention_mask"]),
            ).text_embeds
            normed = self.vision.vision_model.post_layernorm(features)
            self.image_embeds = self.vision.visual_projection(normed)

    @staticmethod
    def tower(made: Any, config: Any, golden: dict[str, np.ndarray], name: str) -> Any:
        config._attn_implementation = "eager"
        model = made(config).double().eval()
        prefix = f"w/{name}/"
        weights = {
            key.removeprefix(prefix): torch.tensor(golden[key]).double()
            for key in golden
            if key.startswith(prefix)
        }
        model.load_state_dict(weights)
        return model

    def context(self, images: list[int]) -> TowerContext:
        query, key = self.caught["q_proj"][images], self.caught["k_proj"][images]
        return TowerContext(
            features=self.hidden[images, 1:],
            grid=(24, 24),
            class_token=self.hidden[images, 0],
            attention=class_attention(query, key, self.heads, torch.float64),
            image_embeds=self.image_embeds[images],
            text_embeds=self.text_embeds[images],
        )


def pixels(golden: dict[str, np.ndarray]) -> Tensor:
    base, texture = golden["base"].astype(np.float32), golden["tex"].astype(np.float32)
    up = base.repeat(14, axis=2).repeat(14, axis=3)
    tiled = np.tile(texture, (1, 24, 24))
    return torch.tensor((up + tiled * (1 + np.float32(0.5) * up)).astype(np.float32)).double()


IMAGES = {"img0": [0], "img1": [1], "img01": [0, 1]}


@pytest.fixture(scope="module")
def end_to_end() -> tuple[TinyCLIP, dict[str, np.ndarray]]:
    golden = load("e2e_tiny_clip")
    return TinyCLIP(golden), golden


def test_the_towers_match(end_to_end: tuple[TinyCLIP, dict[str, np.ndarray]]) -> None:
    clip, golden = end_to_end
    close(clip.hidden, golden["exp/hidden_m2"], 1e-6)  # stored in float32
    close(clip.text_embeds, golden["exp/text_embeds"], PIXELS)


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("mode", ["TRIM:-1", "TRIM:0.2"])
def test_trim_from_pixels(end_to_end: tuple[TinyCLIP, dict[str, np.ndarray]], mode: str, images: str) -> None:
    clip, golden = end_to_end
    context = clip.context(IMAGES[images])
    assert context.image_embeds is not None
    assert context.text_embeds is not None
    name = f"exp/trim/{mode}/{images}"
    close((context.image_embeds * context.text_embeds[:, None]).sum(2), golden[f"{name}/sim"], PIXELS)
    selection = TRIM(keep=trim_keep(mode), parity=True).choose(context)
    np.testing.assert_array_equal(main_token(selection), golden[f"{name}/kept"])
    close(merged(selection, context.features), golden[f"{name}/out"], PIXELS)


@pytest.mark.parametrize("images", ["img0", "img1"])
@pytest.mark.parametrize("config", ["pm|True|0.125", "pmp|True|0.125", "pmp|False|0.125"])
def test_prumerge_from_pixels(
    end_to_end: tuple[TinyCLIP, dict[str, np.ndarray]], config: str, images: str
) -> None:
    clip, golden = end_to_end
    context = clip.context(IMAGES[images])
    selection = prumerge(config).choose(context)
    assert selection.scores is not None
    close(selection.scores, golden[f"exp/prumerge/{images}/cls_attn"], PIXELS * 1e-2)
    np.testing.assert_array_equal(main_token(selection), golden[f"exp/{config}/{images}/idx"])
    close(merged(selection, context.features), golden[f"exp/{config}/{images}/out"], PIXELS)


def test_trim_auto_gives_each_image_what_it_gets_alone(
    end_to_end: tuple[TinyCLIP, dict[str, np.ndarray]],
) -> None:
    clip, golden = end_to_end
    selection = TRIM(keep="auto").choose(clip.context([0, 1]))
    assert selection.counts == (52, 79)
    for image in range(2):
        expected = golden[f"exp/trim/TRIM:-1/img{image}/out"][0]
        assert selection.mix is not None
        out = selection.mix[image] @ clip.hidden[image, 1:]
        close(out[: len(expected)], expected, PIXELS)
        assert not selection.mix[image, len(expected) :].any()
