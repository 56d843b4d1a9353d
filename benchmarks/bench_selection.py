"""What choosing tokens costs, as a share of a plain prefill, and what dropping them then saves.

    python benchmarks/bench_selection.py

One process, one thread, random weights (speed does not depend on them): a LLaMA of hidden size 512 and 8 layers on
700 tokens, 576 of them visual, 64 kept from layer 2. Runs are interleaved; medians are reported. "Selection" is
observing layer 1, scoring and choosing; "all added" is everything that a plain forward does not do: selection,
describing the inputs, gathering rows and tables, putting rows back. The bound is the plain prefill with layers 2..7
priced by the rows they still see. A peer's DART selection, as published: 0.7 % of a plain forward.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import foveal
from foveal.engine import frame as frames
from foveal.engine import hooks
from foveal.evaluation.provenance import provenance

TOKENS, VISUAL, KEEP, LAYER, LAYERS, WIDTH = 700, 576, 64, 2, 8, 512
ROUNDS = 40
RESULT = Path(__file__).parent / "results" / "selection.json"


class Stopwatch:
    """Adds up the time spent in wrapped functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, owner: Any, name: str) -> None:
        """Replace owner.name by a timed version."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        setattr(owner, name, timed)


def build() -> tuple[Any, Tensor, Tensor]:
    """The model, its inputs (1, TOKENS, WIDTH), and which of them are visual."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=1376,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        vocab_size=32000,
    )
    visual = torch.zeros(1, TOKENS, dtype=torch.bool)
    visual[:, 35 : 35 + VISUAL] = True
    return LlamaForCausalLM(config).eval(), torch.randn(1, TOKENS, WIDTH), visual


def watches() -> tuple[Stopwatch, Stopwatch]:
    """Time the selection, and all that the engine adds."""
    selection, added = Stopwatch(), Stopwatch()
    selection.wrap(hooks, "decide")
    selection.wrap(hooks.Hooks, "_observe")
    added.wrap(hooks.Hooks, "_begin")
    added.wrap(hooks.Hooks, "_observe")
    added.wrap(hooks.Hooks, "_describe")
    added.wrap(frames.Stream, "translate")
    added.wrap(hooks, "restore")
    return selection, added


def timed(model: Any, embeds: Tensor) -> float:
    """Seconds of one prefill that computes the last token's logits."""
    start = time.perf_counter()
    model(inputs_embeds=embeds, use_cache=False, logits_to_keep=1)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print a table, and write the result file."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model, embeds, visual = build()
    selection, added = watches()
    methods = [foveal.get(name, keep=KEEP, layer=LAYER) for name in foveal.available()]
    short = embeds[:, : TOKENS - VISUAL + KEEP]
    times: dict[str, list[float]] = {"plain": [], "short": []}
    shares: dict[str, list[tuple[float, float]]] = {}
    for _ in range(ROUNDS + 3):
        times["plain"].append(timed(model, embeds))
        times["short"].append(timed(model, short))
        for method in methods:
            name = type(method).__name__
            with foveal.compress(model, method, visual_mask=visual):
                selection.seconds = added.seconds = 0.0
                times.setdefault(name, []).append(timed(model, embeds))
                plain = times["plain"][-1]
                shares.setdefault(name, []).append((selection.seconds / plain, added.seconds / plain))
    report(times, shares)


def report(times: dict[str, list[float]], shares: dict[str, list[tuple[float, float]]]) -> None:
    """Print and save medians over all rounds but the first three."""
    median = {name: statistics.median(values[3:]) for name, values in times.items()}
    bound = median["plain"] * LAYER / LAYERS + median["short"] * (LAYERS - LAYER) / LAYERS
    rows = {}
    table = Table("method", "prefill ms", "selection", "all added", "speed-up", "bound", "realised / bound")
    for name, values in shares.items():
        row = {
            "prefill_ms": median[name] * 1e3,
            "selection_share": statistics.median(selection for selection, _ in values[3:]),
            "added_share": statistics.median(added for _, added in values[3:]),
            "speedup": median["plain"] / median[name],
            "bound": median["plain"] / bound,
            "realised": bound / median[name],
        }
        rows[name] = row
        table.add_row(
            name,
            f"{row['prefill_ms']:.1f}",
            f"{row['selection_share']:.2%}",
            f"{row['added_share']:.2%}",
            f"{row['speedup']:.2f}x",
            f"{row['bound']:.2f}x",
            f"{row['realised']:.0%}",
        )
    Console().print(f"plain prefill {median['plain'] * 1e3:.1f} ms", table)
    setting = {
        "tokens": TOKENS,
        "visual": VISUAL,
        "keep": KEEP,
        "layer": LAYER,
        "layers": LAYERS,
        "hidden": WIDTH,
    }
    result = {"setting": setting, "plain_ms": median["plain"] * 1e3, "methods": rows, **provenance(seed=0)}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
