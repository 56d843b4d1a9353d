"""Questions about a scene, in the formats of ten public benchmarks, with answers read off the scene itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from foveal.mini.atlas import CATEGORIES, CLASSES, COLORS
from foveal.mini.draw import Draw
from foveal.mini.scenes import CELLS, FREQUENCY, THEMES, Scene, SceneObject
from foveal.mini.vocabulary import HELD_OUT_WORDS, SIGN_WORDS

__all__ = [
    "CAPTIONS",
    "CELLS_CN",
    "POPE_SUBSETS",
    "TYPES",
    "UNANSWERABLE",
    "Question",
    "ask",
    "ask_all",
    "caption",
    "negatives",
]

POPE_SUBSETS = ("random", "popular", "adversarial")
UNANSWERABLE = "unanswerable"
_LETTERS = "ABCD"
CELLS_CN = ("左上", "中上", "右上", "左边", "正中", "右边", "左下", "中下", "右下")
_MME = " please answer yes or no."
_VIZWIZ = "if unsure say unanswerable. "


@dataclass(frozen=True)
class Question:
    """A question with all that is needed to score an answer to it.

    Attributes:
        id: unique name: scene, type, subset and the question's seed.
        question: the text after the picture.
        answer: the answer trained on.
        answers: the accepted answers; ten of them for the metric "vqa", as in VQAv2.
        metric: "exact", "vqa", "pope" (yes or no, with precision, recall and F1) or "choice" (an option's letter).
        type: one of `TYPES`.
        subset: a finer kind, for existence one of `POPE_SUBSETS`.
        benchmark: the benchmark whose format this is.
        choices: the options' texts, empty where there are none.
    """

    id: str
    question: str
    answer: str
    answers: tuple[str, ...]
    metric: str
    type: str
    subset: str
    benchmark: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Draft:
    """A question before it has a name."""

    question: str
    answer: str
    subset: str
    benchmark: str
    metric: str
    choices: tuple[str, ...] = ()


def _a(name: str) -> str:
    """The name with its indefinite article."""
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def negatives(scene: Scene, subset: str) -> list[int]:
    """The classes POPE would ask about in vain.

    Any absent one ("random"), the most frequent of them ("popular"), or those usually seen with what is there
    ("adversarial").
    """
    absent = scene.absent()
    if subset == "random":
        return absent
    by_frequency = sorted(absent, key=lambda kind: (-FREQUENCY[kind], kind))
    if subset == "popular":
        return by_frequency[:8]
    together = {item.kind: _theme_of(item.kind) for item in scene.objects}
    near = [kind for kind in by_frequency if _theme_of(kind) in together.values()]
    return near[:8] or by_frequency[:8]


def _theme_of(kind: int) -> int:
    return next(number for number, theme in enumerate(THEMES) if CLASSES[kind].name in theme)


def _existence(scene: Scene, draw: Draw, subset: str = "", positive: bool | None = None) -> _Draft:
    subset = subset or draw.one(POPE_SUBSETS)
    positive = draw.chance(0.5) if positive is None else positive
    kind = draw.one(scene.objects).kind if positive else draw.one(negatives(scene, subset))
    text = f"is there {_a(CLASSES[kind].name)} in the image?"
    return _Draft(text, "yes" if positive else "no", subset, "pope", "pope")


def _verify(scene: Scene, draw: Draw) -> _Draft | None:
    subset = draw.one(("existence", "count", "position", "color", "text"))
    truth = draw.chance(0.5)
    text = _CLAIMS[subset](scene, draw, truth)
    if text is None:
        return None
    return _Draft(text + _MME, "yes" if truth else "no", subset, "mme", "pope")


def _claim_existence(scene: Scene, draw: Draw, truth: bool) -> str:
    kind = draw.one(scene.objects).kind if truth else draw.one(scene.absent())
    return f"is there {_a(CLASSES[kind].name)} in this image?"


def _claim_count(scene: Scene, draw: Draw, truth: bool) -> str:
    kind = draw.one(scene.objects).kind
    count = scene.count(kind)
    claimed = count if truth else draw.one([number for number in (1, 2, 3) if number != count])
    return f"is the number of {CLASSES[kind].name} pictures {claimed}?"


def _claim_position(scene: Scene, draw: Draw, truth: bool) -> str:
    item = draw.one(scene.objects)
    others = [cell for cell in range(9) if (other := scene.at(cell)) is None or other.kind != item.kind]
    return f"is there {_a(item.name)} in the {CELLS[item.cell if truth else draw.one(others)]}?"


def _claim_color(scene: Scene, draw: Draw, truth: bool) -> str | None:
    items = [item for item in scene.singles() if item.disc]
    if not items:
        return None
    item = draw.one(items)
    color = item.disc if truth else draw.one([name for name in COLORS if name != item.disc])
    return f"is the disc behind the {item.name} {color}?"


def _claim_text(scene: Scene, draw: Draw, truth: bool) -> str | None:
    if scene.word is None:
        return None
    pool = SIGN_WORDS if scene.split == "train" else HELD_OUT_WORDS
    word = scene.word.text if truth else draw.one([word for word in pool if word != scene.word.text])
    return f'is the word "{word}" written in the image?'


_CLAIMS: dict[str, Callable[[Scene, Draw, bool], str | None]] = {
    "existence": _claim_existence,
    "count": _claim_count,
    "position": _claim_position,
    "color": _claim_color,
    "text": _claim_text,
}


def _count(scene: Scene, draw: Draw) -> _Draft:
    if draw.chance(0.3):
        category = draw.one(tuple(CATEGORIES))
        total = sum(CLASSES[item.kind].category == category for item in scene.objects)
        return _Draft(f"how many {category} pictures are there?", str(total), "category", "vqav2", "vqa")
    kind = (
        draw.one(scene.absent()) if draw.chance(0.15) else draw.one(sorted({i.kind for i in scene.objects}))
    )
    text = f"how many {CLASSES[kind].name} pictures are there?"
    return _Draft(text, str(scene.count(kind)), "object", "vqav2", "vqa")


def _relation(scene: Scene, draw: Draw) -> _Draft | None:
    axis = draw.one(("column", "row"))
    words = ("left", "right") if axis == "column" else ("above", "below")
    pairs = [
        (one, two)
        for one in scene.singles()
        for two in scene.singles()
        if getattr(one, axis) != getattr(two, axis)
    ]
    if not pairs:
        return None
    one, two = draw.one(pairs)
    holds = words[int(getattr(one, axis) > getattr(two, axis))]
    linked = {"left": "left of", "right": "right of"}
    if draw.chance(0.5):
        options = f"{words[0]} or {linked.get(words[1], words[1])}"
        return _Draft(f"is the {one.name} {options} the {two.name}?", holds, "choose", "gqa", "exact")
    asked = draw.one(words)
    text = f"is the {one.name} {linked.get(asked, asked)} the {two.name}?"
    return _Draft(text, "yes" if asked == holds else "no", "verify", "gqa", "exact")


def _position(scene: Scene, draw: Draw) -> _Draft | None:
    if draw.chance(0.5):
        item = draw.one(scene.objects)
        return _Draft(f"what is in the {CELLS[item.cell]}?", item.name, "what", "gqa", "exact")
    if not scene.singles():
        return None
    item = draw.one(scene.singles())
    return _Draft(f"where is the {item.name}?", CELLS[item.cell], "where", "gqa", "exact")


def _color(scene: Scene, draw: Draw) -> _Draft | None:
    items = [item for item in scene.objects if item.disc]
    if draw.chance(0.5):
        named = [item for item in scene.singles() if item.disc]
        if not named:
            return None
        item = draw.one(named)
        text = f"what color is the disc behind the {item.name}?"
        return _Draft(text, str(item.disc), "color", "vqav2", "vqa")
    discs = [item.disc for item in items]
    unique = [item for item in items if discs.count(item.disc) == 1]
    if not unique:
        return None
    item = draw.one(unique)
    return _Draft(f"what object is on the {item.disc} disc?", item.name, "object", "vqav2", "vqa")


def _read(scene: Scene, draw: Draw) -> _Draft | None:
    if scene.word is None:
        return None
    if draw.chance(0.5):
        return _Draft("what word is written in the image?", scene.word.text, "word", "ocrbench", "exact")
    return _Draft("what does the sign say?", scene.word.text, "sign", "textvqa", "vqa")


def _unanswerable(scene: Scene, draw: Draw) -> _Draft | None:
    """Half about something that is not there, half answerable, with the same instruction."""
    named = [item for item in scene.singles() if item.disc]
    absent = draw.chance(0.5)
    if not absent and not named:
        return None
    name = CLASSES[draw.one(scene.absent())].name if absent else draw.one(named).name
    item = None if absent else next(item for item in named if item.name == name)
    if draw.chance(0.6):
        text, answer = f"what color is the disc behind the {name}?", item and item.disc
    else:
        text, answer = f"where is the {name}?", item and CELLS[item.cell]
    subset = "unanswerable" if absent else "answerable"
    return _Draft(_VIZWIZ + text, answer or UNANSWERABLE, subset, "vizwiz", "vqa")


def _options(draw: Draw, right: str, wrong: Sequence[str]) -> tuple[tuple[str, ...], str]:
    texts = draw.several([right, *draw.several([text for text in wrong if text != right], 3)], 4)
    return tuple(texts), _LETTERS[texts.index(right)]


def _listed(texts: Sequence[str]) -> str:
    return " ".join(f"{letter}. {text}" for letter, text in zip(_LETTERS, texts, strict=False))


def _choice_english(scene: Scene, draw: Draw) -> _Draft | None:
    subset = draw.one(("what", "where", "color", "present"))
    found = _puzzle(scene, draw, subset)
    if found is None:
        return None
    item, wrong = found
    names = [CLASSES[kind].name for kind in wrong]
    text, right, others = {
        "what": (f"what is in the {CELLS[item.cell]}?", item.name, names),
        "where": (f"where is the {item.name}?", CELLS[item.cell], list(CELLS)),
        "color": (f"what color is the disc behind the {item.name}?", str(item.disc), list(COLORS)),
        "present": ("which of these is in the image?", item.name, names),
    }[subset]
    choices, letter = _options(draw, right, others)
    benchmark = "scienceqa" if subset in ("present", "color") else "mmbench_en"
    return _Draft(f"{text} {_listed(choices)}", letter, subset, benchmark, "choice", choices)


def _choice_chinese(scene: Scene, draw: Draw) -> _Draft | None:
    subset = draw.one(("what", "where", "color", "present"))
    found = _puzzle(scene, draw, subset)
    if found is None:
        return None
    item, wrong = found
    name, names = CLASSES[item.kind].chinese, [CLASSES[kind].chinese for kind in wrong]
    colors = {key: chinese for key, (_, chinese) in COLORS.items()}
    text, right, others = {
        "what": (f"{CELLS_CN[item.cell]}是什么？", name, names),
        "where": (f"{name}在哪里？", CELLS_CN[item.cell], list(CELLS_CN)),
        "color": (f"{name}后面是什么颜色？", colors.get(str(item.disc), ""), list(colors.values())),
        "present": ("图中有什么？", name, names),
    }[subset]
    choices, letter = _options(draw, right, others)
    return _Draft(f"{text} {_listed(choices)}", letter, subset, "mmbench_cn", "choice", choices)


def _puzzle(scene: Scene, draw: Draw, subset: str) -> tuple[SceneObject, list[int]] | None:
    """The object a multiple-choice question is about, and the classes of its wrong options."""
    items: Sequence[SceneObject] = scene.objects
    if subset in ("where", "color"):
        items = [item for item in scene.singles() if item.disc or subset == "where"]
    if not items:
        return None
    item = draw.one(items)
    present = sorted({other.kind for other in scene.objects if other.kind != item.kind})
    if subset == "what":
        return item, present + draw.several(scene.absent(), 3)
    return item, scene.absent()


_ASKERS: dict[str, Callable[[Scene, Draw], _Draft | None]] = {
    "existence": _existence,
    "verify": _verify,
    "count": _count,
    "relation": _relation,
    "position": _position,
    "color": _color,
    "read": _read,
    "choice_en": _choice_english,
    "choice_cn": _choice_chinese,
    "unanswerable": _unanswerable,
}

TYPES: tuple[str, ...] = tuple(_ASKERS)


def ask(
    scene: Scene, kind: str, seed: int = 0, subset: str = "", positive: bool | None = None
) -> Question | None:
    """Ask one question of type `kind`, or None if the scene allows none.

    Args:
        scene: what is asked about.
        kind: one of `TYPES`; KeyError otherwise.
        seed: which of the possible questions.
        subset: for existence, the POPE subset (drawn if empty).
        positive: for existence, whether the answer is yes (drawn if None).
    """
    draw = Draw(f"ask/{scene.id}/{kind}/{seed}")
    draft = _existence(scene, draw, subset, positive) if kind == "existence" else _ASKERS[kind](scene, draw)
    if draft is None:
        return None
    answers = (draft.answer,) * (10 if draft.metric == "vqa" else 1)
    name = f"{scene.id}-{kind}-{draft.subset}-{seed}"
    return Question(
        name,
        draft.question,
        draft.answer,
        answers,
        draft.metric,
        kind,
        draft.subset,
        draft.benchmark,
        draft.choices,
    )


def ask_all(scene: Scene, types: Sequence[str] = TYPES, per_type: int = 1) -> Iterator[Question]:
    """Every type in turn, `per_type` questions each where the scene allows them."""
    for kind in types:
        for seed in range(per_type):
            question = ask(scene, kind, seed)
            if question is not None:
                yield question


CAPTIONS: dict[str, str] = {
    "objects": "list the objects in every cell.",
    "discs": "list the disc colors in every cell.",
    "sentence": "describe the image.",
}


def caption(scene: Scene, kind: str) -> tuple[str, str]:
    """A request and its answer: what is in the nine cells in raster order, or the objects in a sentence.

    Used in training; too long an answer for a benchmark.
    """
    if kind == "objects":
        return CAPTIONS[kind], " ".join(_cell_word(scene, cell) for cell in range(9))
    if kind == "discs":
        found = [scene.at(cell) for cell in range(9)]
        return CAPTIONS[kind], " ".join((item and item.disc) or "none" for item in found)
    ordered = sorted(scene.objects, key=lambda item: item.cell)
    return CAPTIONS[kind], ", ".join(f"{_a(item.name)} in the {CELLS[item.cell]}" for item in ordered) + "."


def _cell_word(scene: Scene, cell: int) -> str:
    item = scene.at(cell)
    if item is not None:
        return item.name
    return "sign" if scene.word is not None and scene.word.cell == cell else "none"
