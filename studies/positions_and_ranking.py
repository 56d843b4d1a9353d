"""What re-packed positions cost a model, and which sign of TRIM's and CDPruner's ranking fits its CLIP pair.

    python studies/positions_and_ranking.py

The bundled model at 16 of 144 tokens, 1,000 test questions: every method that re-packs positions by default, once with
original ones; TRIM and CDPruner with the ranking of the paper, both ways. Nothing is chosen by the result. Rows go to
results/positions_and_ranking.jsonl; the defaults are in results/all_methods.jsonl.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import foveal
from foveal.evaluation import append_row, evaluate
from foveal.mini import SceneQuestions

RESULT = Path(__file__).parent / "results" / "positions_and_ranking.jsonl"
KEEP = 16


def variants() -> list[foveal.Compressor]:
    """The methods and options to measure."""
    defaults = [foveal.get(name, keep=KEEP) for name in foveal.available()]
    packing = [method.card.name for method in defaults if method.positions == "packed" and method.card]
    made: list[tuple[str, dict[str, Any]]] = [(name, {"positions": "original"}) for name in packing]
    for name in ("trim", "cdpruner"):
        made += [(name, {"ranking": "paper", "positions": positions}) for positions in ("packed", "original")]
    made.append(("pumer", {"positions": "packed"}))
    return [foveal.get(name, keep=KEEP, **options) for name, options in made]


def main() -> None:
    """Measure and append a row each."""
    model, processor = foveal.load()
    questions = SceneQuestions("test", 1000, seed=0)
    for method in variants():
        result = evaluate(model, processor, questions, method, batch_size=32)
        append_row(RESULT, result.row())
        print(method, result.accuracy)  # noqa: T201


if __name__ == "__main__":
    main()
