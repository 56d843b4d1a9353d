"""Packed questions must be exactly the questions asked alone."""

from __future__ import annotations

import pytest
import torch

from foveal.mini.architecture import build_llava
from foveal.mini.learner import Learner, make_batch
from foveal.mini.packing import IGNORE, Codec, answer_logits, collate, tower_states
from foveal.mini.questions import ask_all
from foveal.mini.scenes import make_scene
from foveal.mini.stages import Lesson
from foveal.mini.tokenizer import build_tokenizer

TURNS = [
    [("is there a fox in the image?", "yes")],
    [("where is the key?", "top left"), ("what color is the disc behind the key?", "red")],
    [("what word is written in the image?", "bat")],
]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(build_tokenizer())


@pytest.mark.parametrize("attention", ["sdpa", "eager", "foveal_plain"])
def test_packed_logits_equal_those_of_each_question_alone(codec: Codec, attention: str) -> None:
    model = Learner(build_llava(build_tokenizer(), seed=1), codec).model.eval()
    model.set_attn_implementation(attention)
    scene = make_scene("train", 5)
    segments = [codec.segment(turns) for turns in TURNS]
    batch = make_batch([Lesson(scene.render(), scene, segments)], codec.prefix, 256)
    assert batch.pack is not None
    with torch.no_grad():
        packed, targets, _ = answer_logits(model, tower_states(model, batch.pixels), batch.pack)
        alone, expected = [], []
        for segment in segments:
            ids = torch.tensor([[*codec.prefix, *segment.ids]])
            labels = torch.tensor([*([IGNORE] * len(codec.prefix)), *segment.labels])
            logits = model(
                input_ids=ids, pixel_values=batch.pixels, attention_mask=torch.ones_like(ids)
            ).logits[0]
            alone.append(logits[:-1][labels[1:] != IGNORE])
            expected.append(labels[labels != IGNORE])
    assert torch.equal(targets, torch.cat(expected))
    torch.testing.assert_close(packed, torch.cat(alone), atol=2e-5, rtol=1e-4)


def test_segment_has_the_chat_templates_tokens(codec: Codec) -> None:
    tokenizer = build_tokenizer()
    (question, answer), second = TURNS[1]
    messages = []
    for asked, told in (TURNS[1][0], second):
        parts = [{"type": "text", "text": asked}]
        messages.append({"role": "user", "content": parts if messages else [{"type": "image"}, *parts]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": told}]})
    text = tokenizer.apply_chat_template(messages, tokenize=False).replace("<image>", "<image>" * 144)
    segment = codec.segment([(question, answer), second])
    assert tokenizer(text)["input_ids"] == [*codec.prefix, *segment.ids]


def test_masks_labels_of_all_but_the_answers(codec: Codec) -> None:
    segment = codec.segment(TURNS[1])
    answers = [token for token in segment.labels if token != IGNORE]
    assert build_tokenizer().decode(answers, skip_special_tokens=True) == "top left red"


def test_leaves_out_what_does_not_fit(codec: Codec) -> None:
    segments = [codec.segment([(item.question, item.answer)]) for item in ask_all(make_scene("train", 1))]
    pack = collate(codec.prefix, [segments, segments[:1]], 200)
    assert pack.ids.shape == (2, 200)
    assert set(pack.segments[1].tolist()) == {0, 1, -1}
    for number in range(1, int(pack.segments[0].max()) + 1):
        kept = pack.ids[0][pack.segments[0] == number].tolist()
        assert kept in ([], segments[number - 1].ids)
