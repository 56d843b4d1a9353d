"""Records of questions: lmms-eval's notes in any order, rotations joined, failures never right."""

from __future__ import annotations

from foveal.suite.answers import Answer, read_answers
from foveal.suite.benchmarks import BENCHMARKS


def test_rotations_are_one_question_that_the_first_wrong_one_shows() -> None:
    benchmark = BENCHMARKS["mmbench"]
    base = {"question": "?", "A": "cat", "B": "dog", "C": None, "D": None, benchmark.category: "animals"}
    documents = [
        {**base, "index": 7, "answer": "A"},
        {**base, "index": 8, "answer": "A"},
        {**base, "index": 1000007, "answer": "B"},
        {**base, "index": 2000007, "answer": "A"},
    ]
    given = ["A", "A", "A", "B"]
    samples = [
        {"doc_id": row, "arguments": [f"prompt {row}"], "filtered_resps": [text]}
        for row, text in enumerate(given)
    ]
    answers = read_answers(benchmark, documents, samples[::-1], {})
    assert [(answer.id, answer.row, answer.score) for answer in answers] == [("7", 2, 0.0), ("8", 1, 1.0)]
    assert answers[0] == Answer("mmbench", "7", "prompt 2", ("B",), "A", 0.0, "animals", 2)
    failed = read_answers(benchmark, documents[1:2], [{**samples[1], "doc_id": 0}], {"mmbench 0": "gone"})
    assert (failed[0].score, failed[0].error) == (0.0, "gone")
