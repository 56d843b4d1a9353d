"""How much of what dropping tokens can save is really saved: a prefill against the bound of its own layers' timings.

    python benchmarks/prefill.py

One process, one thread, float32, random weights (speed does not depend on them): a LLaVA whose language model has
hidden size 1024 and 16 layers, on 576 visual and 60 text tokens, batch 1 and 4. From layer 2 on, 64 visual tokens are
left.

Every round times the plain model, the same language model on 124 tokens, and every method once, in random order, by the
processor's clock: waiting for a busy core does not count. In the first two, every decoder layer is timed by itself. The
bound is the plain model's forward with its layers 2 to 15 replaced by those of the short one: nothing that leaves the
first two layers as they are can be faster. "Realised" is the plain time over the compressed, "of bound" the same over
the bound's; "selection" is all the time inside the engine's own functions, gathers and putting rows back included, as a
share of the plain forward. Medians over rounds, with the range of "of bound". The bound by FLOPs is the number of those
that torch counts in the plain forward, over those in the compressed one.

The tower is timed apart, at the size of CLIP-L: LLaVA takes its features from the last layer but one, and under
compression the last does not run.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

import foveal
from shared import IMAGE, STOPWATCH, VISUAL, WORD, Time, llava, prepare, save, under

TEXT, KEEP, LAYER, LAYERS, WIDTH, INNER, HEADS, VOCABULARY = 60, 64, 2, 16, 1024, 2752, 16, 32000
BATCHES = {1: 5, 4: 3}  # and how many rounds
TOWER = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
TOWER_ROUNDS = 2
METHODS = {name: foveal.get(name, keep=KEEP, layer=LAYER) for name in ("dart", "fastv", "random")}
RESULT = Path(__file__).parent / "results" / "prefill.json"

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """A method beside the plain model, medians over rounds.

    Attributes:
        plain: seconds.
        compressed: seconds.
        realised: speed-up, plain / compressed.
        bound: the speed-up that the layers' own timings allow.
        flops: the speed-up by FLOPs.
        of_bound: realised / bound, round by round, with the range of the rounds.
        selection: seconds inside the engine's functions, as a share of the plain forward.
    """

    batch: int
    method: str
    rounds: int
    plain: float
    compressed: float
    realised: float
    bound: float
    flops: float
    of_bound: float
    range: tuple[float, float]
    selection: float


@dataclass(frozen=True)
class Tower:
    """Seconds of the tower's layers for one image, all of them and as compression leaves them."""

    whole: float
    early: float
    saved: float


@contextmanager
def timed(modules: list[Any]) -> Iterator[list[float]]:
    """Collect the seconds of each module's forward, in the order in which they run."""
    seconds: list[float] = []

    def timing(forward: Callable[..., Any]) -> Callable[..., Any]:
        def timed_forward(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            made = forward(*args, **kwargs)
            seconds.append(time.thread_time() - start)
            return made

        return timed_forward

    for module in modules:
        module.forward = timing(module.forward)
    try:
        yield seconds
    finally:
        for module in modules:
            del module.forward


def language(layers: int, width: int, inner: int, heads: int) -> LlamaConfig:
    """The language model."""
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=VOCABULARY,
    )


def prompt(batch: int, visual: int = VISUAL) -> Inputs:
    """Samples of one length, with an image each, or with words in place of `visual` tokens of it."""
    ids = torch.randint(WORD, VOCABULARY, (batch, TEXT + visual))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if visual == VISUAL:
        ids[:, 35 : 35 + visual] = IMAGE
        inputs["pixel_values"] = torch.randn(batch, 3, 336, 336)
    return inputs


def forward(model: Any, inputs: Inputs, method: foveal.Compressor | None = None) -> None:
    """A prefill up to the last row's logits."""
    with under(model, method):
        model(**inputs, use_cache=False, logits_to_keep=1)


class Bench:
    """One batch size."""

    def __init__(self, model: Any, batch: int) -> None:
        self.model = model
        self.layers: list[nn.Module] = list(model.get_decoder().layers)
        self.whole, self.short = prompt(batch), prompt(batch, KEEP)
        self.rounds: list[dict[str, tuple[Time, list[float]]]] = []

    def round(self) -> None:
        """Everything once."""
        calls: dict[str, Callable[[], tuple[Time, list[float]]]] = {
            "plain": partial(self._by_layer, self.whole),
            "short": partial(self._by_layer, self.short),
            **{name: partial(self._compressed, method) for name, method in METHODS.items()},
        }
        self.rounds.append({name: calls[name]() for name in random.sample(list(calls), len(calls))})

    def _by_layer(self, inputs: Inputs) -> tuple[Time, list[float]]:
        with timed(self.layers) as seconds:
            total = STOPWATCH.time(lambda: forward(self.model, inputs))
        return total, seconds

    def _compressed(self, method: foveal.Compressor) -> tuple[Time, list[float]]:
        return STOPWATCH.time(lambda: forward(self.model, self.whole, method)), []

    def rows(self, batch: int, flops: dict[str, int]) -> list[Row]:
        """What the rounds behind the first, which warms up, have shown."""
        rounds = self.rounds[1:]
        plain = [done["plain"][0].total for done in rounds]
        bounds = [
            done["plain"][0].total - sum(done["plain"][1][LAYER:]) + sum(done["short"][1][LAYER:])
            for done in rounds
        ]
        found = []
        for name in METHODS:
            times = [done[name][0] for done in rounds]
            of_bound = [bound / taken.total for bound, taken in zip(bounds, times, strict=True)]
            found.append(
                Row(
                    batch=batch,
                    method=name,
                    rounds=len(rounds),
                    plain=statistics.median(plain),
                    compressed=statistics.median(taken.total for taken in times),
                    realised=statistics.median(p / t.total for p, t in zip(plain, times, strict=True)),
                    bound=statistics.median(p / b for p, b in zip(plain, bounds, strict=True)),
                    flops=flops["plain"] / flops[name],
                    of_bound=statistics.median(of_bound),
                    range=(min(of_bound), max(of_bound)),
                    selection=statistics.median(t.in_hooks / p for p, t in zip(plain, times, strict=True)),
                )
            )
        return found


def count_flops(model: Any) -> dict[str, int]:
    """Of one sample's prefill; the ratio is the same in every batch."""
    counts = {}
    for name, method in {"plain": None, **METHODS}.items():
        with FlopCounterMode(display=False) as counter:
            forward(model, prompt(1), method)
        counts[name] = counter.get_total_flops()
    return counts


def measure_tower() -> Tower:
    """The tower's layers with and without a method, around a decoder too small to matter."""
    model, inputs = llava(language(LAYER + 1, 64, 64, 2), **TOWER), prompt(1)
    method = METHODS["random"]
    taken: dict[str, list[float]] = {"whole": [], "early": []}
    for _ in range(TOWER_ROUNDS + 1):
        for name in random.sample(list(taken), 2):
            with timed([model.base_model.vision_tower.encoder]) as seconds:
                forward(model, inputs, method if name == "early" else None)
            taken[name] += seconds
    whole, early = taken["whole"][1:], taken["early"][1:]
    saved = statistics.median(1 - e / w for e, w in zip(early, whole, strict=True))
    return Tower(statistics.median(whole), statistics.median(early), saved)


def measure() -> tuple[list[Row], Tower]:
    """All of it; under three minutes on an idle core."""
    rows: list[Row] = []
    steps = sum(count + 1 for count in BATCHES.values()) + 2
    bar = Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=Console(stderr=True))
    with bar:
        task = bar.add_task("prefill", total=steps)
        model = llava(language(LAYERS, WIDTH, INNER, HEADS))
        flops = count_flops(model)
        bar.advance(task)
        for batch, count in BATCHES.items():
            bench = Bench(model, batch)
            for _ in range(count + 1):
                bench.round()
                bar.advance(task)
            rows += bench.rows(batch, flops)
        tower = measure_tower()
        bar.advance(task)
    return rows, tower


def report(rows: list[Row], tower: Tower) -> None:
    """Print and save."""
    table = Table(box=None)
    names = (
        "batch",
        "method",
        "plain s",
        "less s",
        "realised",
        "bound",
        "FLOPs",
        "of bound",
        "range",
        "selection",
    )
    for name in (*names, "rounds"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row.batch),
            row.method,
            f"{row.plain:.3f}",
            f"{row.compressed:.3f}",
            f"{row.realised:.2f}x",
            f"{row.bound:.2f}x",
            f"{row.flops:.2f}x",
            f"{row.of_bound:.3f}",
            "{:.3f} .. {:.3f}".format(*row.range),
            f"{row.selection * 100:.2f} %",
            str(row.rounds),
        )
    console = Console(width=120)
    console.print(table)
    console.print(
        f"\nCLIP-L's layers: {tower.whole:.2f} s, {tower.early:.2f} s without the last ({tower.saved:.1%} less)"
    )
    setting = {
        "visual": VISUAL,
        "text": TEXT,
        "keep": KEEP,
        "layer": LAYER,
        "layers": LAYERS,
        "hidden": WIDTH,
        "intermediate": INNER,
        "heads": HEADS,
        "tower": TOWER,
    }
    save(RESULT, {"setting": setting, "rows": [asdict(row) for row in rows], "tower": asdict(tower)})


def main() -> None:
    """Measure, print a table, and write the result file."""
    prepare()
    report(*measure())


if __name__ == "__main__":
    main()
