"""What a row of a benchmark asks and accepts, and Foveal's own scores of answers to it.

The numbers are those of lmms-eval to the last bit, which `tests/lmms` asserts; here each answer can be looked at too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveal.evaluation.benchmark_rules import exact_yes_no_scores, mmbench_accuracy, mme_scores
from foveal.evaluation.metrics import METRICS, pope_subset_f1
from foveal.suite.benchmarks import Benchmark, unit_of

__all__ = ["Reference", "reference", "suite_scores"]

_LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Reference:
    """A question of a benchmark, without its picture.

    Attributes:
        id: its name, unique in the benchmark.
        question: as the data has it, without what the prompt adds.
        answers: what is accepted: one of each annotator for VQA, a letter for multiple choice.
        choices: the options, in order.
        category: the kind of question, "" where the benchmark has none.
        unit: what it is scored together with: MME's picture, MMBench's question without its rotations; else `id`.
        metric: a key of `foveal.evaluation.METRICS`.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...]
    category: str
    unit: str
    metric: str

    def score(self, prediction: str) -> float:
        """What `prediction` is worth, in [0, 1]."""
        return METRICS[self.metric](prediction, self.answers, self.choices)


def reference(benchmark: Benchmark, doc: Mapping[str, Any], row: int) -> Reference:
    """Read a row of a benchmark's file.

    Args:
        benchmark: which; one that needs a paid judge has no references (KeyError).
        doc: the row, with or without its picture.
        row: its number, the name of rows that have none.
    """
    column = benchmark.column.removesuffix("_no_ocr")
    metric, name, answers, choices = _READERS[column]
    identity = name.format_map({**doc, "row": row})
    return Reference(
        id=identity,
        question=doc["question"],
        answers=tuple(answers(doc)),
        choices=tuple(choices(doc)),
        category=str(doc[benchmark.category]) if benchmark.category else "",
        unit=unit_of(doc[benchmark.unit]) if benchmark.unit else identity,
        metric="ocrbench_math" if doc.get("dataset") == "HME100k" else metric,
    )


def _no_choices(doc: Mapping[str, Any]) -> list[str]:
    return []


def _options(*names: str) -> Callable[[Mapping[str, Any]], list[str]]:
    return lambda doc: [doc[name] for name in names if doc[name] is not None]


# For each benchmark its metric, the name of a row, the accepted answers and the options.
_READERS: dict[
    str,
    tuple[
        str, str, Callable[[Mapping[str, Any]], Sequence[str]], Callable[[Mapping[str, Any]], Sequence[str]]
    ],
] = {
    "vqav2": ("vqav2", "{question_id}", lambda doc: [item["answer"] for item in doc["answers"]], _no_choices),
    "gqa": ("gqa", "{id}", lambda doc: [doc["answer"]], _no_choices),
    "vizwiz": ("vqa", "{question_id}", lambda doc: doc["answers"], _no_choices),
    "sqa_img": ("sqa", "{row}", lambda doc: [_LETTERS[doc["answer"]]], lambda doc: doc["choices"]),
    "textvqa": ("vqa", "{question_id}", lambda doc: doc["answers"], _no_choices),
    "pope": ("pope_exact", "{category}/{question_id}", lambda doc: [doc["answer"]], _no_choices),
    "mme": ("mme", "{question_id} {question}", lambda doc: [doc["answer"]], _no_choices),
    "mmbench": ("mmbench", "{index}", lambda doc: [doc["answer"]], _options("A", "B", "C", "D")),
    "mmbench_cn": ("mmbench", "{index}", lambda doc: [doc["answer"]], _options("A", "B", "C", "D")),
    "ocrbench": ("ocrbench", "{row}", lambda doc: doc["answer"], _no_choices),
    "seed": (
        "seed",
        "{question_id}",
        lambda doc: [doc["answer"]],
        _options("choice_a", "choice_b", "choice_c", "choice_d"),
    ),
}


def suite_scores(
    benchmark: Benchmark, references: Sequence[Reference], predictions: Sequence[str]
) -> dict[str, float]:
    """The benchmark's score under its column's name, and the other numbers worth telling, in published units.

    What lmms-eval does not compute is told too: for POPE the mean of its subsets' F1 by POPE's own rule, which is what
    LLaVA's papers print, as ``pope_subset_f1``.

    Args:
        benchmark: which.
        references: the questions, all of them.
        predictions: the answers, in the same order.
    """
    answers = [item.answers[0] for item in references]
    categories = [item.category for item in references]
    if benchmark.column == "pope":
        accuracy, _, _, f1 = exact_yes_no_scores(predictions, answers)
        papers = pope_subset_f1(predictions, answers, categories)
        return {"pope": 100 * f1, "pope_accuracy": 100 * accuracy, "pope_subset_f1": 100 * papers}
    if benchmark.column == "mme":
        scores = mme_scores(predictions, answers, categories, [item.unit for item in references])
        return {"mme": scores.total, "mme_perception": scores.perception, "mme_cognition": scores.cognition}
    if benchmark.column in ("mmbench", "mmbench_cn"):
        choices = [item.choices for item in references]
        rate = mmbench_accuracy(predictions, answers, choices, [int(item.unit) for item in references])
        return {benchmark.column: benchmark.scale * rate}
    worth = [item.score(said) for item, said in zip(references, predictions, strict=True)]
    found = {benchmark.column: benchmark.scale * (sum(worth) / len(worth))}
    if benchmark.column == "seed":
        for kind in dict.fromkeys(categories):
            part = [score for score, category in zip(worth, categories, strict=True) if category == kind]
            found[f"seed_{kind}"] = benchmark.scale * (sum(part) / len(part))
    return found
