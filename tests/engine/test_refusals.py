"""What cannot be exact is refused, in one line that says why and what to do."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import foveal
from foveal.engine import families as engine_families
from support import families, tiny
from support.families import UNUSUAL

pytestmark = pytest.mark.usefixtures("inference")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gemma3n", "reuse the keys of earlier ones"),
        ("gemma4_shared", "reuse the keys of earlier ones"),
        ("gemma4_per_layer", "inputs of their own for every row"),
        ("mllama", "through cross-attention, not as tokens"),
        ("qwen3_5", "linear-attention layers keep a running state"),
    ],
)
def test_families_that_cannot_be_compressed(name: str, reason: str, support: Any) -> None:
    assert set(UNUSUAL) == {"gemma3n", "gemma4_shared", "gemma4_per_layer", "mllama", "qwen3_5"}
    with pytest.raises(foveal.FovealError, match=f"model is not supported: .*{reason}") as refusal:
        foveal.attach(families.model(name), foveal.Random(keep=0.5))
    support(name, "any", str(refusal.value).partition(": ")[2])


def test_a_decoder_without_self_attention() -> None:
    model = tiny.llava()
    layer = model.get_decoder().layers[3]
    attention = layer.self_attn
    del layer.self_attn
    with pytest.raises(foveal.FovealError, match="decoder layers without self-attention"):
        foveal.attach(model, foveal.Random(keep=0.5))
    layer.self_attn = attention


def test_an_unknown_family_works_and_says_once_that_it_is_untested() -> None:
    model, inputs = tiny.llava(), tiny.batch([1], [9])
    with foveal.compress(model, "dart", keep=5):
        expected = model(**inputs).logits
    model.config.model_type = "novel"
    engine_families._warn_untested.cache_clear()
    with pytest.warns(UserWarning, match=r"novel models are untested .* compare keep=1\.0"):
        run = foveal.attach(model, "dart", keep=5)
    assert torch.equal(model(**inputs).logits, expected)
    run.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        foveal.attach(model, "dart", keep=5).detach()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cu_seq_lens_q": torch.tensor([0, 47])}, "packed sequences (cu_seq_lens) cannot be compressed"),
        ({"novel": torch.zeros(1, 47, 3)}, "take 'novel' along the sequence, which is not supported"),
    ],
)
def test_arguments_along_the_sequence(arguments: dict[str, Any], message: str) -> None:
    model, inputs = tiny.llava(), tiny.batch([1], [9])
    assert inputs["input_ids"].shape[1] == 47
    with (
        foveal.compress(model, foveal.Random(keep=4)),
        pytest.raises(foveal.FovealError, match=re.escape(message)),
    ):
        model(**inputs, **arguments)


def test_positional_arguments_along_the_sequence() -> None:
    class Extra(nn.Module):
        """A decoder layer that takes a second input for every row."""

        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer, self.self_attn = layer, layer.self_attn

        def forward(self, hidden: torch.Tensor, extra: torch.Tensor, **kwargs: Any) -> Any:
            return self.layer(hidden + extra, **kwargs)

    model, inputs = tiny.llava(), tiny.batch([1], [9])
    layers = model.get_decoder().layers
    layers[2] = Extra(layers[2])
    layers[2].register_forward_pre_hook(lambda module, args: (*args, torch.ones_like(args[0])))
    with (
        foveal.compress(model, foveal.Random(keep=4)),
        pytest.raises(foveal.FovealError, match="take 'argument 1' along the sequence"),
    ):
        model(**inputs)


def test_masks_of_an_unknown_kind() -> None:
    model, inputs = tiny.llava(), tiny.batch([1], [9])

    def nested(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": torch.ones(1, 47, 47)}

    model.get_decoder().layers[2].register_forward_pre_hook(nested, with_kwargs=True)
    with (
        foveal.compress(model, foveal.Random(keep=4)),
        pytest.raises(foveal.FovealError, match=r"masks of this kind \(Tensor\) are not supported"),
    ):
        model(**inputs)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([], "no method to compress with"),
        ([foveal.Random(keep=9), foveal.DART(keep=4)], "two methods act at layer 2"),
        ([foveal.Random(keep=9), foveal.DART(keep=4, layer=6)], "layer=6 is beyond .* layers 0 to 5"),
        (
            [foveal.Random(keep=9), foveal.DART(keep=4, layer=3, per_frame=True)],
            "set per_frame on all of them or on none",
        ),
    ],
)
def test_methods_that_do_not_go_together(methods: list[foveal.Compressor], message: str) -> None:
    with pytest.raises(foveal.FovealError, match=message):
        foveal.attach(tiny.llava(), methods)


def test_a_later_stage_cannot_keep_more_than_an_earlier_one_left() -> None:
    model, inputs = tiny.llava(), tiny.batch([1], [9])
    stages = [foveal.Random(keep=9, layer=0), foveal.DART(keep=12, layer=3)]
    with (
        foveal.compress(model, stages),
        pytest.raises(foveal.FovealError, match="keep=12 is more than the 9 visual tokens of image 0"),
    ):
        model(**inputs)


def test_a_prompt_that_ends_with_an_image() -> None:
    model, inputs = tiny.llava(), tiny.batch([1], [9])
    end = int((inputs["input_ids"][0] == tiny.IMAGE).nonzero().max()) + 1
    inputs = {**inputs, "input_ids": inputs["input_ids"][:, :end]}
    inputs["attention_mask"] = inputs["attention_mask"][:, :end]
    with foveal.compress(model, foveal.Random(keep=4)) as run:
        with pytest.raises(foveal.FovealError, match="the last row is a visual token"):
            model.generate(**inputs, max_new_tokens=2)
        model(**inputs)  # nobody asked for the next token: a prefix to build on
    assert len(run.kept[0]) == 4


def test_a_next_token_behind_right_padding() -> None:
    model, inputs = tiny.llava(), tiny.batch([1, 1], [9, 5], "right")
    with foveal.compress(model, foveal.Random(keep=4)):
        model(**inputs)
        with pytest.raises(foveal.FovealError, match="a sample ends with padding, where its next token"):
            model(**inputs, logits_to_keep=1)


def test_frames_that_cannot_be_told_apart() -> None:
    model, inputs = families.model("qwen2_vl"), families.video_batch("qwen2_vl", [1], [9])
    inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1])[None]
    with (
        foveal.compress(model, foveal.Random(keep=2, per_frame=True)),
        pytest.raises(foveal.FovealError, match="per_frame=True needs frames that can be told apart"),
    ):
        model(**inputs)


def test_a_method_that_miscounts() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Miscounting(foveal.Compressor):
        def select(self, context: foveal.TokenContext) -> foveal.Selection:
            return foveal.Selection(kept=context.layout.valid, counts=(4,))

    model, inputs = tiny.llava(), tiny.batch([1], [9])
    with (
        foveal.compress(model, Miscounting(keep=4)),
        pytest.raises(foveal.FovealError, match=r"Miscounting marks \[36\] tokens as kept but counts \[4\]"),
    ):
        model(**inputs)


def test_placeholders_without_features_are_text() -> None:
    model = tiny.llava()
    words = torch.tensor([[1, tiny.IMAGE, tiny.IMAGE, 17, 18]])
    plain = model(input_ids=words).logits
    with foveal.compress(model, foveal.Random(keep=1, layer=0)):
        assert torch.equal(model(input_ids=words).logits, plain)


@pytest.mark.parametrize("options", [None, {"max_new_tokens": 2}], ids=["forward", "generate"])
def test_attention_maps(options: dict[str, int] | None) -> None:
    model, inputs = tiny.llava(attention="eager"), tiny.batch([1], [9])
    with (
        foveal.compress(model, foveal.Random(keep=4)),
        pytest.raises(foveal.FovealError, match="maps between the kept tokens only"),
    ):
        (model.generate if options else model)(**inputs, **(options or {}), output_attentions=True)
