"""A conversation as text, and where the assistant's words are in it, for any chat template.

Templates that mark them with `{% generation %}` say it themselves. For others the words are what a conversation gains
when the turn is added behind the prompt that asks for it. Where a template writes a conversation's beginning otherwise
once it goes on, the answers are found as what is replaced when the assistant says something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from foveal.data.conversations import Message
from foveal.errors import FovealError

__all__ = ["Rendered", "check_processor", "render", "render_text"]

Span = tuple[int, int]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers looks for it
_MARKS = ("\ue000", "\ue001")  # private use: in no template, and no template strips them


@dataclass(frozen=True)
class Rendered:
    """A conversation as the processor takes it, images as placeholders.

    Attributes:
        text: the whole conversation.
        spans: (begin, end) characters of the assistant's words, end-of-turn tokens included.
    """

    text: str
    spans: list[Span]


def check_processor(processor: Any) -> None:
    """Refuse a processor that no conversation can be prepared with.

    Raises:
        FovealError: it has no chat template, no image placeholder, or a tokenizer without character offsets.
    """
    if not isinstance(getattr(processor, "image_token", None), str):
        raise FovealError(
            f"{type(processor).__name__} names no image_token: pass a vision-language model's processor"
        )
    if not getattr(processor, "chat_template", None):
        raise FovealError(
            "the processor has no chat template: set processor.chat_template to the model's own"
        )
    if not processor.tokenizer.is_fast:
        raise FovealError(
            f"{type(processor.tokenizer).__name__} is slow and knows no offsets: load a fast tokenizer"
        )


def render(processor: Any, messages: Sequence[Message]) -> Rendered:
    """The conversation as text, with the assistant's words.

    Raises:
        FovealError: the template cannot render it, or the words cannot be told apart from the rest.
    """
    if _GENERATION.search(processor.chat_template):
        texts, spans = _call(processor, messages, return_assistant_tokens_mask=True)
        return _ended(texts[0], spans[0], processor.tokenizer.eos_token)
    text = render_text(processor, messages)
    found = _by_prefixes(processor, messages, text)
    return Rendered(text, _by_marks(processor, messages, text) if found is None else found)


def _ended(text: str, spans: Sequence[Span], end_of_turn: str | None) -> Rendered:
    """The same with every answer's end-of-turn token inside its span, so that a model learns to stop.

    LLaVA-OneVision's template writes it behind the mark. LLaVA-1.5's writes a space and no such token, where LLaVA was
    trained with one in place of the space.
    """
    if not end_of_turn:
        return Rendered(text, [(begin, end) for begin, end in spans])
    done, place, found = "", 0, []
    for begin, end in spans:
        words, rest = text[begin:end].rstrip(), text[end:].lstrip()
        done += text[place:begin]
        found.append((len(done), len(done) + len(words.removesuffix(end_of_turn)) + len(end_of_turn)))
        done += words.removesuffix(end_of_turn) + end_of_turn
        written = rest.startswith(end_of_turn) and not words.endswith(end_of_turn)
        place = text.index(end_of_turn, end) + len(end_of_turn) if written else end
    return Rendered(done + text[place:], found)


def _call(processor: Any, messages: Sequence[Message], **options: Any) -> Any:
    try:
        return render_jinja_template(
            conversations=[list(messages)],
            chat_template=processor.chat_template,
            **options | dict(processor.tokenizer.special_tokens_map),
        )
    except Exception as error:  # templates run what they like on what they get
        raise FovealError(f"the chat template cannot render it: {error}") from error


def render_text(processor: Any, messages: Sequence[Message], prompt: bool = False) -> str:
    """The conversation as text, without looking for answers.

    Raises:
        FovealError: the template cannot render it.
    """
    texts, _ = _call(processor, messages, add_generation_prompt=prompt)
    return str(texts[0])


def _answers(messages: Sequence[Message]) -> Iterator[int]:
    return (place for place, message in enumerate(messages) if message["role"] == "assistant")


def _by_prefixes(processor: Any, messages: Sequence[Message], text: str) -> list[Span] | None:
    """What each answer adds to the prompt in front of it; None where that does not hold throughout."""
    spans = []
    for place in _answers(messages):
        try:
            before, asked = (render_text(processor, messages[:place], prompt) for prompt in (False, True))
            after = render_text(processor, messages[: place + 1])
        except FovealError:
            return None
        if len(asked) <= len(before) or not (after.startswith(asked) and text.startswith(after)):
            return None
        spans.append((len(asked), len(after.rstrip())))
    return spans


def _by_marks(processor: Any, messages: Sequence[Message], text: str) -> list[Span]:
    """Where marks appear that stand for the answers, if the rest of the text is the same, letter by letter."""
    answers = [
        "".join(part.get("text", "") for part in messages[place]["content"]) for place in _answers(messages)
    ]
    rest = _between_marks(render_text(processor, _marked(messages)), len(answers))
    ending = _ending(processor, messages)
    spans: list[Span] = []
    place = len(rest[0]) if text.startswith(rest[0]) else -1
    for answer, behind in zip(answers, rest[1:], strict=True):
        forms = (answer, answer.strip(), answer.rstrip(), answer.lstrip())
        end = next((place + len(form) for form in forms if text.startswith(form + behind, place)), -1)
        if place < 0 or end < 0:
            raise _not_told_apart()
        spans.append((place, end + _common(behind, ending)))
        place = end + len(behind)
    if place != len(text):
        raise _not_told_apart()
    return spans


def _marked(messages: Sequence[Message]) -> list[Message]:
    """The conversation with a mark in the place of each answer."""
    mark = [{"type": "text", "text": "".join(_MARKS)}]
    return [
        message | {"content": mark} if message["role"] == "assistant" else message for message in messages
    ]


def _between_marks(text: str, count: int) -> list[str]:
    pieces = text.split("".join(_MARKS))
    if len(pieces) != count + 1:
        raise _not_told_apart()
    return pieces


def _ending(processor: Any, messages: Sequence[Message]) -> str:
    """What a template writes behind the last answer: the token that ends a turn, if there is one."""
    last = max(_answers(messages))
    return render_text(processor, _marked(messages[: last + 1])).rpartition("".join(_MARKS))[2].rstrip()


def _common(first: str, second: str) -> int:
    """How many characters both begin with."""
    return next(
        (at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]),
        min(len(first), len(second)),
    )


def _not_told_apart() -> FovealError:
    return FovealError(
        "the chat template rewrites earlier turns, so that the assistant's words cannot be told apart: put them "
        "between {% generation %} and {% endgeneration %} in the template"
    )
