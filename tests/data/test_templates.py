"""Where the assistant's words are in the text of a conversation."""

from __future__ import annotations

from typing import Any

import pytest

from foveal import FovealError
from foveal.data.templates import check_processor, render
from support import processors

# Thoughts of earlier turns are left out, and an empty thought is put before the last answer, as by reasoning models.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat(*turns: str, first: str = "user") -> list[dict[str, Any]]:
    """Turns of user and assistant, a system turn where the text says so."""
    messages, roles = [], ["user", "assistant"] if first == "user" else ["assistant", "user"]
    for text in turns:
        role = "system" if text.startswith("system:") else roles[0]
        if role != "system":
            roles.reverse()
        messages.append({"role": role, "content": [{"type": "text", "text": text}]})
    return messages


def words(template: str, messages: list[dict[str, Any]]) -> list[str]:
    rendered = render(processors.llava(template=template), messages)
    return [rendered.text[begin:end] for begin, end in rendered.spans]


@pytest.mark.parametrize("name", ["QWEN", "GEMMA", "IDEFICS", "INTERNVL", "LLAVA", "MISTRAL"])
def test_the_words_of_each_answer_and_what_ends_the_turn(name: str) -> None:
    found = words(getattr(processors, name), chat("is it a cat?", "it is", "really?", "yes\n\nit is"))
    ending = {
        "QWEN": "<|im_end|>",
        "GEMMA": "<end_of_turn>",
        "IDEFICS": "<end_of_utterance>",
        "INTERNVL": "<|im_end|>",
        "LLAVA": "</s>",
        "MISTRAL": "</s>",
    }[name]
    start = " " if name == "IDEFICS" else ""  # the prompt ends in "Assistant:"
    assert found == [f"{start}it is{ending}", f"{start}yes\n\nit is{ending}"]


@pytest.mark.parametrize("written", ["{{ ' ' }}", "{{ '</s>' }}", "</s>{{ '\n' }}", ""])
@pytest.mark.parametrize("inside", [True, False])
def test_a_model_learns_to_stop_whether_or_not_its_template_marks_the_end(written: str, inside: bool) -> None:
    """The end-of-turn token is in the answer once: written inside the mark, behind it, or nowhere."""
    answer = "{{ m['content'][0]['text'] }}"
    marked = (f"{answer}{written}", "") if inside else (answer, written)
    template = (
        "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}"
        f"{{% generation %}}{marked[0]}{{% endgeneration %}}{marked[1]}"
        "{% else %}{{ m['content'][0]['text'] }} {% endif %}{% endfor %}"
    )
    rendered = render(processors.llava(template=template), chat("a?", "cat", "b?", "dog"))
    assert [rendered.text[begin:end] for begin, end in rendered.spans] == ["cat</s>", "dog</s>"]
    assert rendered.text.count("</s>") == 2
    assert "user: b? assistant: dog" in rendered.text


@pytest.mark.parametrize("name", ["QWEN", "GEMMA", "INTERNVL", "MISTRAL"])
def test_with_a_system_turn_and_a_last_turn_without_answer(name: str) -> None:
    found = words(getattr(processors, name), chat("system: be kind", "hello", "good day", "bye"))
    assert len(found) == 1
    assert found[0].startswith("good day")
    assert found[0] != "good day"


def test_a_template_that_moves_the_systems_words_to_the_last_question() -> None:
    messages = chat("system: be kind", "it is", "it is", "really, it is?", "it is")
    rendered = render(processors.llava(template=processors.MISTRAL), messages)
    assert rendered.text.index("be kind") > rendered.text.index("</s>")
    assert [rendered.text[begin:end] for begin, end in rendered.spans] == ["it is</s>", "it is</s>"]
    assert [begin for begin, _ in rendered.spans] == [
        rendered.text.index("[/INST] it is") + len("[/INST] "),
        rendered.text.rindex("[/INST] it is") + len("[/INST] "),
    ]


def test_a_template_that_writes_the_last_answer_otherwise() -> None:
    assert words(THINKING, chat("a?", "cat", "b?", "cat")) == ["cat<|im_end|>", "cat<|im_end|>"]


def test_a_template_that_trims_answers_and_writes_the_last_one_otherwise() -> None:
    trimming = THINKING.replace("{{ part['text'] }}", "{{ part['text'] | trim }}")
    assert words(trimming, chat("a?", " cat", "b?", "cat \n", "c?", " cat ")) == ["cat<|im_end|>"] * 3


def test_the_assistant_may_begin() -> None:
    assert words(processors.QWEN, chat("hello", "hi", "bye", first="assistant")) == [
        "hello<|im_end|>",
        "bye<|im_end|>",
    ]


def test_a_template_that_changes_answers_has_to_mark_them() -> None:
    shouting = THINKING.replace("{{ part['text'] }}", "{{ part['text'].upper() }}")
    with pytest.raises(FovealError, match=r"rewrites earlier turns.*\{% generation %\}"):
        words(shouting, chat("a?", "cat", "b?", "dog"))
    more = THINKING + "{% if messages[-1]['content'][0]['text'] == 'dog' %}!{% endif %}"
    assert words(more, chat("a?", "cat", "b?", "cow")) == ["cat<|im_end|>", "cow<|im_end|>"]
    with pytest.raises(FovealError, match="rewrites earlier turns"):
        words(more, chat("a?", "cat", "b?", "dog"))


def test_what_a_template_refuses_is_said() -> None:
    with pytest.raises(FovealError, match="cannot render it: Conversation roles must alternate"):
        words(processors.GEMMA, chat("a?", "b", first="assistant"))


def test_processors_that_cannot_be_used() -> None:
    good = processors.llava()
    check_processor(good)
    with pytest.raises(FovealError, match="no image_token"):
        check_processor(processors.tokenizer([]))
    good.chat_template = None
    with pytest.raises(FovealError, match="no chat template"):
        check_processor(good)
