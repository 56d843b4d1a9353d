import pytest

from foveal.suite.benchmarks import BENCHMARKS
from foveal.suite.references import reference, suite_scores

MMBENCH = {"index": 3_000_007, "question": "where?", "answer": "B", "A": "x", "B": "y", "C": None, "D": None}


def test_rotations_of_a_question_are_one_unit() -> None:
    item = reference(BENCHMARKS["mmbench"], {**MMBENCH, "L2-category": "relation_reasoning"}, 0)
    assert (item.id, item.unit, item.category) == ("3000007", "7", "relation_reasoning")
    assert item.choices == ("x", "y")
    assert item.score("y") == 1.0


def test_formulas_have_a_rule_of_their_own() -> None:
    doc = {"question": "?", "answer": ["x^2"], "dataset": "HME100k", "question_type": "Formula"}
    assert reference(BENCHMARKS["ocrbench"], doc, 0).score("x ^ 2") == 1.0
    assert reference(BENCHMARKS["ocrbench"], {**doc, "dataset": "SVT"}, 0).score("x ^ 2") == 0.0


def test_both_textvqas_read_alike() -> None:
    doc = {"question_id": 5, "question": "?", "answers": ["fox"] * 10}
    assert reference(BENCHMARKS["textvqa"], doc, 0) == reference(BENCHMARKS["textvqa_no_ocr"], doc, 0)


@pytest.mark.parametrize("column", ["mmvet", "llava_w"])
def test_judged_benchmarks_have_none(column: str) -> None:
    with pytest.raises(KeyError):
        reference(BENCHMARKS[column], {"question": "?"}, 0)


def test_pope_names_three_scores() -> None:
    rows = [("yes", "random"), ("no", "random"), ("yes", "popular"), ("no", "popular")]
    docs = [
        {"question_id": str(row), "question": "?", "answer": answer, "category": subset}
        for row, (answer, subset) in enumerate(rows)
    ]
    items = [reference(BENCHMARKS["pope"], doc, row) for row, doc in enumerate(docs)]
    # lmms-eval wants the word alone, so half are wrong; as its recall leaves "Yes." out, its F1 does not notice
    found = suite_scores(BENCHMARKS["pope"], items, ["Yes.", "no", "yes", "No, none"])
    assert found == {"pope": 100.0, "pope_accuracy": 50.0, "pope_subset_f1": 100.0}
    # by POPE's own rule F1 is 2/3 in the first subset (precision 1/2) and 1 in the second
    found = suite_scores(BENCHMARKS["pope"], items, ["yes", "yes", "yes", "no"])
    assert found["pope_subset_f1"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert found["pope"] == pytest.approx(80.0)


def test_seed_tells_pictures_and_videos_apart() -> None:
    docs = [
        {"question_id": str(row), "question": "?", "answer": "A", "data_type": kind}
        | dict.fromkeys(("choice_a", "choice_b", "choice_c", "choice_d"), "x")
        for row, kind in enumerate(("image", "image", "video"))
    ]
    items = [reference(BENCHMARKS["seed"], doc, row) for row, doc in enumerate(docs)]
    found = suite_scores(BENCHMARKS["seed"], items, ["A", "B", "A."])
    assert found == pytest.approx({"seed": 200 / 3, "seed_image": 50.0, "seed_video": 100.0})
