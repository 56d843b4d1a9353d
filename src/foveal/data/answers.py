"""Which tokens are the assistant's, once the processor has put an image's tokens in the place of each placeholder.

The text is tokenized with its placeholders, and cut there. The pieces must be found again in the processor's ids: the
first at the beginning, the last at the end, those between in order; what lies between them is the processor's own. Next
to an image the tokens may differ (a line break of the text may merge with one that the processor adds), but not those
of an answer. Every answer found is exact; where there are two ways to find one, that is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, takewhile
from typing import Any

from foveal.data.templates import Rendered
from foveal.errors import FovealError

__all__ = ["Tokens", "answer_mask", "special_tokens", "tokenize"]


@dataclass(frozen=True)
class Tokens:
    """A text's tokens, before images are put in.

    Attributes:
        ids: the tokens, or a piece of them.
        answers: for each, whether it is the assistant's.
    """

    ids: list[int]
    answers: list[bool]

    def __getitem__(self, part: slice) -> Tokens:
        return Tokens(self.ids[part], self.answers[part])


def special_tokens(processor: Any, text: str) -> dict[str, bool]:
    """Options of the tokenizer: templates that write the first special token themselves must not get it twice."""
    first = processor.tokenizer.bos_token
    return {"add_special_tokens": False} if first and text.startswith(first) else {}


def tokenize(processor: Any, rendered: Rendered) -> Tokens:
    """The conversation's tokens with its placeholders; a token is the assistant's if one of its characters is."""
    marks = bytearray(len(rendered.text))
    for begin, end in rendered.spans:
        marks[begin:end] = b"\1" * (end - begin)
    options = special_tokens(processor, rendered.text)
    found = processor.tokenizer(rendered.text, return_offsets_mapping=True, **options)
    answers = [marks.find(1, begin, end) >= 0 for begin, end in found["offset_mapping"]]
    return Tokens(list(found["input_ids"]), answers)


def answer_mask(processor: Any, tokens: Tokens, expanded: Sequence[int]) -> list[bool]:
    """For each of the processor's ids, without padding, whether it is the assistant's.

    Args:
        processor: the processor.
        tokens: of the same conversation, with its placeholders.
        expanded: the processor's ids.

    Raises:
        FovealError: an answer cannot be found, or not in one way only.
    """
    ids = list(expanded)
    placeholder = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    pieces = _split(tokens, placeholder)
    if len(pieces) == 1:
        if tokens.ids != ids:
            raise _not_found(processor)
        return tokens.answers
    begin = _common(pieces[0].ids, ids)
    end = len(ids) - _common(pieces[-1].ids[::-1], ids[::-1])
    if any(pieces[0].answers[begin:]) or any(pieces[-1].answers[: len(pieces[-1].ids) - (len(ids) - end)]):
        raise _not_found(processor)
    mask = [False] * len(ids)
    mask[:begin] = pieces[0].answers[:begin]
    mask[end:] = pieces[-1].answers[len(pieces[-1].ids) - (len(ids) - end) :]
    between = [piece for piece in pieces[1:-1] if any(piece.answers)]
    for piece, place in _places(processor, between, ids[begin:end]):
        mask[begin + place : begin + place + len(piece.ids)] = piece.answers
    return mask


def _split(tokens: Tokens, placeholder: int) -> list[Tokens]:
    cuts = [-1, *(place for place, token in enumerate(tokens.ids) if token == placeholder), len(tokens.ids)]
    return [tokens[first + 1 : last] for first, last in pairwise(cuts)]


def _common(first: list[int], second: list[int]) -> int:
    """How many tokens both begin with."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))))


def _places(processor: Any, pieces: list[Tokens], ids: list[int]) -> list[tuple[Tokens, int]]:
    """Where the pieces are, in order: whole, or as far as special tokens keep apart what is around them."""
    for cut in (_whole, partial(_core, processor)):
        wanted = [cut(piece) for piece in pieces]
        first = _in_order([piece.ids for piece in wanted], ids)
        if first is not None:
            last = _in_order([piece.ids[::-1] for piece in wanted[::-1]], ids[::-1]) or []
            ends = [len(ids) - place for place in last[::-1]]
            if ends != [place + len(piece.ids) for piece, place in zip(wanted, first, strict=True)]:
                raise FovealError(
                    f"{type(processor).__name__} puts tokens around images between which an answer is found at several "
                    "places: put all images into the first turn"
                )
            return list(zip(wanted, first, strict=True))
    raise _not_found(processor)


def _whole(piece: Tokens) -> Tokens:
    return piece


def _core(processor: Any, piece: Tokens) -> Tokens:
    """From the first added token to the last: a tokenizer cuts there, whatever comes before and after.

    Raises:
        FovealError: an answer goes beyond.
    """
    added = processor.tokenizer.added_tokens_decoder
    cuts = [place for place, token in enumerate(piece.ids) if token in added]
    begin, end = (cuts[0], cuts[-1] + 1) if cuts else (0, 0)
    if any(piece.answers[:begin]) or any(piece.answers[end:]):
        raise _not_found(processor)
    return piece[begin:end]


def _in_order(needles: list[list[int]], ids: list[int]) -> list[int] | None:
    """The first place of each needle behind the one before it, None if there is none."""
    places, begin = [], 0
    for needle in needles:
        place = next((at for at in range(begin, len(ids)) if ids[at : at + len(needle)] == needle), None)
        if place is None:
            return None
        places.append(place)
        begin = place + len(needle)
    return places


def _not_found(processor: Any) -> FovealError:
    return FovealError(
        f"{type(processor).__name__} changes the text beside images, so that the assistant's tokens cannot be found: "
        "keep images and answers in separate turns"
    )
