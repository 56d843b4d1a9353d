"""Chat messages of every shape, in batches, say what each of them says alone."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from PIL import Image

import foveal
from foveal.evaluation.chat import Chat, encode, generate, generation_config, steady
from foveal.mini import SceneQuestions

SHORT = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return foveal.load()


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    questions = SceneQuestions("test", 4)
    return [questions[index]["image"] for index in range(4)]


def user(*parts: Any) -> dict[str, Any]:
    """A turn of texts and pictures."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "url": part}
        for part in parts
    ]
    return {"role": "user", "content": content}


def say(
    loaded: tuple[Any, Any], chats: list[Chat], wanted: dict[str, Any] = SHORT, until: Any = ()
) -> list[str]:
    model, processor = loaded
    config = generation_config(model, processor, wanted)
    return [reply.text for reply in generate(model, processor, encode(processor, chats), config, until)]


def test_a_ragged_batch_says_what_each_says_alone(
    loaded: tuple[Any, Any], pictures: list[Image.Image]
) -> None:
    system = {"role": "system", "content": [{"type": "text", "text": "Answer briefly."}]}
    chats = [
        Chat.of([user(pictures[0], "What is in the middle center?")]),
        Chat.of([system, user(pictures[1], "How many cars are there?\nAnswer with a number.")]),
        Chat.of([user(pictures[2], pictures[3], "Is there a cat in the image?")]),
    ]
    together = say(loaded, chats)
    assert together == [say(loaded, [chat])[0] for chat in chats]
    assert len(set(together)) > 1, "all say the same: this test is blind"


def test_prompts_hold_what_the_messages_say(loaded: tuple[Any, Any], pictures: list[Image.Image]) -> None:
    _, processor = loaded
    system = {"role": "system", "content": [{"type": "text", "text": "be brief"}]}
    chats = [
        Chat.of([system, user(pictures[0], "is there a cat?")]),
        Chat.of([user(*pictures[:2], "how many?")]),
    ]
    inputs = encode(processor, chats)
    placeholder = processor.image_token_id
    assert inputs["input_ids"].eq(placeholder).sum(1).tolist() == [144, 288]
    assert inputs["attention_mask"][0, 0] == 0, "padding stands on the left"
    assert inputs["attention_mask"][:, -1].all()
    text = processor.decode(inputs["input_ids"][0], skip_special_tokens=True)
    assert "be brief" in text
    assert "is there a cat?" in text


def test_text_alone_can_be_asked(loaded: tuple[Any, Any]) -> None:
    chat = Chat.of([user("what color is the sky?")])
    assert chat.images == []
    assert len(say(loaded, [chat])) == 1


def test_the_question_is_the_last_turn_alone(pictures: list[Image.Image]) -> None:
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
        user(pictures[0], "one?"),
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        user("two?", "three?"),
    ]
    assert Chat.of(turns).question == "two?\nthree?"


def test_other_media_are_refused() -> None:
    with pytest.raises(foveal.FovealError, match="holds video, but only texts and images"):
        Chat.of([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}])


def test_a_missing_picture_is_named() -> None:
    with pytest.raises(foveal.FovealError, match=r"no such image: gone\.png"):
        Chat.of([{"role": "user", "content": [{"type": "image", "url": "gone.png"}]}])


def test_no_template_is_said(loaded: tuple[Any, Any], pictures: list[Image.Image]) -> None:
    processor = copy.copy(loaded[1])
    processor.chat_template = None
    with pytest.raises(foveal.FovealError, match="no chat template"):
        encode(processor, [Chat.of([user(pictures[0], "?")])])


@pytest.mark.parametrize(
    ("text", "until", "expected"),
    [
        ("yes\n\nbecause", ["\n\n"], "yes"),
        ("\n\nyes", ["\n\n"], "yes"),
        ("a cat. USER: what", ["USER:", "."], "a cat"),
        ("yes", ["", "no"], "yes"),
        ("yes.", [], "yes."),
    ],
)
def test_strings_that_end_an_answer(
    monkeypatch: pytest.MonkeyPatch,
    loaded: tuple[Any, Any],
    pictures: list[Image.Image],
    text: str,
    until: list[str],
    expected: str,
) -> None:
    monkeypatch.setattr(loaded[1], "batch_decode", lambda *_, **__: [text])
    assert say(loaded, [Chat.of([user(pictures[0], "?")])], until=until) == [expected]


def test_tokens_are_counted_without_padding(loaded: tuple[Any, Any], pictures: list[Image.Image]) -> None:
    model, processor = loaded
    chats = [
        Chat.of([user(pictures[0], "is there a cat?")]),
        Chat.of([user(*pictures[:2], "what word is written in the image?")]),
    ]
    config = generation_config(model, processor, {"max_new_tokens": 8})
    replies = generate(model, processor, encode(processor, chats), config)
    alone = [generate(model, processor, encode(processor, [chat]), config)[0] for chat in chats]
    assert [(reply.read, reply.written) for reply in replies] == [(one.read, one.written) for one in alone]
    assert replies[0].read < replies[1].read
    assert 0 < replies[0].written < replies[1].written <= 8


GREEDY = [
    {},
    {"temperature": 0},
    {"temperature": 0, "do_sample": True},
    {"temperature": 0.7, "do_sample": False, "top_p": 0.5},
]


@pytest.mark.parametrize("wanted", GREEDY)
def test_greedy_unless_sampling_is_asked_for(
    loaded: tuple[Any, Any], pictures: list[Image.Image], wanted: dict[str, Any]
) -> None:
    model, processor = loaded
    config = generation_config(model, processor, {**SHORT, **wanted})
    assert config.do_sample is False
    assert (config.temperature, config.top_p, config.top_k) == (None, None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        say(loaded, [Chat.of([user(pictures[0], "?")])], {**SHORT, **wanted})


@pytest.mark.parametrize("wanted", [{"temperature": 0.7}, {"do_sample": True}])
def test_sampling_is_done_where_it_is_asked_for(loaded: tuple[Any, Any], wanted: dict[str, Any]) -> None:
    config = generation_config(*loaded, wanted)
    assert config.do_sample is True
    assert config.temperature == wanted.get("temperature")


def test_what_a_task_wants_of_generate(loaded: tuple[Any, Any]) -> None:
    before = copy.deepcopy(loaded[0].generation_config)
    wanted = {"num_beams": 3, "max_new_tokens": 9, "image_aspect_ratio": "pad", "until": ["x"]}
    config = generation_config(*loaded, wanted)
    assert (config.num_beams, config.max_new_tokens) == (3, 9)
    assert not hasattr(config, "image_aspect_ratio")
    assert generation_config(*loaded, wanted, 4).max_new_tokens == 4
    assert generation_config(*loaded, {}).max_new_tokens == 1024
    assert loaded[0].generation_config.to_dict() == before.to_dict()


def test_a_model_without_padding_token_takes_the_processors(
    monkeypatch: pytest.MonkeyPatch, loaded: tuple[Any, Any]
) -> None:
    monkeypatch.setattr(loaded[0].generation_config, "pad_token_id", None)
    assert generation_config(*loaded, {}).pad_token_id == loaded[1].tokenizer.pad_token_id


def test_draws_and_mode_are_put_back(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    model.train()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with steady(model, 3):
        assert not model.training
        first = torch.rand(2)
    with steady(model, 3):
        assert torch.equal(torch.rand(2), first)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    model.eval()
