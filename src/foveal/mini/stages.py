"""What the model is taught, in what order.

1. ``tower``: what each patch shows. The tower learns to see.
2. ``captions``: the nine cells as a list. The decoder learns to read the visual tokens by place.
3. ``lists``: many short questions. It learns to find an object by the colour of its disc, but not yet by its name.
4. ``items``: name and answer side by side, with hints. It learns to look things up by name.
5. ``mixture``: every format, with easy-VQA and pages of words.
6. ``finish``: the same with more of easy-VQA, whose shapes the tower is shown too, the learning rate going to zero.
7. ``clip``: the text tower, against the finished vision tower (see `contrastive`).

To answer "where is the fox?" the answering token must find the name, and the name must find its patches. Each step
is useless without the other, and from questions alone the model stayed at chance (``lists``: 400 steps without
progress). Two hints break the deadlock: in ``items`` the answer follows the name at once, so that one step is enough;
and a loss on the attention of a few heads (see `hints`) shows them where to look. With both, existence rises from
chance to 85 % within 400 steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image

from foveal.mini.atlas import CLASSES
from foveal.mini.draw import Draw
from foveal.mini.easy_vqa import EasyImage, easy_vqa
from foveal.mini.packing import Codec, Segment
from foveal.mini.questions import CAPTIONS, ask, caption
from foveal.mini.scenes import CELLS, Scene, make_page, make_scene

__all__ = ["STAGES", "Lesson", "Stage", "lesson"]

Turn = tuple[str, str]

_SHORT = " answer the question using a single word or phrase."
_LETTER = " answer with the option letter from the given choices directly."
_DIALOGUE_SHARE = 0.2
_INSTRUCTION_SHARE = 0.1
_ORDINALS = ("first", "second", "next", "last")
_WEIGHTS = {
    "existence": 3,
    "verify": 3,
    "count": 3,
    "relation": 3,
    "position": 3,
    "color": 2,
    "read": 2,
    "choice_en": 2,
    "choice_cn": 2,
    "unanswerable": 1,
}


@dataclass(frozen=True)
class Stage:
    """How long and how fast a stage learns.

    Attributes:
        name: what it is called on the command line.
        steps: optimiser steps.
        batch: images a step, over all processes.
        length: tokens in a packed sequence; 0 where the decoder takes no part.
        rate: peak learning rate.
        floor: the learning rate at the end, as a fraction of the peak.
        tower: the tower's learning rate as a fraction of the rest's.
        auxiliary: weight of the loss on what each patch shows.
        guided: weight of the hints (see `hints`) at the peak; they fade as the learning rate falls.
        pages: share of pictures that are pages of words.
        easy: share of pictures that are easy-VQA's.
        items: share of scenes asked about with name and answer side by side.
    """

    name: str
    steps: int
    batch: int
    length: int
    rate: float
    floor: float
    tower: float
    auxiliary: float
    guided: float = 0.0
    pages: float = 0.0
    items: float = 0.0
    easy: float = 0.0

    def rate_at(self, step: int, warm_up: int = 100) -> float:
        """Learning rate at a step: linear warm-up, then a cosine down to the floor."""
        if step < warm_up:
            return self.rate * (step + 1) / warm_up
        progress = (step - warm_up) / max(self.steps - warm_up, 1)
        return self.rate * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("tower", 700, 64, 0, 1.5e-3, 0.3, 1.0, 1.0),
        Stage("captions", 500, 32, 256, 1.5e-3, 0.4, 0.3, 0.2),
        Stage("lists", 400, 32, 384, 1.5e-3, 0.5, 0.3, 0.2),
        Stage("items", 300, 32, 400, 1.5e-3, 0.5, 0.5, 0.4, guided=0.5, items=1.0),
        Stage("mixture", 1600, 32, 384, 1.5e-3, 0.2, 0.4, 0.2, guided=0.2, pages=0.1, items=0.4, easy=0.2),
        Stage("finish", 600, 32, 384, 8e-4, 0.0, 0.8, 0.2, guided=0.2, pages=0.08, items=0.15, easy=0.3),
        Stage("clip", 400, 64, 0, 1.5e-3, 0.0, 1.0, 1.0),
    )
}


@dataclass(frozen=True)
class Lesson:
    """One image, the scene it shows (None for easy-VQA), the segments asked about it, and easy-VQA's shape."""

    image: Image.Image
    scene: Scene | None
    segments: list[Segment]
    shape: str | None = None


def lesson(stage: Stage, codec: Codec, seed: int, index: int) -> Lesson:
    """Sample `index` of a stage, fixed by (seed, stage, index)."""
    draw = Draw(f"lesson/{seed}/{stage.name}/{index}")
    if draw.chance(stage.easy):
        return _easy_lesson(codec, draw)
    number = seed * 2**34 + list(STAGES).index(stage.name) * 2**30 + index
    if stage.pages and draw.chance(stage.pages):
        return _page_lesson(codec, number, draw)
    scene = make_scene("train", number, _crowd(stage, draw), 0.6)
    turns = list(_CURRICULUM[stage.name](scene, draw))
    segments = (
        _items(scene, codec, draw, 3 if stage.name == "items" else 1) if draw.chance(stage.items) else []
    )
    if stage.guided and scene.word is not None:
        turns = [turn for turn in turns if turn[1] != scene.word.text]
        asked = [codec.segment([turn], scene.word.patches) for turn in _asked(scene, "read", draw, 2)]
        segments += asked
    segments += _segments(codec, turns, draw, stage.name in ("mixture", "finish"))
    return Lesson(scene.render(), scene, segments)


def _crowd(stage: Stage, draw: Draw) -> tuple[int, int]:
    return (1, 3) if stage.name in ("captions", "lists") and draw.chance(0.4) else (3, 6)


def _easy_lesson(codec: Codec, draw: Draw) -> Lesson:
    item: EasyImage = draw.one(easy_vqa("train"))
    turns = [*draw.several(item.turns, len(item.turns)), *draw.several(item.turns, len(item.turns))]
    return Lesson(item.render(), None, _segments(codec, turns, draw, True), item.shape)


def _page_lesson(codec: Codec, number: int, draw: Draw) -> Lesson:
    page = make_page(number)
    turns = [(f"what word is in the {CELLS[word.cell]}?", word.text) for word in page.words]
    segments = [codec.segment([turn], word.patches) for turn, word in zip(turns, page.words, strict=True)]
    return Lesson(page.render(), page, draw.several(segments, len(segments)))


def _segments(codec: Codec, turns: list[Turn], draw: Draw, dialogues: bool) -> list[Segment]:
    """Mostly one question a segment; in the last stage some conversations of two or three turns."""
    segments = []
    while turns:
        size = draw.between(2, 3) if dialogues and draw.chance(_DIALOGUE_SHARE / 2) else 1
        segments.append(codec.segment(turns[:size]))
        turns = turns[size:]
    return segments


def _captions(scene: Scene, draw: Draw) -> Iterator[Turn]:
    for kind in CAPTIONS:
        yield caption(scene, kind)
    yield from _asked(scene, "read", draw, 1)
    yield from _asked(scene, "position", draw, 4)


def _lists(scene: Scene, draw: Draw) -> Iterator[Turn]:
    present = sorted({item.kind for item in scene.objects})
    kinds = present * 2 + draw.several(scene.absent(), 2 * len(present))
    for kind in draw.several(kinds, len(kinds)):
        yield f"{CLASSES[kind].name}?", "yes" if kind in present else "no"
    turns = [
        caption(scene, "objects"),
        *_asked(scene, "position", draw, 10),
        *_asked(scene, "existence", draw, 8),
    ]
    turns += [*_asked(scene, "read", draw, 1), *_asked(scene, "color", draw, 3)]
    yield from draw.several(turns, len(turns))


def _items(scene: Scene, codec: Codec, draw: Draw, repeats: int) -> list[Segment]:
    """Name and answer side by side, so that the name's own token must look it up in the picture."""
    present = sorted({item.kind for item in scene.objects})
    pairs = [(CLASSES[kind].name, "yes") for kind in present * repeats]
    pairs += [(CLASSES[kind].name, "no") for kind in draw.several(scene.absent(), len(pairs))]
    pairs += [(f"count {CLASSES[kind].name}", str(scene.count(kind))) for kind in present]
    for item in scene.singles():
        pairs.append((f"where {item.name}", CELLS[item.cell]))
        pairs.append((f"column {item.name}", CELLS[item.cell].split()[1]))
        pairs.append((f"color {item.name}", item.disc or "none"))
    discs = [item.disc for item in scene.objects]
    pairs += [
        (f"on {item.disc}", item.name) for item in scene.objects if item.disc and discs.count(item.disc) == 1
    ]
    segments = [codec.item(cue, codec.encode(told)) for cue, told in pairs]
    if scene.word is not None:
        letters = codec.encode(scene.word.text)
        segments += [
            codec.item(f"{place} letter", [letter]) for place, letter in zip(_ORDINALS, letters, strict=False)
        ]
    return segments


def _beside_items(scene: Scene, draw: Draw) -> Iterator[Turn]:
    turns = [turn for kind in ("position", "existence") for turn in _asked(scene, kind, draw, 6)]
    turns += [*_asked(scene, "color", draw, 2), *_asked(scene, "read", draw, 2)]
    yield from draw.several(turns, len(turns))


def _mixture(scene: Scene, draw: Draw) -> Iterator[Turn]:
    turns = {turn for kind, weight in _WEIGHTS.items() for turn in _asked(scene, kind, draw, weight)}
    if draw.chance(0.2):
        turns.add(caption(scene, draw.one(tuple(CAPTIONS))))
    for question, answer in draw.several(sorted(turns), len(turns)):
        yield _instructed(question, answer, draw), answer


def _instructed(question: str, answer: str, draw: Draw) -> str:
    """Now and then the question with the instruction that the benchmarks' prompts end in."""
    if not draw.chance(_INSTRUCTION_SHARE):
        return question
    return question + (_LETTER if answer in "ABCD" else _SHORT)


def _asked(scene: Scene, kind: str, draw: Draw, times: int) -> Iterator[Turn]:
    for _ in range(times):
        question = ask(scene, kind, draw.below(1 << 30))
        if question is not None:
            yield question.question, question.answer


_CURRICULUM: dict[str, Callable[[Scene, Draw], Iterator[Turn]]] = {
    "tower": lambda scene, draw: iter(()),
    "captions": _captions,
    "lists": _lists,
    "items": _beside_items,
    "mixture": _mixture,
    "finish": _mixture,
}
