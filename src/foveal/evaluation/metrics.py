"""What an answer is worth: pure functions from strings to scores, no model in sight."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from foveal.evaluation.benchmark_rules import (
    gqa_score,
    mmbench_score,
    mme_score,
    ocrbench_math_score,
    ocrbench_score,
    pope_exact_score,
    seed_score,
    sqa_score,
)
from foveal.evaluation.normalize import normalize, normalize_vqa, normalize_vqav2

__all__ = [
    "METRICS",
    "PopeScores",
    "choice_letter",
    "choice_score",
    "exact_match",
    "pope_score",
    "pope_scores",
    "pope_subset_f1",
    "vqa_accuracy",
    "yes_no",
]

# A prediction, the accepted answers, and the choices of a multiple-choice question, to a score in [0, 1].
Metric = Callable[[str, Sequence[str], Sequence[str]], float]


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction equals one of the answers after `normalize`, else 0."""
    return float(normalize(prediction) in {normalize(answer) for answer in answers})


def vqa_accuracy(
    prediction: str, answers: Sequence[str], normalized: Callable[[str], str] = normalize_vqa
) -> float:
    """VQA accuracy: the mean, over leaving each annotator out, of `min(1, agreeing others / 3)`.

    With fewer than four answers nobody could reach three others, so all of the others must agree; a single answer is
    matched as it stands. Ten answers give the official score.

    Args:
        prediction: what the model said.
        answers: one of each annotator.
        normalized: how both are normalised first: `normalize_vqa` for TextVQA and VizWiz, `normalize_vqav2` for VQAv2.
    """
    predicted = normalized(prediction)
    matches = [normalized(answer) == predicted for answer in answers]
    if len(matches) < 2:
        return float(any(matches))
    needed = min(3, len(matches) - 1)
    agreeing = sum(matches)
    return mean(min(1.0, (agreeing - match) / needed) for match in matches)


def yes_no(prediction: str) -> str:
    """Read "yes" or "no" from an answer as POPE does: "no" if its first sentence has the word no or not, else "yes"."""
    words = re.split(r"[\s,]+", prediction.partition(".")[0].lower())
    return "no" if {"no", "not"} & set(words) else "yes"


def pope_score(prediction: str, answers: Sequence[str]) -> float:
    """1 if `yes_no` of the prediction is one of the answers, else 0."""
    return float(yes_no(prediction) in {normalize(answer) for answer in answers})


@dataclass(frozen=True)
class PopeScores:
    """POPE's numbers, as fractions; "yes" is the positive class, and an empty denominator gives 0."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_rate: float
    count: int


def pope_scores(predictions: Sequence[str], answers: Sequence[str]) -> PopeScores:
    """POPE accuracy, precision, recall, F1 and yes-rate of predictions against answers ("yes" or "no")."""
    said = [yes_no(prediction) == "yes" for prediction in predictions]
    true = [normalize(answer) == "yes" for answer in answers]
    hits = sum(s and t for s, t in zip(said, true, strict=True))
    right = sum(s == t for s, t in zip(said, true, strict=True))
    precision, recall = _share(hits, sum(said)), _share(hits, sum(true))
    return PopeScores(
        accuracy=_share(right, len(true)),
        precision=precision,
        recall=recall,
        f1=_share(2 * precision * recall, precision + recall),
        yes_rate=_share(sum(said), len(said)),
        count=len(said),
    )


def pope_subset_f1(predictions: Sequence[str], answers: Sequence[str], subsets: Sequence[str]) -> float:
    """POPE as LLaVA's papers print it: the mean of the subsets' F1, by POPE's own reading of answers."""
    rows = list(zip(predictions, answers, subsets, strict=True))
    parts = [[row for row in rows if row[2] == subset] for subset in dict.fromkeys(subsets)]
    found = [pope_scores([row[0] for row in part], [row[1] for row in part]).f1 for part in parts]
    return _share(sum(found), len(found))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def choice_letter(prediction: str, choices: Sequence[str] = (), letters: str = "ABCD") -> str | None:
    """The letter of the option that an answer chooses, or None where it chooses none or several.

    Read in this order: after "answer is", "答案是" or "选", in brackets, alone or before a mark at the start ("b",
    "B. a cat"), as the only capital that stands alone (an "A" before a word is an article), and last the option's text.

    Args:
        prediction: the answer, in English or Chinese.
        choices: the options' texts, in order; their number then decides the letters.
        letters: the letters that count when no choices are given.
    """
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)] if choices else letters
    for pattern in _CHOICE_PATTERNS:
        found = {match.upper() for match in pattern.findall(prediction.strip())} & set(letters)
        if found:
            return found.pop() if len(found) == 1 else None
    return _option_named(prediction, choices, letters)


_CHOICE_PATTERNS = (
    re.compile(r"(?i:answer(?:\s+is)?|option|choice)\s*[:：]?\s*[(（]?([A-Za-z])(?![A-Za-z])"),
    re.compile(r"(?:答案(?:是|为)?|选项?|选择)\s*[:：]?\s*[(（]?([A-Za-z])(?![A-Za-z])"),
    re.compile(r"[(（]([A-Za-z])[)）]"),
    re.compile(r"^([A-Za-z])(?:$|[)）.:：、,，])"),
    re.compile(r"(?<![A-Za-z'])([A-Z])(?![A-Za-z'])(?!(?<=A)\s+(?!(?:or|and|is)\b)[a-z])"),
)


def _option_named(text: str, choices: Sequence[str], letters: str) -> str | None:
    """The one option whose text the answer equals, or else contains."""
    said = normalize(text)
    wanted = [normalize(option) for option in choices]
    for chosen in ([o == said for o in wanted], [bool(o) and o in said for o in wanted]):
        if sum(chosen) == 1:
            return letters[chosen.index(True)]
    return None


def choice_score(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """1 if the option chosen is one of the answers (letters such as "B"), else 0."""
    letter = choice_letter(prediction, choices)
    return float(letter is not None and letter in {answer.strip().upper() for answer in answers})


METRICS: dict[str, Metric] = {
    "choice": choice_score,
    "exact": lambda prediction, answers, _: exact_match(prediction, answers),
    "gqa": lambda prediction, answers, _: gqa_score(prediction, answers),
    "mmbench": mmbench_score,
    "mme": lambda prediction, answers, _: mme_score(prediction, answers),
    "ocrbench": lambda prediction, answers, _: ocrbench_score(prediction, answers),
    "ocrbench_math": lambda prediction, answers, _: ocrbench_math_score(prediction, answers),
    "pope": lambda prediction, answers, _: pope_score(prediction, answers),
    "pope_exact": lambda prediction, answers, _: pope_exact_score(prediction, answers),
    "seed": lambda prediction, answers, _: seed_score(prediction, answers),
    "sqa": lambda prediction, answers, _: sqa_score(prediction, answers),
    "vqa": lambda prediction, answers, _: vqa_accuracy(prediction, answers),
    "vqav2": lambda prediction, answers, _: vqa_accuracy(prediction, answers, normalize_vqav2),
}
