"""Samples that cannot be trained on: how they are marked, named, and counted over all processes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["BadSample", "SkipLog", "bad_sample", "id_of", "skipped"]

_logger = logging.getLogger("foveal")


@dataclass(frozen=True)
class BadSample:
    """What a data set holds in the place of a sample that cannot be used.

    Attributes:
        id: the sample's own id, empty if it has none; ids need not be unique.
        where: its file and number; without a file, its place in the batch, or nothing if it has an id.
        reason: what is wrong with it.
    """

    id: str
    where: str
    reason: str

    @property
    def name(self) -> str:
        """The sample in words; those of a file are told apart, others by their ids."""
        if not self.where:
            return f"sample {self.id!r}"
        return f"{self.where} (id {self.id!r})" if self.id else self.where

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def id_of(sample: Any) -> str:
    """Its id as text, empty if it has none."""
    found = sample.get("id") if isinstance(sample, Mapping) else None
    return "" if found is None else str(found)


def bad_sample(sample: Any, reason: str, where: str) -> BadSample:
    """The mark for `sample`; `where` counts if the sample knows neither its place nor its name."""
    known = sample.get("where") if isinstance(sample, Mapping) else None
    name = id_of(sample)
    return BadSample(name, str(known or ("" if name else where)), reason)


class SkipLog:
    """Names each skipped sample once: a warning of the logger "foveal", and a line of a report.

    Args:
        report: a JSONL file that processes and DataLoader workers share, or None for the warning alone.
    """

    def __init__(self, report: str | Path | None) -> None:
        self.report = None if report is None else Path(report)
        self._named: set[str] = set()

    def add(self, bad: BadSample) -> None:
        """Note a sample, unless this process has done so before."""
        if bad.name in self._named:
            return
        self._named.add(bad.name)
        _logger.warning("skipped %s", bad)
        if self.report is not None:
            _append_line(self.report, json.dumps(asdict(bad), ensure_ascii=False))


def _append_line(path: Path, line: str) -> None:
    """In one write at the file's end, so that processes do not write into each other's lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)


def skipped(report: str | Path) -> dict[str, str]:
    """The samples that a report names, each once: name -> reason; empty if there is no report."""
    path = Path(report)
    if not path.exists():
        return {}
    found = [BadSample(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return {bad.name: bad.reason for bad in found}
