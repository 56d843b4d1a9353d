"""What lmms-eval notes about each question it asked, as one record a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveal.suite.benchmarks import Benchmark
from foveal.suite.references import reference

__all__ = ["Answer", "read_answers"]


@dataclass(frozen=True)
class Answer:
    """One question of a benchmark and what became of it.

    MMBench's rotations of a question are one question, which is right if all are: the first that is not is shown.

    Attributes:
        benchmark: its column.
        id: unique within the benchmark, and the same in every run on the same data.
        question: the prompt, hints included.
        answers: what is accepted.
        prediction: what the model said.
        score: in [0, 1].
        category: as the benchmark groups its questions; empty where it does not.
        row: where the question stands in the benchmark's data, after `limit`.
        error: why there is no prediction; such a question counts as wrong.
    """

    benchmark: str
    id: str
    question: str
    answers: tuple[str, ...]
    prediction: str
    score: float
    category: str = ""
    row: int = 0
    error: str = ""


def read_answers(
    benchmark: Benchmark,
    documents: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
    failures: Mapping[str, str],
) -> list[Answer]:
    """One record a question, in the order of the data.

    Args:
        benchmark: which.
        documents: the rows of its data; lmms-eval changes its own copies while it scores.
        samples: what lmms-eval noted of each row, in any order.
        failures: why questions have no answer, by task and row.
    """
    ordered = sorted(samples, key=lambda sample: int(sample["doc_id"]))
    answers = [_answer(benchmark, documents[int(sample["doc_id"])], sample, failures) for sample in ordered]
    shown: dict[str, Answer] = {}
    for answer in answers:
        before = shown.setdefault(answer.id, answer)
        if before.score and not answer.score:
            shown[answer.id] = answer
    return list(shown.values())


def _answer(
    benchmark: Benchmark,
    document: Mapping[str, Any],
    sample: Mapping[str, Any],
    failures: Mapping[str, str],
) -> Answer:
    row = int(sample["doc_id"])
    asked = reference(benchmark, document, row)
    prediction = sample["filtered_resps"][0]
    error = failures.get(f"{benchmark.column} {row}", "")
    return Answer(
        benchmark=benchmark.column,
        id=f"{asked.unit}#{row}" if benchmark.column == "mme" else asked.unit,
        question=next(part for part in sample["arguments"] if isinstance(part, str)),
        answers=tuple(dict.fromkeys(asked.answers)),
        prediction=prediction,
        score=0.0 if error else asked.score(prediction),
        category=asked.category,
        row=row,
        error=error,
    )
