"""The rules by which the field scores, as lmms-eval has them, so that the same answers get the same numbers.

Each rule takes an answer of the model, the accepted answers and the options, and gives 0 or 1 (a share for VQA).
Quirks are part of a rule; where the official one differs, it is in `foveal.evaluation.metrics`.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "COGNITION",
    "PERCEPTION",
    "MmeScores",
    "exact_yes_no_scores",
    "gqa_score",
    "mmbench_accuracy",
    "mmbench_letter",
    "mmbench_score",
    "mme_answer",
    "mme_score",
    "mme_scores",
    "ocrbench_math_score",
    "ocrbench_score",
    "pope_exact_score",
    "seed_score",
    "sqa_score",
]

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def gqa_score(prediction: str, answers: Sequence[str]) -> float:
    """GQA: equal but for case and ASCII punctuation; nothing else is forgiven, spaces and articles included."""
    said = prediction.strip().lower().translate(_WITHOUT_PUNCTUATION)
    return float(said in {answer.lower().translate(_WITHOUT_PUNCTUATION) for answer in answers})


def sqa_score(prediction: str, answers: Sequence[str]) -> float:
    """ScienceQA as LLaVA parses it: the letter alone in any case, or a capital and a full stop in front."""
    said = prediction.strip()
    wanted = {answer.strip().lower() for answer in answers}
    if said.lower() in wanted:
        return 1.0
    return float(said[:1].isupper() and said[1:2] == "." and said[0].lower() in wanted)


def seed_score(prediction: str, answers: Sequence[str]) -> float:
    """SEED-Bench: the first character of the answer is the letter, in any case."""
    return float(prediction.strip()[:1].lower() in {answer.strip().lower() for answer in answers})


def pope_exact_score(prediction: str, answers: Sequence[str]) -> float:
    """POPE in lmms-eval: the answer is "yes" or "no" in any case and nothing else, not even a full stop.

    POPE's own rule is `foveal.evaluation.pope_score`.
    """
    return float(prediction.strip().lower() in {answer.strip().lower() for answer in answers})


def exact_yes_no_scores(
    predictions: Sequence[str], answers: Sequence[str]
) -> tuple[float, float, float, float]:
    """POPE in lmms-eval, over all questions: accuracy, precision, recall and F1, as fractions.

    An answer that is neither yes nor no is wrong, but recall leaves it out.
    """
    said = [prediction.strip().lower() for prediction in predictions]
    true = [answer.strip().lower() for answer in answers]
    pairs = list(zip(said, true, strict=True))
    hits, false, missed = (pairs.count(pair) for pair in (("yes", "yes"), ("yes", "no"), ("no", "yes")))
    precision, recall = _share(hits, hits + false), _share(hits, hits + missed)
    accuracy = _share(sum(one == other for one, other in pairs), len(pairs))
    return accuracy, precision, recall, _share(2 * precision * recall, precision + recall)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def mme_answer(prediction: str) -> str:
    """Read "yes", "no" or "other" from an answer as MME does: one letter, or what its first four characters hold."""
    said = prediction.lower().strip().replace(".", "")
    if len(said) == 1:
        return {"y": "yes", "n": "no"}.get(said, "other")
    return next((answer for answer in ("yes", "no") if answer in said[:4]), "other")


def mme_score(prediction: str, answers: Sequence[str]) -> float:
    """MME: 1 if `mme_answer` is one of the answers, else 0."""
    return float(mme_answer(prediction) in {answer.lower().strip().replace(".", "") for answer in answers})


@dataclass(frozen=True)
class MmeScores:
    """MME's scores: at most 200 a category, 2,000 for perception, 800 for cognition.

    Attributes:
        perception: the sum over the categories of perception.
        cognition: the sum over those of cognition.
        by_category: the score of each category.
    """

    perception: float
    cognition: float
    by_category: dict[str, float]

    @property
    def total(self) -> float:
        """Both together, at most 2,800: what EPIC's tables hold."""
        return self.perception + self.cognition


def mme_scores(
    predictions: Sequence[str], answers: Sequence[str], categories: Sequence[str], pictures: Sequence[str]
) -> MmeScores:
    """MME over all questions: of each category, the share of right answers and that of pictures with both right.

    Args:
        predictions: what the model said.
        answers: "Yes" or "No".
        categories: the category of each question; unknown ones count as cognition.
        pictures: the picture each is about; there are two questions about each.
    """
    pairs: dict[str, dict[str, list[float]]] = {}
    for said, true, category, picture in zip(predictions, answers, categories, pictures, strict=True):
        pairs.setdefault(category, {}).setdefault(picture, []).append(mme_score(said, [true]))
    by_category = {category: _mme_category(list(scores.values())) for category, scores in pairs.items()}
    return MmeScores(
        perception=sum(score for name, score in by_category.items() if name in PERCEPTION),
        cognition=sum(score for name, score in by_category.items() if name not in PERCEPTION),
        by_category=by_category,
    )


def _mme_category(pairs: Sequence[Sequence[float]]) -> float:
    return sum(100.0 * (sum(pair) == len(pair)) + sum(pair) / len(pair) * 100.0 for pair in pairs) / len(
        pairs
    )


def ocrbench_score(prediction: str, answers: Sequence[str]) -> float:
    """OCRBench: an answer is contained in what was said, but for case, line breaks and full-width ASCII."""
    said = _folded(prediction)
    return float(any(_folded(answer) in said for answer in answers))


def ocrbench_math_score(prediction: str, answers: Sequence[str]) -> float:
    """OCRBench's formulas (HME100k): contained but for spaces; case counts."""
    said = _spaceless(prediction)
    return float(any(_spaceless(answer) in said for answer in answers))


def _folded(text: str) -> str:
    return text.strip().translate(_HALF_WIDTH).lower().strip().replace("\n", " ")


def _spaceless(text: str) -> str:
    return text.strip().replace("\n", "").replace(" ", "")


_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def mmbench_score(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """MMBench, one rotation of a question: 1 if `mmbench_letter` is one of the answers, else 0."""
    return float(mmbench_letter(prediction, choices) in answers)


def mmbench_accuracy(
    predictions: Sequence[str],
    answers: Sequence[str],
    choices: Sequence[Sequence[str]],
    questions: Sequence[int],
) -> float:
    """MMBench's circular evaluation: the share of questions of which every rotation was answered right.

    Args:
        predictions: what the model said.
        answers: the right letters.
        choices: the options of each.
        questions: which rows are rotations of one question.
    """
    right: dict[int, bool] = {}
    for said, true, options, question in zip(predictions, answers, choices, questions, strict=True):
        right[question] = right.get(question, True) and mmbench_score(said, [true], options) == 1
    return _share(sum(right.values()), len(right))


def mmbench_letter(prediction: str, choices: Sequence[str] = ()) -> str:
    """The option that an answer chooses by MMBench's static rules, or "" where it chooses none.

    First a letter that stands alone, or in brackets or before a mark; then the one option whose text is contained;
    then the likeliest place for a letter, from "at the start" down to "anywhere".

    Args:
        prediction: the answer, in English or Chinese.
        choices: the texts of the options A to D, in order.
    """
    said = prediction.strip()
    options = dict(zip("ABCD", choices, strict=False))
    return (
        _letter_alone(said) or _option_contained(said, options) or _likeliest_letter(said, "".join(options))
    )


_SETTINGS = (
    "{}",
    "{}.",
    "{},",
    "{}:",
    "{})",
    "{}).",
    "({})",
    "({}).",
    ":{}",
    ":{},",
    ":{}.",
    ":{})",
    ":{}).",
)


def _letter_alone(said: str) -> str:
    """The letter A to E that a word consists of, but for marks around it, where there is one only."""
    words = said.split()
    if "Failed to obtain answer via API" in said:
        return ""
    for setting in _SETTINGS:
        found = [letter for letter in "ABCDE" if setting.format(letter) in words]
        article = setting == "{}" and found == ["A"] and len(words) > 3
        if len(found) == 1 and not article:
            return found[0]
    return ""


def _option_contained(said: str, options: dict[str, str]) -> str:
    found = [letter for letter, text in options.items() if text.lower() in said.lower()]
    return found[0] if len(found) == 1 else ""


_NOUNS = (
    "answer",
    "correct answer",
    "best answer",
    "correct option",
    "best option",
    "choice",
    "correct choice",
)
_PHRASES = (
    *(f"{article}{noun} is" for noun in _NOUNS for article in ("", "the ")),
    *("my answer is", "my choice is", "i choose", "i select", "i pick"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def _likeliest_letter(said: str, letters: str) -> str:
    """The letter in the likeliest place; of several in such places, the one that comes last."""
    core = said
    for mark in ",.!?;:'\"":
        core = core.strip(mark)
    text, core = f" {core} ", core.strip()
    letters = letters or "ABCDEFGH"
    found: list[tuple[int, int, str]] = []
    for rank, setting in ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} ")):
        found += [(rank, text.rfind(setting.format(letter)), letter) for letter in letters]
    for phrase in _PHRASES:
        if (start := text.lower().find(phrase)) >= 0:
            found += [(7, text.find(letter, start + len(phrase)), letter) for letter in letters]
    if core[:1] in letters and not core[1:2].isalpha():
        found.append((10, 0, core[:1]))
    if core[-1:] in letters and not core[-2:-1].isalpha():
        found.append((9, len(text) - 1, core[-1:]))
    placed = [place for place in found if place[1] >= 0 and place[2]]
    placed = placed or [(0, text.rfind(letter), letter) for letter in letters if letter in text]
    return max(placed, key=lambda place: place[:2])[2] if placed else ""
