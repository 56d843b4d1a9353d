"""TextTower: what was asked, and what CLIP makes of it and of the patches."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    LlamaForCausalLM,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from foveal.errors import FovealError
from foveal.evaluation.runner import encode
from foveal.mini import SceneConversations, SceneQuestions, weights_path
from foveal.text_tower import _PAIRS, TextTower
from support import tiny, vlm

GOLDEN = Path(__file__).parent / "golden" / "e2e_tiny_clip.npz"
ASKED = ["where is the owl?", "is there a cat in the image?", "how many tool pictures are there?", "owl"]

# LLaVA 1.5's own template, and one in ChatML with a system prompt and marks around images.
LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ('</s>' if message['role'] == 'assistant' else ' ') }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<|vision_start|><image><|vision_end|>' }}"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}"
)
# Mistral's way: nothing but special tokens, and no prompt for an answer; those given hold thoughts.
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST]' }}"
    "{% for content in message['content'] %}"
    "{{ '<image>' if content['type'] == 'image' else content['text'] }}{% endfor %}{{ '[/INST]' }}"
    "{% elif message['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' + message['content'][0]['text'] + '[/SYSTEM_PROMPT]' }}"
    "{% else %}{{ '<think></think>' + message['content'][0]['text'] + '</s>' }}{% endif %}{% endfor %}"
)
SPECIAL = {
    "llava": ("<unk>", "<s>", "</s>", "<pad>", "<image>"),
    "chatml": (
        "<unk>",
        "<s>",
        "</s>",
        "<pad>",
        "<image>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
    ),
    "inst": (
        "<unk>",
        "<s>",
        "</s>",
        "<pad>",
        "<image>",
        "[INST]",
        "[/INST]",
        "[SYSTEM_PROMPT]",
        "[/SYSTEM_PROMPT]",
    ),
}
TEMPLATES = {"llava": LLAVA, "chatml": CHATML, "inst": INST}


@lru_cache(maxsize=8)
def prompter(kind: str) -> Any:
    """A processor for pictures of 9 placeholders: letters as LLaMA's sentencepiece has them, or bytes."""
    if kind == "bundled":
        return vlm.processor()
    special = SPECIAL[kind]
    letters = (
        sorted(pre_tokenizers.ByteLevel.alphabet()) if kind != "llava" else ["\n", *map(chr, range(32, 127))]
    )
    letters += ["▁"] if kind == "llava" else []
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*special, *letters]))}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    space: Any = pre_tokenizers.Metaspace() if kind == "llava" else pre_tokenizers.ByteLevel(False)
    core.pre_tokenizer = space
    core.decoder = decoders.Metaspace() if kind == "llava" else decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    if kind == "llava":
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=list(special[4:]),
        padding_side="left",
    )
    tokenizer.image_token = "<image>"
    images = vlm.processor().image_processor
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=32,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATES[kind],
        image_token="<image>",
        num_additional_image_tokens=1,
    )


@lru_cache(maxsize=8)
def reader(kind: str) -> TextTower:
    """A text tower for the sake of its `questions`."""
    return TextTower(pair(), clip_tokenizer(), prompter(kind))


@lru_cache(maxsize=1)
def clip_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(weights_path() / "clip")


@lru_cache(maxsize=4)
def pair(end: int = 3, dtype: torch.dtype = torch.float64, shared: int = 12) -> CLIPModel:
    """A random pair with the bundled tokenizer, whose largest id does not end a text."""
    size = {"intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={
            **size,
            "hidden_size": 16,
            "vocab_size": 600,
            "eos_token_id": end,
            "projection_dim": shared,
        },
        vision_config={
            **size,
            "hidden_size": 24,
            "image_size": 96,
            "patch_size": 8,
            "projection_dim": shared,
        },
        projection_dim=shared,
    )
    model = CLIPModel(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, dtype=dtype), alpha=0.2)
    return model


def bare(end: int = 3, dtype: torch.dtype = torch.float64) -> TextTower:
    return TextTower(pair(end, dtype), clip_tokenizer(), vlm.processor())


@lru_cache(maxsize=1)
def bundled() -> tuple[Any, TextTower]:
    model = AutoModelForImageTextToText.from_pretrained(weights_path()).eval()
    return model, TextTower.beside(model)


# ---------------------------------------------------------------- embeddings


def tokens(texts: list[str]) -> dict[str, Tensor]:
    encoded = clip_tokenizer()(texts, padding=True, return_tensors="pt")
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


@torch.no_grad()
def test_texts_are_embedded_as_clip_does() -> None:
    expected = pair().get_text_features(**tokens(ASKED)).pooler_output
    assert_close(bare().embed(ASKED), expected)
    assert bare().embed(ASKED).shape == (4, 12)


@torch.no_grad()
def test_a_text_does_not_feel_its_batch() -> None:
    together = bare().embed(ASKED)
    alone = torch.cat([bare().embed([text]) for text in ASKED])
    assert_close(together, alone)
    ids, mask = tokens(ASKED).values()
    assert not mask.all()
    for padding in (0, 3, 7):  # nothing, the end-of-text token, a word
        assert_close(bare().embed_ids(ids.masked_fill(mask == 0, padding), mask), together)


@torch.no_grad()
def test_the_end_of_text_is_the_tokenizers_whatever_the_config_says() -> None:
    """Under 2, the legacy value, CLIP takes the largest id, here a word's."""
    expected = pair(end=3).get_text_features(**tokens(ASKED)).pooler_output
    legacy = pair(end=2).get_text_features(**tokens(ASKED)).pooler_output
    assert (legacy - expected).abs().max() > 1e-2
    assert_close(bare(end=2).embed(ASKED), expected)


@torch.no_grad()
def test_patches_are_projected_by_hand() -> None:
    clip, features = pair(), torch.randn(3, 5, 24, dtype=torch.float64)
    norm = clip.vision_model.post_layernorm
    centred = features - features.mean(-1, keepdim=True)
    normed = centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
    expected = (normed * norm.weight + norm.bias) @ clip.visual_projection.weight.T
    assert_close(bare().project(features), expected)


@torch.no_grad()
def test_scores_are_float32_at_least() -> None:
    half = TextTower(_halved(), clip_tokenizer(), vlm.processor())
    features = torch.randn(2, 5, 24).half()
    assert half.embed(ASKED).dtype == half.project(features).dtype == torch.float32
    norm, matrix = half.post_layernorm, half.visual_projection.weight
    exact = functional.layer_norm(
        features.double(), (24,), norm.weight.double(), norm.bias.double(), norm.eps
    )
    assert_close(half.project(features).double(), exact @ matrix.double().T, 1e-5)
    assert half.project(features.double()).dtype == torch.float64
    plain = bare(dtype=torch.float32)
    expected = plain.embed(ASKED), plain.project(features.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain.embed(ASKED), expected[0])
        assert torch.equal(plain.project(features.float()), expected[1])


def _halved() -> Any:
    model = CLIPModel(pair().config)
    model.load_state_dict(pair().state_dict())
    return model.half().eval()


def test_it_follows_the_features_to_their_device() -> None:
    tower = TextTower(_halved(), clip_tokenizer(), vlm.processor())
    assert tower.project(torch.zeros(1, 2, 24, device="meta")).device.type == "meta"
    assert tower.device.type == "meta"


def test_nothing_learns() -> None:
    tower = bare()
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert not any(module.training for module in tower.modules())
    features = torch.randn(1, 2, 24, dtype=torch.float64, requires_grad=True)
    assert not tower.project(features).requires_grad


@torch.no_grad()
def test_long_texts_are_cut_with_a_warning() -> None:
    words = ["owl", "cat"] * 40
    with pytest.warns(UserWarning, match="reads 77 tokens: the last 5 of sample 1's question") as warned:
        found = bare().embed([ASKED[0], " ".join(words)])
    assert len(warned) == 1
    end = clip_tokenizer().eos_token_id
    ids = clip_tokenizer()(" ".join(words))["input_ids"]
    assert len(ids) == 82
    cut = torch.tensor([[*ids[:76], end]])
    expected = pair().get_text_features(input_ids=cut, attention_mask=torch.ones_like(cut)).pooler_output
    assert_close(found[1:], expected)
    assert_close(found[:1], bare().embed(ASKED[:1]))
    bare().embed([" ".join(words[:75])])  # 77 tokens: no warning, which would be an error here


def test_parameters_are_counted() -> None:
    large = CLIPConfig(
        text_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "projection_dim": 768,
        },
        vision_config={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
            "projection_dim": 768,
        },
        projection_dim=768,
    )
    with torch.device("meta"):
        clip = CLIPModel(large)
    tower = TextTower(clip, clip_tokenizer(), vlm.processor())
    assert tower.parameters_count == 123_650_304
    held = sum(parameter.numel() for parameter in tower.parameters())
    assert held - tower.parameters_count == 1024 * 768 + 2 * 1024


def test_wrong_parts_are_refused() -> None:
    other = pair(shared=8)
    mixed = SimpleNamespace(
        text_model=pair().text_model,
        text_projection=pair().text_projection,
        vision_model=other.vision_model,
        visual_projection=other.visual_projection,
    )
    with pytest.raises(FovealError, match="makes 12 features and its visual projection 8"):
        TextTower(mixed, clip_tokenizer(), vlm.processor())
    with pytest.raises(FovealError, match="puts no end-of-text token behind"):
        TextTower(pair(), vlm.processor().tokenizer, vlm.processor()).embed(ASKED)
    with pytest.raises(FovealError, match="no end-of-text token: pass"):
        TextTower(pair(), SimpleNamespace(eos_token_id=None), vlm.processor())
    with pytest.raises(FovealError, match=r"width 24, not 25: .*TextTower.beside\(model, source=...\)"):
        bare().project(torch.zeros(1, 2, 25))


# ---------------------------------------------------------------- the official implementation


@pytest.fixture(scope="module")
def golden() -> Any:
    return np.load(GOLDEN)


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def official(request: pytest.FixtureRequest, golden: Any) -> tuple[TextTower, Any]:
    """The tower, and the vision tower it reads."""
    text = CLIPTextModelWithProjection(CLIPTextConfig(**_config(golden["text_config"])))
    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**_config(golden["vision_config"])))
    text.load_state_dict(_weights(golden, "w/text/"))
    vision.load_state_dict(_weights(golden, "w/vision/"))
    clip = SimpleNamespace(
        text_model=text.text_model,
        text_projection=text.text_projection,
        vision_model=vision.vision_model,
        visual_projection=vision.visual_projection,
    )
    for part in vars(clip).values():
        part.to(request.param)
    return TextTower(clip, SimpleNamespace(eos_token_id=63), None), vision.vision_model


def _config(text: np.ndarray) -> dict[str, Any]:
    return dict(ast.literal_eval(str(text)))


def _weights(golden: Any, prefix: str) -> dict[str, Tensor]:
    names = [name for name in golden.files if name.startswith(prefix)]
    return {name.removeprefix(prefix): torch.tensor(golden[name]).float() for name in names}


@torch.no_grad()
def test_the_official_similarity(official: tuple[TextTower, Any], golden: Any) -> None:
    tower, vision = official
    dtype = tower.text_projection.weight.dtype
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    text = tower.embed_ids(torch.tensor(golden["input_ids"]), torch.tensor(golden["attention_mask"]))
    np.testing.assert_allclose(text, golden["exp/text_embeds"], atol=tolerance, rtol=0)
    base, tile = torch.tensor(golden["base"]).float(), torch.tensor(golden["tex"]).float()
    coarse = base.repeat_interleave(14, 2).repeat_interleave(14, 3)
    pixels = (coarse + tile.tile(1, 24, 24) * (1 + 0.5 * coarse)).to(dtype)
    states = vision(pixels, output_hidden_states=True).hidden_states[-2]
    np.testing.assert_allclose(states, golden["exp/hidden_m2"], atol=1e-4, rtol=0)
    similarity = torch.einsum("btc,bc->bt", tower.project(states[:, 1:]), text)
    scale = abs(golden["exp/trim/TRIM:-1/img0/sim"]).max()
    for image in (0, 1):
        expected = golden[f"exp/trim/TRIM:-1/img{image}/sim"][0]
        np.testing.assert_allclose(similarity[image], expected, atol=tolerance * scale, rtol=0)


# ---------------------------------------------------------------- what was asked

KINDS = ["bundled", "llava", "chatml", "inst"]


def said(role: str, text: str, image: bool = False) -> dict[str, Any]:
    picture = [{"type": "image"}] if image else []
    return {"role": role, "content": [*picture, {"type": "text", "text": text}]}


def read(kind: str, talks: list[Any], generation: bool = True, side: str = "left") -> list[str]:
    """The questions found in the prompts of conversations with as many pictures as they mention."""
    processor = prompter(kind)
    texts = processor.apply_chat_template(talks, add_generation_prompt=generation)
    counts = [text.count("<image>") for text in texts]
    images = [[vlm.picture(0)] * count for count in counts if count] or None
    encoded = processor(images=images, text=texts, padding=True, padding_side=side, return_tensors="pt")
    assert max(counts) == 0 or (encoded["input_ids"] == processor.image_token_id).sum(1).max() > 1
    return reader(kind).questions(encoded["input_ids"])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_question_of_a_prompt(kind: str, side: str) -> None:
    talks = [[said("user", text, image=True)] for text in ASKED]
    assert read(kind, talks, side=side) == ASKED
    assert read(kind, talks, side=side, generation=False) == ASKED


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_of_an_evaluation(kind: str) -> None:
    inputs = encode(prompter(kind), [vlm.picture(index) for index in range(len(ASKED))], ASKED)
    assert reader(kind).questions(inputs["input_ids"]) == ASKED


@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_question_of_a_conversation_without_its_answer(kind: str, generation: bool) -> None:
    talk = [
        said("user", "is there a cat?", image=True),
        said("assistant", "yes"),
        said("user", "where is the owl?"),
    ]
    answered = [*talk, said("assistant", "in the middle")]
    assert read(kind, [talk], generation) == ["where is the owl?"]
    assert read(kind, [answered], False) == ["where is the owl?"]
    assert read(kind, [talk, answered, answered[:2]], False, "right") == [
        *["where is the owl?"] * 2,
        "is there a cat?",
    ]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_system_prompts_and_several_pictures(kind: str) -> None:
    talk = [said("system", "be brief."), said("user", "which one\nis larger?", image=True)]
    talk[1]["content"].insert(0, {"type": "image"})
    assert read(kind, [talk]) == ["which one\nis larger?"]
    assert read(kind, [[said("user", "no picture")]]) == ["no picture"]


def test_original_placeholders_and_prompts_without_a_template() -> None:
    processor = prompter("llava")
    ids = processor.tokenizer("USER: \nwhere? ASSISTANT:", return_tensors="pt")["input_ids"]
    ids[0, 8] = -200  # what LLaVA's own code puts there
    assert reader("llava").questions(ids)[0].endswith("where?")
    assert reader("llava").questions(processor.tokenizer("just text", return_tensors="pt")["input_ids"]) == [
        "just text"
    ]
    plain = LlavaProcessor(vlm.processor().image_processor, processor.tokenizer, image_token="<image>")
    tower = TextTower(pair(), clip_tokenizer(), plain)
    ids = processor.tokenizer("<image>where is it?</s><pad>", return_tensors="pt")["input_ids"]
    assert tower.questions(ids) == ["where is it?"]
    assert TextTower(pair(), clip_tokenizer(), processor.tokenizer).questions(ids) == ["where is it?"]


def test_markers_are_known_as_the_tokenizer_writes_them() -> None:
    """The bundled tokenizer makes them lower-case."""
    template = (
        "{% for message in messages %}{{ 'Question: ' if message['role'] == 'user' else 'Reply: so, ' }}"
        "{% for content in message['content'] if content['type'] == 'text' %}{{ content['text'] }}\n{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'Reply:' }}{% endif %}"
    )
    bundled_parts = vlm.processor().image_processor, vlm.processor().tokenizer
    processor: Any = LlavaProcessor(*bundled_parts, image_token="<image>", chat_template=template)
    talk = [said("user", "is there a cat?"), said("assistant", "yes"), said("user", "where is the owl?")]
    text = processor.apply_chat_template(talk, add_generation_prompt=True)
    ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
    assert TextTower(pair(), clip_tokenizer(), processor).questions(ids) == ["where is the owl?"]


def test_placeholders_need_not_be_special() -> None:
    tokenizer = prompter("llava").tokenizer
    ids = tokenizer("~~~where is it?", return_tensors="pt")["input_ids"]
    mark = tokenizer.convert_tokens_to_ids("~")
    for kind in ("image", "video"):
        processor = SimpleNamespace(tokenizer=tokenizer, **{f"{kind}_token_id": mark})
        assert TextTower(pair(), clip_tokenizer(), processor).questions(ids) == ["where is it?"]


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=60))
@example("A cat: is it 3 < 4? a user said <this> |im_end|")
def test_any_text_is_read_as_it_was_written(text: str) -> None:
    for kind in ("llava", "chatml", "inst"):
        if any(
            marker.replace(" ", "") in text.replace(" ", "")
            for marker in ("USER:", "ASSISTANT:", *SPECIAL[kind])
        ):
            continue
        found = read(kind, [[said("user", text, image=True)]])
        assert found == [text.strip()]


def test_every_question_of_the_bundled_model_reaches_clip_whole() -> None:
    """The words come back with other spaces, which make no difference to the tokenizer."""
    _, tower = bundled()
    scenes = SceneQuestions("test", 60)
    asked = [scenes.question(index)[1].question for index in range(len(scenes))]
    inputs = encode(tower.processor, [vlm.picture(0)] * len(asked), asked)
    found = tower.questions(inputs["input_ids"])
    assert tower.tokenizer(found)["input_ids"] == tower.tokenizer(asked)["input_ids"]
    assert all(marker not in text for text in found for marker in ("USER", "ASSISTANT", "<"))


def test_training_conversations_do_not_leak_answers() -> None:
    tower = bundled()[1]
    for index in range(5):
        talk = SceneConversations("train", 5)[index]["messages"]
        texts = tower.processor.apply_chat_template([talk])
        inputs = tower.processor(images=[[vlm.picture(0)]], text=texts, return_tensors="pt")
        asked = talk[-2]["content"][-1]["text"]
        found = tower.questions(inputs["input_ids"])
        assert tower.tokenizer(found)["input_ids"] == [tower.tokenizer(asked)["input_ids"]]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('alternate') }}", r"cannot render a conversation \(alternate\)"),
        ("{{ messages[0]['content'][0]['text'] }}", "drops or repeats"),
    ],
)
def test_a_template_that_shows_nothing_is_named(template: str, message: str) -> None:
    odd = LlavaProcessor(
        vlm.processor().image_processor,
        vlm.processor().tokenizer,
        image_token="<image>",
        chat_template=template,
    )
    with pytest.raises(FovealError, match=message):
        TextTower(pair(), clip_tokenizer(), odd).questions(torch.tensor([[7, 8]]))


# ---------------------------------------------------------------- from the checkpoint, or beside it


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA of width 24, as `pair` is, with nothing beside it."""
    folder = tmp_path_factory.mktemp("llava")
    vlm.model().save_pretrained(folder)
    vlm.processor().save_pretrained(folder)
    return folder


def save_pair(folder: Path, model: CLIPModel) -> Path:
    model.save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_the_bundled_pair_is_found() -> None:
    _, tower = bundled()
    clip = CLIPModel.from_pretrained(weights_path() / "clip").eval()
    with torch.no_grad():
        expected = clip.get_text_features(**tokens(ASKED)).pooler_output
    assert_close(tower.embed(ASKED), expected, 1e-5)
    assert torch.equal(tower.visual_projection.weight, clip.visual_projection.weight)
    assert torch.equal(tower.post_layernorm.weight, clip.vision_model.post_layernorm.weight)
    assert not [name for name, _ in tower.named_parameters() if name.startswith("vision")]


@pytest.mark.usefixtures("offline")
def test_it_has_the_vision_towers_precision(checkpoint: Path, tmp_path: Path) -> None:
    source = save_pair(tmp_path, _halved())
    for dtype in (torch.float64, torch.bfloat16):
        model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=dtype)
        tower = TextTower.beside(model, source)
        assert {parameter.dtype for parameter in tower.parameters()} == {dtype}
        assert tower.device == model.device


@pytest.mark.usefixtures("offline")
def test_the_parts_may_be_apart(checkpoint: Path, tmp_path: Path) -> None:
    whole = save_pair(tmp_path / "whole", _halved())
    CLIPTextModelWithProjection.from_pretrained(whole).save_pretrained(tmp_path / "text")
    CLIPVisionModelWithProjection.from_pretrained(whole).save_pretrained(tmp_path / "vision")
    clip_tokenizer().save_pretrained(tmp_path / "text")
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    one, two = TextTower.beside(model, whole), TextTower.beside(model, str(tmp_path))
    assert torch.equal(one.embed(ASKED), two.embed(ASKED))
    features = torch.randn(1, 3, 24)
    assert torch.equal(one.project(features), two.project(features))


def test_llavas_towers_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes are those in the configs of llava-hf/llava-1.5-7b-hf and of CLIP's own."""
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14, "num_attention_heads": 16}
    asked: list[str] = []

    def note(source: str, **_: Any) -> None:
        asked.append(source)
        raise OSError("no network")

    monkeypatch.setattr("foveal.text_tower.AutoConfig.from_pretrained", note)
    for size in (336, 224):
        model = vlm.model()
        model.model.vision_tower.config = CLIPVisionConfig(**large, image_size=size)
        model.name_or_path = "llava-hf/some-llava"
        with pytest.raises(FovealError, match=r"\(no network\): .*TextTower.beside\(model, source=...\)"):
            TextTower.beside(model)
    assert asked == ["openai/clip-vit-large-patch14-336", "openai/clip-vit-large-patch14"]
    assert asked == list(_PAIRS.values())


@pytest.mark.usefixtures("offline")
def test_what_is_missing_is_named_with_the_remedy(checkpoint: Path, tmp_path: Path) -> None:
    remedy = r".*foveal.TextTower.beside\(model, source=...\)"
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    with pytest.raises(
        FovealError, match=rf"no folder '{checkpoint}/clip'.*clip_vision_model, hidden_size 24{remedy}"
    ):
        TextTower.beside(model)
    with pytest.raises(FovealError, match=f"loaded from no folder{remedy}"):
        TextTower.beside(vlm.model())
    with pytest.raises(FovealError, match=f"cannot load a CLIP pair from 'no/pair' {remedy}"):
        TextTower.beside(model, "no/pair")
    with pytest.raises(FovealError, match=f"holds a llava model{remedy}"):
        TextTower.beside(model, checkpoint)
    wide = weights_path() / "clip"
    with pytest.raises(
        FovealError, match=f"width 128, but the vision tower of this LlavaForCond.* makes 24: {remedy}"
    ):
        TextTower.beside(model, wide)
    with pytest.raises(FovealError, match="no vision tower"):
        TextTower.beside(LlamaForCausalLM(tiny.text_config(layers=1)))
    lame = save_pair(tmp_path, _halved())
    weights = {name: value for name, value in pair().state_dict().items() if "text_projection" not in name}
    pair().save_pretrained(lame, state_dict=weights)
    with pytest.raises(FovealError, match=f"lacks text_projection.weight{remedy}"):
        TextTower.beside(model, lame)
    unnamed = vlm.model()
    with pytest.raises(
        FovealError, match=r"processor.*from no directory.*TextTower\(clip, tokenizer, processor\)"
    ):
        TextTower.beside(unnamed, save_pair(tmp_path / "whole", _halved()))


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), atol=tolerance, rtol=tolerance)
