"""Questions about scenes as the rows of ten benchmarks.

MME's and OCRBench's categories are dealt out in turn, so that every one is there; most of their names say nothing about
what is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, cycle, islice
from typing import Any

from foveal.mini.draw import Draw
from foveal.mini.questions import UNANSWERABLE, Question, ask
from foveal.mini.scenes import Scene, make_scene
from foveal.suite.benchmarks import BENCHMARKS, ROTATION

__all__ = ["ROWS", "Row", "Source"]

_LETTERS = "ABCD"

Row = dict[str, Any]


@dataclass
class Source:
    """Scenes of a split from `start` on, and what can be asked about them."""

    split: str
    start: int

    def questions(self, *wanted: tuple[str, str]) -> Iterator[tuple[Scene, Question]]:
        """One question a scene, of each kind and subset in turn; a scene that allows none is passed over."""
        kinds = cycle(wanted)
        kind, subset = next(kinds)
        for scene in self.scenes():
            question = self.question(scene, kind, subset)
            if question is not None:
                yield scene, question
                kind, subset = next(kinds)

    def scenes(self) -> Iterator[Scene]:
        """The scenes, without end."""
        return (make_scene(self.split, self.start + number) for number in count())

    def question(self, scene: Scene, kind: str, subset: str, answer: str | None = None) -> Question | None:
        """A question of a kind and a subset, with a given answer if one is named; None if none is found."""
        for attempt in range(40):
            question = ask(scene, kind, attempt, subset if kind == "existence" else "")
            if question is not None and question.subset == subset and answer in (None, question.answer):
                return question
        return None


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _annotators(question: Question, key: str) -> list[str]:
    """Ten people's answers: now and then one to three of them err, each in the same way."""
    draw = Draw(f"annotators/{key}")
    wrong = draw.between(1, 3) if draw.chance(0.3) else 0
    other = "1" if question.answer.isdigit() and question.answer != "1" else "nothing"
    return draw.several([question.answer] * (10 - wrong) + [other] * wrong, 10)


def _vqav2(source: Source, size: int) -> dict[str, list[Row]]:
    kinds = (("count", "object"), ("color", "color"), ("count", "category"), ("color", "object"))
    rows: list[Row] = []
    for number, (scene, question) in enumerate(islice(source.questions(*kinds), size)):
        answers = _annotators(question, question.id)
        rows.append(
            {
                "question_type": " ".join(question.question.split()[:2]),
                "multiple_choice_answer": question.answer,
                "answers": [
                    {"answer": answer, "answer_confidence": "yes", "answer_id": person}
                    for person, answer in enumerate(answers, 1)
                ],
                "image_id": number,
                "answer_type": "number" if question.type == "count" else "other",
                "question_id": number * 1000,
                "question": _capital(question.question),
                "image": scene.render(),
            }
        )
    return {"": rows}


def _gqa(source: Source, size: int) -> dict[str, list[Row]]:
    """Two questions a picture, which is stored once, in a table of its own."""
    kinds = (("relation", "choose"), ("position", "what"), ("relation", "verify"), ("position", "where"))
    rows: list[Row] = []
    pictures: list[Row] = []
    for scene in source.scenes():
        asked = [question for kind in kinds if (question := source.question(scene, *kind)) is not None]
        if len(asked) < len(kinds):
            continue
        name = f"n{len(pictures)}"
        pictures.append({"id": name, "image": scene.render()})
        rows += [_gqa_row(question, f"{len(rows) + place:08d}", name) for place, question in enumerate(asked)]
        if len(rows) >= size:
            break
    benchmark = BENCHMARKS["gqa"]
    return {benchmark.config: rows[:size], benchmark.images: pictures}


def _gqa_row(question: Question, name: str, picture: str) -> Row:
    return {
        "id": name,
        "imageId": picture,
        "question": _capital(question.question),
        "answer": question.answer,
        "fullAnswer": question.answer,
        "isBalanced": True,
        "groups": {"global": question.type, "local": question.subset},
        "entailed": "",
        "equivalent": name,
        "types": {"structural": question.subset, "semantic": question.type, "detailed": question.subset},
        "semanticStr": "",
    }


def _vizwiz(source: Source, size: int) -> dict[str, list[Row]]:
    kinds = (("unanswerable", "unanswerable"), ("unanswerable", "answerable"))
    return {
        "": [
            {
                "question_id": f"VizWiz_val_{number:08d}",
                "image": scene.render(),
                "question": _capital(question.question.partition(f"say {UNANSWERABLE}. ")[2]),
                "answers": _annotators(question, question.id),
                "category": UNANSWERABLE if question.subset == UNANSWERABLE else "other",
            }
            for number, (scene, question) in enumerate(islice(source.questions(*kinds), size))
        ]
    }


def _stem(question: Question) -> str:
    """A multiple-choice question without its options."""
    return _capital(question.question.partition(" A. ")[0])


def _sqa_img(source: Source, size: int) -> dict[str, list[Row]]:
    kinds = (("choice_en", "present"), ("choice_en", "color"))
    return {
        "": [
            {
                "image": scene.render(),
                "question": _stem(question),
                "choices": list(question.choices),
                "answer": _LETTERS.index(question.answer),
                "hint": "",
                "task": "closed choice",
                "grade": "grade1",
                "subject": "natural science",
                "topic": "scenes",
                "category": question.subset,
                "skill": "",
                "lecture": "",
                "solution": "",
            }
            for scene, question in islice(source.questions(*kinds), size)
        ]
    }


def _textvqa(source: Source, size: int) -> dict[str, list[Row]]:
    return {
        "": [
            {
                "image_id": f"{number:016x}",
                "question_id": number,
                "question": _capital(question.question),
                "question_tokens": question.question.rstrip("?").split(),
                "image": scene.render(),
                "image_width": 96,
                "image_height": 96,
                "flickr_original_url": "",
                "flickr_300k_url": "",
                "answers": _annotators(question, question.id),
                "image_classes": [item.name for item in scene.objects],
                "set_name": "val",
                "ocr_tokens": [word.text.upper() for word in scene.words],
            }
            for number, (scene, question) in enumerate(islice(source.questions(("read", "sign")), size))
        ]
    }


def _pope(source: Source, size: int) -> dict[str, list[Row]]:
    """The file's order: subset by subset, and yes and no in turn."""
    rows: list[Row] = []
    scenes = source.scenes()
    for place, subset in enumerate(("adversarial", "popular", "random")):
        for number in range((size + 2 - place) // 3):
            scene = next(scenes)
            question = ask(scene, "existence", 0, subset, positive=number % 2 == 0)
            assert question is not None
            rows.append(
                {
                    "id": str(len(rows)),
                    "question_id": str(number + 1),
                    "question": _capital(question.question),
                    "answer": question.answer,
                    "image_source": f"scene_{scene.index}",
                    "image": scene.render(),
                    "category": subset,
                }
            )
    return {"": rows}


_MME = {
    "code_reasoning": ("relation", "verify"),
    "artwork": ("verify", "color"),
    "celebrity": ("verify", "position"),
    "numerical_calculation": ("verify", "count"),
    "text_translation": ("verify", "position"),
    "count": ("verify", "count"),
    "color": ("verify", "color"),
    "commonsense_reasoning": ("relation", "verify"),
    "position": ("verify", "position"),
    "OCR": ("verify", "text"),
    "landmark": ("verify", "existence"),
    "scene": ("verify", "existence"),
    "existence": ("verify", "existence"),
    "posters": ("verify", "existence"),
}


def _mme(source: Source, size: int) -> dict[str, list[Row]]:
    """Two questions a picture, one to be answered with yes and one with no, category by category."""
    rows: list[Row] = []
    scenes = source.scenes()
    pairs = max(size // 2, len(_MME))
    for place, (category, kind) in enumerate(_MME.items()):
        for number in range((pairs + len(_MME) - 1 - place) // len(_MME)):
            scene, yes, no = next(
                (scene, yes, no)
                for scene in scenes
                if (yes := source.question(scene, *kind, "yes"))
                and (no := source.question(scene, *kind, "no"))
            )
            picture = scene.render()
            rows += [
                {
                    "question_id": f"{category}/{number:04d}.png",
                    "image": picture,
                    "question": _capital(question.question.partition(" please")[0])
                    + " Please answer yes or no.",
                    "answer": _capital(question.answer),
                    "category": category,
                }
                for question in (yes, no)
            ]
    return {"": rows}


_MMBENCH = {
    "what": ("object_localization", "finegrained_perception (instance-level)"),
    "where": ("spatial_relationship", "finegrained_perception (cross-instance)"),
    "color": ("attribute_recognition", "finegrained_perception (instance-level)"),
    "present": ("image_scene", "coarse_perception"),
}


def _mmbench(kind: str, subsets: tuple[str, ...]) -> Callable[[Source, int], dict[str, list[Row]]]:
    def rows(source: Source, size: int) -> dict[str, list[Row]]:
        """Each question four times, its options rotated; the copies lie behind all originals, as in the file."""
        copies: list[list[Row]] = [[], [], [], []]
        asked = source.questions(*((kind, subset) for subset in subsets))
        for index, (scene, question) in enumerate(islice(asked, max(1, size // 4))):
            for turn in range(4):
                texts = question.choices[turn:] + question.choices[:turn]
                right = question.choices[_LETTERS.index(question.answer)]
                copies[turn].append(
                    {
                        "index": index + turn * ROTATION,
                        "question": _stem(question),
                        "hint": None,
                        "answer": _LETTERS[texts.index(right)],
                        **dict(zip(_LETTERS, texts, strict=True)),
                        "category": _MMBENCH[question.subset][0],
                        "image": scene.render(),
                        "source": "scenes",
                        "L2-category": _MMBENCH[question.subset][1],
                        "comment": None,
                        "split": "dev",
                    }
                )
        return {"": [row for turn in copies for row in turn]}

    return rows


_OCRBENCH = {
    "Regular Text Recognition": "IIIT5K",
    "Irregular Text Recognition": "SVTP",
    "Artistic Text Recognition": "WordArt",
    "Handwriting Recognition": "IAM",
    "Digit String Recognition": "ORAND",
    "Non-Semantic Text Recognition": "NonSemanticText",
    "Scene Text-centric VQA": "TextVQA",
    "Doc-oriented VQA": "docVQA",
    "Key Information Extraction": "FUNSD",
    "Handwritten Mathematical Expression Recognition": "HME100k",
}


def _ocrbench(source: Source, size: int) -> dict[str, list[Row]]:
    kinds = cycle(_OCRBENCH.items())
    return {
        "": [
            {
                "dataset": origin,
                "question": question.question,
                "question_type": kind,
                "answer": [question.answer],
                "image": scene.render(),
            }
            for (kind, origin), (scene, question) in zip(
                kinds, islice(source.questions(("read", "word")), size), strict=False
            )
        ]
    }


ROWS: dict[str, Callable[[Source, int], dict[str, list[Row]]]] = {
    "vqav2": _vqav2,
    "gqa": _gqa,
    "vizwiz": _vizwiz,
    "sqa_img": _sqa_img,
    "textvqa": _textvqa,
    "pope": _pope,
    "mme": _mme,
    "mmbench": _mmbench("choice_en", ("what", "where")),
    "mmbench_cn": _mmbench("choice_cn", ("what", "where", "color", "present")),
    "ocrbench": _ocrbench,
}
