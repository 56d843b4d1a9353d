"""Measuring what a model still knows with fewer visual tokens: questions in, scores with intervals out."""

from foveal.evaluation.intervals import Estimate, estimate, paired_difference, wilson
from foveal.evaluation.metrics import (
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
from foveal.evaluation.normalize import normalize, normalize_vqa
from foveal.evaluation.provenance import provenance
from foveal.evaluation.questions import Question, as_question, load_questions
from foveal.evaluation.results import EvaluationResult, Record, append_row, write_json
from foveal.evaluation.runner import evaluate

__all__ = [
    "METRICS",
    "Estimate",
    "EvaluationResult",
    "PopeScores",
    "Question",
    "Record",
    "append_row",
    "as_question",
    "choice_letter",
    "choice_score",
    "estimate",
    "evaluate",
    "exact_match",
    "load_questions",
    "normalize",
    "normalize_vqa",
    "paired_difference",
    "pope_score",
    "pope_scores",
    "provenance",
    "vqa_accuracy",
    "wilson",
    "write_json",
    "yes_no",
]
