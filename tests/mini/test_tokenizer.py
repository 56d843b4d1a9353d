"""The tokenizer: nothing is lost, answers come back as they were, words on signs are spelled."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.mini.questions import CAPTIONS, ask_all, caption
from foveal.mini.scenes import make_scene
from foveal.mini.tokenizer import build_tokenizer
from foveal.mini.vocabulary import HELD_OUT_WORDS, SIGN_WORDS, spellable

TOKENIZER = build_tokenizer()


def test_every_answer_comes_back_and_no_question_has_an_unknown_token() -> None:
    for split in ("train", "test"):
        for index in range(150):
            scene = make_scene(split, index)
            for question in ask_all(scene):
                assert TOKENIZER.unk_token_id not in TOKENIZER(question.question)["input_ids"]
                ids = TOKENIZER(f"ASSISTANT: {question.answer}</s>")["input_ids"]
                assert TOKENIZER.decode(ids, skip_special_tokens=True) == question.answer
            for kind in CAPTIONS:
                text = caption(scene, kind)[1]
                assert TOKENIZER.decode(TOKENIZER(text)["input_ids"], skip_special_tokens=True) == text


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=string.printable, max_size=60))
def test_no_ascii_text_is_unknown(text: str) -> None:
    visible = "".join(letter for letter in text if letter.isprintable() or letter in "\n\t ")
    assert TOKENIZER.unk_token_id not in TOKENIZER(visible)["input_ids"]


@pytest.mark.parametrize("word", [*HELD_OUT_WORDS[:40], *SIGN_WORDS[:40], "qzx"])
def test_words_on_signs_are_spelled_letter_by_letter(word: str) -> None:
    assert spellable(word)
    assert TOKENIZER.tokenize(word) == [word[0], *("##" + letter for letter in word[1:])]


def test_option_letters_are_not_the_article() -> None:
    assert TOKENIZER.tokenize("A. fox B. a key") == ["A", ".", "fox", "B", ".", "a", "key"]


def test_assistant_mask_marks_the_answers_and_their_ends() -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "where is the fox?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "top left"}]},
        {"role": "user", "content": "is there a key in the image?"},
        {"role": "assistant", "content": "no"},
    ]
    encoded = TOKENIZER.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    answers = [i for i, told in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if told]
    assert TOKENIZER.convert_ids_to_tokens(answers) == ["top", "left", "</s>", "no", "</s>"]


def test_pads_on_the_left_unless_it_closes_the_text() -> None:
    texts = ["fox", "where is the fox?"]
    left = TOKENIZER(texts, padding=True)["input_ids"]
    assert left[0][0] == TOKENIZER.pad_token_id
    closing = build_tokenizer(closing=True)
    right = closing(texts, padding=True)["input_ids"]
    assert right[0][-1] == closing.pad_token_id
    assert right[1][-1] == closing.eos_token_id
