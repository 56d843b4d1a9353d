"""Published scores on the ten benchmarks, each with its source, and which of them belong beside a run.

`published.csv` holds EPIC's tables (arXiv 2510.00515, Table 1 and Appendix C): LLaVA-1.5-7B and methods built on it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["PublishedRow", "is_published_model", "published_rows", "rows_beside"]

WHOLE = 576
_FACTS = ("method", "llm", "resolution", "visual_tokens", "avg", "source")
_LAYERS, _LAYER = 32, 2  # of Vicuna-7B; EPIC drops tokens at layer 2


@dataclass(frozen=True)
class PublishedRow:
    """A row of a paper's table.

    Attributes:
        method: as the paper calls it.
        llm: the language model.
        resolution: pixels of a side of the picture.
        visual_tokens: what the paper counts: tokens after the layer at which they are dropped.
        scores: by column, in the published unit.
        average: the paper's own Avg.
        source: paper and table.
    """

    method: str
    llm: str
    resolution: int
    visual_tokens: int
    scores: Mapping[str, float]
    average: float
    source: str

    @property
    def seen(self) -> float:
        """Visual tokens that a decoder layer sees on average, which other papers count."""
        if not self.method.startswith("EPIC"):
            return float(self.visual_tokens)
        return (_LAYER * WHOLE + (_LAYERS - _LAYER) * self.visual_tokens) / _LAYERS


@lru_cache
def published_rows() -> tuple[PublishedRow, ...]:
    """Every row of `published.csv`, in its order: the uncompressed model first."""
    with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as file:
        return tuple(_row(cells) for cells in csv.DictReader(file))


def _row(cells: Mapping[str, str]) -> PublishedRow:
    return PublishedRow(
        cells["method"],
        cells["llm"],
        int(cells["resolution"]),
        int(cells["visual_tokens"]),
        {column: float(value) for column, value in cells.items() if column not in _FACTS},
        float(cells["avg"]),
        cells["source"],
    )


def rows_beside(kept: float | None, whole: float = WHOLE) -> tuple[PublishedRow, ...]:
    """The published rows nearest to a budget, one a method.

    Budgets are compared as shares of the image's tokens, so that 16 of 144 stand beside 64 of 576, and as multiples:
    a row is near where neither has half as many tokens again as the other. Where no row is, the nearest budget's are
    returned.

    Args:
        kept: visual tokens left after the last stage; None for all of them.
        whole: visual tokens of the image before.
    """
    if kept is None or kept >= whole:
        return tuple(row for row in published_rows() if row.visual_tokens == WHOLE)
    wanted = max(kept, 0.5) * WHOLE / whole
    nearest: dict[str, PublishedRow] = {}
    for row in published_rows():
        if row.visual_tokens < WHOLE:
            rival = nearest.setdefault(row.method, row)
            nearest[row.method] = min(rival, row, key=lambda each: _distance(each, wanted))
    least = min(_distance(row, wanted) for row in nearest.values())
    reach = max(math.log(1.5), least)
    return tuple(row for row in nearest.values() if _distance(row, wanted) <= reach)


def _distance(row: PublishedRow, tokens: float) -> float:
    return abs(math.log(row.visual_tokens / tokens))


def is_published_model(name: str, config: Any) -> bool:
    """Whether a model is LLaVA-1.5-7B, or trained from it: by its name, or by the shape in its configuration.

    Args:
        name: of the checkpoint.
        config: the model's.
    """
    if any(known in name.lower() for known in ("llava-1.5-7b", "llava-v1.5-7b")):
        return True
    text, vision = getattr(config, "text_config", None), getattr(config, "vision_config", None)
    if config.model_type != "llava" or text is None or vision is None:
        return False
    shape = (text.model_type, text.hidden_size, text.num_hidden_layers)
    return shape == ("llama", 4096, _LAYERS) and (vision.image_size, vision.patch_size) == (336, 14)
