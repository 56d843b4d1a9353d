"""The field's rules by hand; that lmms-eval agrees on everything else is for `tests/lmms/test_scores.py`."""

import pytest

from foveal.evaluation import METRICS
from foveal.evaluation.benchmark_rules import (
    COGNITION,
    PERCEPTION,
    exact_yes_no_scores,
    mmbench_accuracy,
    mmbench_letter,
    mme_answer,
    mme_scores,
)


@pytest.mark.parametrize(
    ("metric", "said", "answer", "score"),
    [
        ("gqa", "Top-Left.", "topleft", 1.0),
        ("gqa", "the fox", "fox", 0.0),
        ("gqa", "two", "2", 0.0),
        ("sqa", " b ", "B", 1.0),
        ("sqa", "B. fox", "B", 1.0),
        ("sqa", "b. fox", "B", 0.0),
        ("sqa", "B fox", "B", 0.0),
        ("sqa", "(B)", "B", 0.0),
        ("sqa", "", "B", 0.0),
        ("seed", "Because", "B", 1.0),
        ("seed", "(B)", "B", 0.0),
        ("seed", "", "B", 0.0),
        ("pope_exact", "YES", "yes", 1.0),
        ("pope_exact", "Yes.", "yes", 0.0),
        ("pope", "Yes.", "yes", 1.0),
        ("mme", "Yes.", "Yes", 1.0),
        ("mme", "y", "Yes", 1.0),
        ("mme", "I know", "No", 0.0),
        ("mme", "know", "No", 1.0),
        ("ocrbench", "It says ＬＡＭＰ!", "lamp", 1.0),
        ("ocrbench", "la mp", "lamp", 0.0),
        ("ocrbench", "two\nlines", "Two lines", 1.0),
        ("ocrbench_math", "x ^ 2", "x^2", 1.0),
        ("ocrbench_math", "X^2", "x^2", 0.0),
        ("vqav2", "1,000", "1000", 1.0),
        ("vqav2", "it's", "its", 0.0),
    ],
)
def test_rules(metric: str, said: str, answer: str, score: float) -> None:
    assert METRICS[metric](said, [answer], ()) == score


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("yes", "yes"),
        ("No, it is not", "no"),
        ("n", "no"),
        ("x", "other"),
        ("", "other"),
        ("It is yes", "other"),  # beyond the first four characters
    ],
)
def test_mme_answer(said: str, expected: str) -> None:
    assert mme_answer(said) == expected


def test_mme_scores_by_hand() -> None:
    # existence: one picture right twice (100 + 100), one once (50 + 0): 125; code: right once: 50
    answers = ["Yes", "No"] * 3
    said = ["yes", "no", "yes", "yes", "no", "no"]
    categories = ["existence"] * 4 + ["code_reasoning"] * 2
    scores = mme_scores(said, answers, categories, ["a", "a", "b", "b", "a", "a"])
    assert (scores.perception, scores.cognition, scores.total) == (125.0, 50.0, 175.0)
    assert scores.by_category == {"existence": 125.0, "code_reasoning": 50.0}


def test_mme_at_most() -> None:
    categories = [name for name in (*PERCEPTION, *COGNITION) for _ in range(2)]
    scores = mme_scores(["yes", "no"] * 14, ["Yes", "No"] * 14, categories, ["a"] * 28)
    assert (scores.perception, scores.cognition, scores.total) == (2000.0, 800.0, 2800.0)


def test_exact_yes_no_scores_by_hand() -> None:
    # true yes: yes, no, "maybe"; true no: yes, no. Recall leaves "maybe" out: 1 of 2.
    accuracy, precision, recall, f1 = exact_yes_no_scores(
        ["yes", "no", "maybe", "yes", "no"], ["yes", "yes", "yes", "no", "no"]
    )
    assert (accuracy, precision, recall, f1) == (2 / 5, 1 / 2, 1 / 2, 1 / 2)
    assert exact_yes_no_scores([], []) == (0, 0, 0, 0)


ANIMALS = ("a cat", "a dog", "a red fox", "banana")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B).", "B"),
        ("E", "E"),  # a letter, though no option has it
        ("b", ""),
        ("a dog", "B"),
        ("It is A DOG", "B"),
        ("A dog sits here", "B"),  # the article is no choice
        ("A or B", "A"),  # of the likely places "at the start" comes first
        ("the answer is B, not A", "B"),
        ("答案是C", "C"),
        ("", ""),
        ("nothing", ""),
    ],
)
def test_mmbench_letter(said: str, expected: str) -> None:
    assert mmbench_letter(said, ANIMALS) == expected


def test_options_that_hold_the_text_nan_mislead() -> None:
    """Missing options are the text "nan" in some files, which bananas contain: the field's rule, kept as it is."""
    assert mmbench_letter("banana", ("apple", "pear", "nan", "nan")) == ""
    assert mmbench_letter("banana", ("apple", "pear", "nan")) == "C"


def test_mmbench_counts_a_question_if_every_rotation_is_right() -> None:
    options = [("x", "y")] * 6
    assert mmbench_accuracy(list("ABABAB"), list("ABABBB"), options, [0, 0, 1, 1, 2, 2]) == 2 / 3
    assert mmbench_accuracy(list("AB"), list("BB"), options[:2], [0, 0]) == 0.0
    assert mmbench_accuracy([], [], [], []) == 0.0
