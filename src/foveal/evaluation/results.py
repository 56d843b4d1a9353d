"""What an evaluation found: a record per question, scores with intervals, and one JSON row that says it all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from foveal.errors import FovealError
from foveal.evaluation.intervals import Estimate, estimate, paired_difference
from foveal.evaluation.metrics import PopeScores, pope_scores

__all__ = ["EvaluationResult", "Record", "append_row", "write_json"]


@dataclass(frozen=True)
class Record:
    """One question and what became of it; `error` is empty unless its image could not be read."""

    id: str
    type: str
    subset: str
    metric: str
    question: str
    answers: tuple[str, ...]
    prediction: str
    score: float
    error: str = ""


@dataclass(frozen=True)
class EvaluationResult:
    """The outcome of `evaluate`.

    Attributes:
        records: one a question, in the order asked.
        settings: method, its options, batch size and the like.
        provenance: see `foveal.evaluation.provenance`.
        seconds: wall-clock time of the run.
        kept_per_image: visual tokens left of an image after the last stage, measured, averaged over images; None where
            `evaluate` compressed nothing itself.
        seen_per_layer: visual tokens of an image that a decoder layer sees, averaged over layers and images.
    """

    records: tuple[Record, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    kept_per_image: float | None = None
    seen_per_layer: float | None = None

    @cached_property
    def answered(self) -> tuple[Record, ...]:
        """The records that were put to the model."""
        return tuple(record for record in self.records if not record.error)

    @property
    def unreadable(self) -> tuple[Record, ...]:
        """The records whose image could not be read: counted, never scored."""
        return tuple(record for record in self.records if record.error)

    @property
    def accuracy(self) -> Estimate:
        """The mean score of the answered questions with its 95 % Wilson interval."""
        return _estimate(self.answered)

    @property
    def by_type(self) -> dict[str, Estimate]:
        """The same for each type of question, sorted by name."""
        return {name: _estimate(records) for name, records in _group(self.answered, "type").items()}

    @property
    def pope(self) -> dict[str, dict[str, PopeScores]]:
        """POPE's scores for each type of yes/no question: in total and, where there are subsets, for each of them."""
        asked = [record for record in self.answered if record.metric == "pope"]
        return {
            name: {"total": _pope(records)}
            | {subset: _pope(part) for subset, part in _group(records, "subset").items() if subset}
            for name, records in _group(asked, "type").items()
        }

    def difference(self, other: EvaluationResult) -> Estimate:
        """This accuracy minus `other`'s over the same questions, with its 95 % paired interval.

        Raises:
            FovealError: the two did not answer the same questions.
        """
        if [record.id for record in self.answered] != [record.id for record in other.answered]:
            raise FovealError(
                "two results can only be paired when they answer the same questions in the same order"
            )
        return paired_difference([r.score for r in other.answered], [r.score for r in self.answered])

    def row(self) -> dict[str, Any]:
        """All but the records, ready for JSON."""
        return {
            "settings": self.settings,
            "accuracy": asdict(self.accuracy),
            "by_type": {name: asdict(value) for name, value in self.by_type.items()},
            "pope": {
                name: {subset: asdict(scores) for subset, scores in parts.items()}
                for name, parts in self.pope.items()
            },
            "kept_per_image": self.kept_per_image,
            "seen_per_layer": self.seen_per_layer,
            "unreadable": {record.id: record.error for record in self.unreadable},
            "seconds": round(self.seconds, 3),
            "provenance": self.provenance,
        }


def _estimate(records: Iterable[Record]) -> Estimate:
    return estimate([record.score for record in records])


def _pope(records: list[Record]) -> PopeScores:
    return pope_scores([record.prediction for record in records], [record.answers[0] for record in records])


def _group(records: Iterable[Record], attribute: str) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(getattr(record, attribute), []).append(record)
    return dict(sorted(groups.items()))


def append_row(path: str | Path, row: dict[str, Any]) -> None:
    """Append `row` to a JSONL file in one write, so that runs in parallel never mix their lines."""
    line = json.dumps(row, ensure_ascii=False) + "\n"
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON; a reader sees the old file or the new one, never half of one."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=2)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
