"""What the engine costs where it saves nothing: prefill, generate and decode steps under `compress`, beside the plain
model.

    python benchmarks/overhead.py

One process, one thread, float32, random weights: a LLaVA whose language model has hidden size 512 and 8 layers, on 700
tokens, 576 of them visual, batch 1 and four samples of unequal length; and its language model alone. Tokens are dropped
at layer 2. With keep = all nothing is saved, so whatever is added to the plain model is overhead.

Every round times every variant once, in random order, by the processor's clock: waiting for a busy core does not count.
What is reported is the median over rounds of the difference to the same round's plain model, as a share of it, with the
95 % interval of that median and the rounds' interquartile range; "plain again" is what the machine's noise alone makes
of it. "In hooks" is measured directly, so noise hardly touches it: all the time inside the engine's own functions.
The interval needs six rounds; of fewer it is the whole range.

A decode step with fewer keys is compared with a plain model that holds as many: layers 0..1 priced by the plain model
on 700 tokens, layers 2..7 by the plain model on 188. A static cache keeps all its slots, so there the plain model
itself holds as many.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

import foveal
from shared import IMAGE, STOPWATCH, VISUAL, WORD, Time, llava, prepare, save, under

TOKENS, KEEP, LAYER, LAYERS, WIDTH, INNER, VOCABULARY = 700, 64, 2, 8, 512, 1376, 32000
TEXT = TOKENS - VISUAL
TEXTS = {"batch 1": (TEXT,), "ragged 4": (TEXT, 96, 68, 40)}
PAD = 0
NEW = 32  # tokens that generate adds
LEAST, MOST, WARM = 4, 160, 1  # rounds
RESULT = Path(__file__).parent / "results" / "overhead.json"

Inputs = dict[str, Tensor]
Methods = dict[str, foveal.Compressor | None]


Times = dict[str, list[Time]]


@dataclass(frozen=True)
class Row:
    """A variant compared with a reference, round by round: medians, in seconds and in shares of the reference.

    Attributes:
        seconds: of the variant.
        added: difference to the reference.
        share: the same as a share, with its 95 % `interval`, and the interquartile `range` of the rounds.
        in_hooks: share spent inside the engine's functions.
        bound: the share that nothing can beat.
        per_layer: of a decode step, the difference per hooked layer.
    """

    setting: str
    variant: str
    rounds: int
    seconds: float
    added: float
    share: float
    interval: tuple[float, float]
    range: float
    in_hooks: float
    bound: float
    per_layer: float | None = None


class Decoding:
    """A sequence that is decoded step by step."""

    def __init__(self, model: Any, inputs: Inputs, method: foveal.Compressor | None, *, static: bool) -> None:
        self.model, self.method, self.mask = model, method, inputs["attention_mask"]
        config = model.config.get_text_config()
        self.cache = (
            StaticCache(config=config, max_cache_len=self.mask.shape[1] + MOST + WARM)
            if static
            else DynamicCache(config=config)
        )
        with under(model, method):
            model(**inputs, past_key_values=self.cache, logits_to_keep=1)

    def step(self) -> Time:
        """Add one token."""
        self.mask = pad(self.mask, (0, 1), value=1)
        inputs = {"input_ids": torch.full((self.mask.shape[0], 1), WORD), "attention_mask": self.mask}
        with under(self.model, self.method):
            return STOPWATCH.time(lambda: self.model(**inputs, past_key_values=self.cache, logits_to_keep=1))


def language_config() -> LlamaConfig:
    """The language model."""
    return LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        vocab_size=VOCABULARY,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=None,
    )


def build_llava() -> Any:
    """A LLaVA that never stops early."""
    model = llava(language_config())
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def prompts(texts: tuple[int, ...], visual: int = VISUAL) -> Inputs:
    """Left-padded samples of one image each, all of words where `visual` is no whole image."""
    words = [torch.randint(WORD, VOCABULARY, (length + visual,)) for length in texts]
    if visual == VISUAL:
        for ids in words:
            ids[35 : 35 + visual] = IMAGE
    room = max(map(len, words))
    inputs = {
        "input_ids": torch.stack([pad(ids, (room - len(ids), 0), value=PAD) for ids in words]),
        "attention_mask": torch.stack([pad(torch.ones_like(ids), (room - len(ids), 0)) for ids in words]),
    }
    return inputs | ({"pixel_values": torch.randn(len(texts), 3, 336, 336)} if visual == VISUAL else {})


PLAIN: Methods = {"plain": None, "plain again": None}
WHOLE: Methods = {
    f"{name}, keep = all": foveal.get(name, keep=1.0, layer=LAYER) for name in ("random", "fastv", "dart")
}
LESS = f"dart, keep = {KEEP}"
EVERY: Methods = {**PLAIN, **WHOLE, LESS: foveal.DART(keep=KEEP, layer=LAYER)}
COSTLIEST: Methods = {**PLAIN, "dart, keep = all": WHOLE["dart, keep = all"]}


def rounds(calls: dict[str, Callable[[], Time]], seconds: float) -> Times:
    """Time every call once a round for about this long."""
    times: Times = {name: [] for name in calls}
    names, end = list(calls), time.perf_counter() + seconds
    while (done := len(times[names[0]])) < MOST + WARM:
        if done >= LEAST + WARM and time.perf_counter() > end:
            break
        for name in random.sample(names, len(names)):
            times[name].append(calls[name]())
    return {name: values[WARM:] for name, values in times.items()}


def compare(setting: str, variant: str, values: list[Time], reference: list[float], bound: float = 0) -> Row:
    """Summarise paired rounds."""
    added = sorted(value.total - other for value, other in zip(values, reference, strict=True))
    usual, count = statistics.median(reference), len(added)
    # The sign test's interval: between these two order statistics.
    low = max(round(count / 2 - 0.98 * count**0.5), 0)
    quartiles = statistics.quantiles(added, n=4)
    return Row(
        setting,
        variant,
        rounds=count,
        seconds=statistics.median(value.total for value in values),
        added=statistics.median(added),
        share=statistics.median(added) / usual,
        interval=(added[low] / usual, added[count - 1 - low] / usual),
        range=(quartiles[2] - quartiles[0]) / usual,
        in_hooks=statistics.median(value.in_hooks for value in values) / usual,
        bound=bound,
    )


def prefill_bound(*, padded: bool) -> float:
    """What dropping tokens can take off the language model's prefill, by its FLOPs.

    Attention skips the upper half of Q K' and of P V, unless padding needs a mask.
    """

    def layer(rows: int) -> float:
        return rows * (4 * WIDTH**2 + 3 * WIDTH * INNER) + rows**2 * WIDTH * (2 if padded else 1)

    head = VOCABULARY * WIDTH
    plain = LAYERS * layer(TOKENS) + head
    less = LAYER * layer(TOKENS) + (LAYERS - LAYER) * layer(TEXT + KEEP) + head
    return less / plain - 1


def prefill(setting: str, model: Any, inputs: Inputs, mask: Tensor | None, seconds: float) -> list[Row]:
    """Prefills without a cache that compute the last row's logits."""

    def call(method: foveal.Compressor | None) -> Time:
        with under(model, method, mask):
            return STOPWATCH.time(lambda: model(**inputs, use_cache=False, logits_to_keep=1))

    padded = not inputs.get("attention_mask", torch.ones(())).all()
    bounds = {LESS: prefill_bound(padded=padded)}
    return against_plain(setting, call, EVERY, seconds, bounds)


def generate(setting: str, model: Any, inputs: Inputs, seconds: float) -> list[Row]:
    """Greedy generation."""

    def call(method: foveal.Compressor | None) -> Time:
        with under(model, method):
            return STOPWATCH.time(lambda: model.generate(**inputs, max_new_tokens=NEW, do_sample=False))

    return against_plain(setting, call, COSTLIEST, seconds, {})


def against_plain(
    setting: str,
    call: Callable[[Any], Time],
    methods: Methods,
    seconds: float,
    bounds: dict[str, float],
) -> list[Row]:
    """Compare every method with the plain model."""
    times = rounds({name: partial(call, method) for name, method in methods.items()}, seconds)
    plain = totals(times["plain"])
    return [compare(setting, name, values, plain, bounds.get(name, 0)) for name, values in times.items()]


def totals(times: list[Time]) -> list[float]:
    """Whether inside hooks or not."""
    return [time.total for time in times]


def decode(setting: str, model: Any, texts: tuple[int, ...], seconds: float, *, static: bool) -> list[Row]:
    """Single steps, each behind a cache of its own."""
    inputs = prompts(texts)
    calls: dict[str, Callable[[], Time]] = {
        name: Decoding(model, inputs, method, static=static).step for name, method in EVERY.items()
    }
    calls["short"] = Decoding(model, prompts(texts, KEEP), None, static=static).step
    times = rounds(calls, seconds)
    short, plain = totals(times.pop("short")), totals(times["plain"])
    as_many = plain if static else list(map(mixed, plain, short))
    bounds = {LESS: statistics.median(as_many) / statistics.median(plain) - 1}
    rows = [compare(setting, name, values, plain, bounds.get(name, 0)) for name, values in times.items()]
    if not static:
        rows.append(compare(setting, f"{LESS}, to as many keys", times[LESS], as_many))
    return [replace(row, per_layer=row.added / (LAYERS - LAYER)) for row in rows]


def mixed(before: float, after: float) -> float:
    """A forward whose layers cost this much before and after tokens are dropped."""
    return (LAYER * before + (LAYERS - LAYER) * after) / LAYERS


def measure() -> list[Row]:
    """All settings; about four minutes."""
    language, inputs = LlamaForCausalLM(language_config()).eval(), prompts(TEXTS["batch 1"])
    embeds = {"inputs_embeds": torch.randn(1, TOKENS, WIDTH)}
    rows = prefill("prefill, language model", language, embeds, inputs["input_ids"] == IMAGE, 25)
    llava = build_llava()
    for name, texts in TEXTS.items():
        rows += prefill(f"prefill, {name}", llava, prompts(texts), None, 20)
    for name, texts in TEXTS.items():
        rows += generate(f"generate {NEW}, {name}", llava, prompts(texts), 15)
    for static in (False, True):
        for name, texts in TEXTS.items():
            kind = "static" if static else "dynamic"
            rows += decode(f"decode step, {kind} cache, {name}", llava, texts, 8, static=static)
    return rows


def report(rows: list[Row]) -> None:
    """Print and save."""
    table = Table(box=None)
    for name in ("", "ms", "added %", "95 %", "IQR %", "in hooks %", "bound %", "µs/layer", "rounds"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    last = ""
    for row in rows:
        if row.setting != last:
            table.add_row(f"\n[bold]{row.setting}[/bold]")
            last = row.setting
        table.add_row(
            f"  {row.variant}",
            f"{row.seconds * 1e3:.2f}",
            f"{row.share * 100:+.2f}",
            "{:+.2f} .. {:+.2f}".format(*(100 * end for end in row.interval)),
            f"{row.range * 100:.2f}",
            f"{row.in_hooks * 100:.2f}",
            f"{row.bound * 100:.1f}",
            "" if row.per_layer is None else f"{row.per_layer * 1e6:+.0f}",
            str(row.rounds),
        )
    Console(width=130).print(table)
    setting = {
        "tokens": TOKENS,
        "visual": VISUAL,
        "texts": TEXTS,
        "layer": LAYER,
        "layers": LAYERS,
        "hidden": WIDTH,
        "new_tokens": NEW,
    }
    save(RESULT, {"setting": setting, "rows": [asdict(row) for row in rows]})


def main() -> None:
    """Measure, print a table, and write the result file."""
    prepare()
    report(measure())


if __name__ == "__main__":
    main()
