import pytest

from foveal.evaluation import (
    METRICS,
    PopeScores,
    choice_letter,
    choice_score,
    exact_match,
    pope_score,
    pope_scores,
    vqa_accuracy,
    yes_no,
)


def test_exact_match() -> None:
    assert exact_match(" The Fox.", ["fox", "the fox"]) == 1.0
    assert exact_match("foxes", ["fox"]) == 0.0
    assert exact_match("two", ["2"]) == 0.0
    assert exact_match("", ["fox"]) == 0.0


@pytest.mark.parametrize(
    ("agreeing", "expected"),
    # k of 10 agree: k annotators see k-1 others agree, 10-k see k; for k = 2 that is (2 * 1/3 + 8 * 2/3) / 10
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_vqa_accuracy_of_ten_annotators(agreeing: int, expected: float) -> None:
    answers = ["yes"] * agreeing + ["no"] * (10 - agreeing)
    assert vqa_accuracy("Yes.", answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["cat"], 1.0),
        (["dog"], 0.0),
        (["cat", "cat"], 1.0),
        (["cat", "dog"], 0.5),  # without "dog" all others agree, without "cat" none
        (["cat", "cat", "dog"], (0.5 + 0.5 + 1.0) / 3),
        (["cat", "cat", "dog", "dog"], (1 / 3 + 1 / 3 + 2 / 3 + 2 / 3) / 4),
        (["cat"] * 4, 1.0),
        ([], 0.0),
    ],
)
def test_vqa_accuracy_of_fewer_annotators(answers: list[str], expected: float) -> None:
    assert vqa_accuracy("a cat", answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        ("no", "no"),
        ("No, there is no dog.", "no"),
        ("Yes. No dog is there.", "yes"),  # the first sentence decides
        ("There is not.", "no"),
        ("Nothing", "yes"),  # "no" counts as a word of its own only
        ("no\n", "no"),
        ("", "yes"),
    ],
)
def test_yes_no(text: str, expected: str) -> None:
    assert yes_no(text) == expected


def test_pope_score() -> None:
    assert pope_score("No.", ["no"]) == 1.0
    assert pope_score("Yes, a dog", ["no"]) == 0.0
    assert pope_score("maybe", ["Yes"]) == 1.0


def test_pope_scores_by_hand() -> None:
    # true: yes yes yes no no; said: yes yes no yes no -> 2 hits, 1 miss, 1 false alarm, 1 right no
    scores = pope_scores(["yes", "Yes.", "no", "yes", "no"], ["yes", "yes", "yes", "no", "no"])
    assert scores == PopeScores(
        accuracy=3 / 5, precision=2 / 3, recall=2 / 3, f1=pytest.approx(2 / 3), yes_rate=3 / 5, count=5
    )


def test_pope_scores_of_one_sided_answers() -> None:
    always_no = pope_scores(["no", "no"], ["yes", "no"])
    assert (always_no.precision, always_no.recall, always_no.f1, always_no.yes_rate) == (0, 0, 0, 0)
    assert pope_scores([], []).count == 0


ANIMALS = ("a cat", "a dog", "a red fox")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        ("b", "B"),
        (" (c) ", "C"),
        ("B. a dog", "B"),
        ("（B）", "B"),
        ("A: because", "A"),
        ("The answer is C.", "C"),
        ("Answer: b", "B"),
        ("答案是A", "A"),
        ("答案：B。", "B"),
        ("选C", "C"),
        ("选项 B", "B"),
        ("I think it is (B) here", "B"),
        ("I would say B", "B"),
        ("The answer is (B), not (A)", "B"),
        ("A is right", "A"),
        ("A dog sits in the picture", "B"),  # the article is no choice; the option's text is
        ("A red fox", "C"),
        ("a dog", "B"),
        ("Either A or B", None),
        ("(A) or (C)", None),
        ("a cat and a dog", None),
        ("D", None),  # there are three options
        ("a bird", None),
        ("", None),
    ],
)
def test_choice_letter(text: str, expected: str | None) -> None:
    assert choice_letter(text, ANIMALS) == expected


def test_choice_letter_without_options() -> None:
    assert choice_letter("D") == "D"
    assert choice_letter("E") is None
    assert choice_letter("E", letters="ABCDE") == "E"
    assert choice_letter("a cat") is None


def test_choice_score() -> None:
    assert choice_score("the answer is b", ["B"], ANIMALS) == 1.0
    assert choice_score("a cat", ["B"], ANIMALS) == 0.0
    assert choice_score("no idea", ["B"], ANIMALS) == 0.0


@pytest.mark.parametrize(
    ("metric", "prediction", "answers"),
    [("choice", "B", ["B"]), ("exact", "fox", ["Fox"]), ("pope", "No.", ["no"]), ("vqa", "two", ["2"] * 10)],
)
def test_every_metric_by_name(metric: str, prediction: str, answers: list[str]) -> None:
    score = METRICS[metric]
    assert score(prediction, answers, ()) == 1.0
    assert score("yes, C", answers, ()) == 0.0
    assert list(METRICS) == sorted(METRICS)
