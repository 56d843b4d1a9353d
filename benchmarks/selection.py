"""What choosing tokens costs, as a share of a plain prefill, and what dropping them then saves: every method.

    python benchmarks/selection.py

One process, one thread, float32, random weights (speed does not depend on them): a LLaMA of hidden size 512 and 8
layers on 700 tokens, 576 of them visual, of which 64 are kept; methods with several layers at their default ones,
DivPrune at layer 0. Methods before the decoder run in a LLaVA with this decoder, whose CLIP tower has CLIP-L's width
and patches (336 / 14) and only 2 of its 24 layers, because neither tower nor projector is counted. Those that read the
question ask a text tower of CLIP-L's size about 16 tokens. With 2 layers ToMe cannot reach 64 tokens: of it, only the
matching is timed, as in the 23 blocks of CLIP-L that the features pass through.

"Selection" is all that is done to choose: observing attention and reading embeddings, PyramidDrop's norm and
projections of the layer that it asks ahead of time, scoring, choosing, and bookkeeping of what was chosen; "observing"
is the part of it that computes attention inside the decoder, which an eager forward would have at hand. "Text" is the
text tower and the projection of patches beside it, "other" what else the engine does: describing the inputs, gathering
rows and tables, merging what the method wants merged, putting rows back. "Forward" is all of it with the decoder.
Everything is a share of the plain decoder's forward of the same round, by the processor's clock (waiting for a busy
core does not count); medians over rounds. The bound is that forward with every layer priced by the rows it sees.

Peers' figures are published shares of a plain forward, here for 64 tokens; the ranges of DivPrune and CDPruner are
taken to go in a straight line from 64 tokens to 192.

Where CUDA is available, the same follows in bfloat16 at the shapes of LLaVA-1.5-7B, whole tower included; the clock
then waits for the device at every boundary, which is unkind to methods of many small steps. So far that part was never
run: no GPU was at hand.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import foveal
from foveal.compressors import TowerCompressor, method_class
from foveal.engine import hooks, tower
from foveal.evaluation.provenance import provenance

TOKENS, VISUAL, KEEP = 700, 576, 64
TEXT = TOKENS - VISUAL
SEVERAL = {"divprune": (64, 128, 192), "cdpruner": (64, 128, 192)}  # as many sequential steps as tokens kept
QUESTION, PATCH_WIDTH, SHARED, BLOCKS = 16, 1024, 768, 23
IMAGE, WORD, VOCABULARY = 5, 100, 32000
WARM = 3  # rounds
RESULT = Path(__file__).parent / "results" / "selection.json"

PEERS: dict[str, tuple[float, float]] = {  # shares of a plain forward at 64 and 192 tokens
    "dart": (0.007, 0.007),
    "fastv": (0.006, 0.006),
    "pyramiddrop": (0.075, 0.075),
    "sparsevlm": (0.014, 0.014),
    "visionzip": (0.008, 0.008),
    "divprune": (0.013, 0.053),
    "cdpruner": (0.013, 0.023),
}
PEER_FORWARDS = {"sparsevlm": 1.20}  # of the plain one


@dataclass(frozen=True)
class Shape:
    """A model, where it runs, and how often it is timed."""

    name: str
    width: int
    inner: int
    layers: int
    heads: int
    tower_layers: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    rounds: int = 40


SHAPES = [Shape("hidden 512, 8 layers, one thread", 512, 1376, 8, 8, tower_layers=2)]
if torch.cuda.is_available():
    SHAPES.append(Shape("LLaVA-1.5-7B", 4096, 11008, 32, 32, 24, "cuda", torch.bfloat16, 20))


@dataclass(frozen=True)
class Row:
    """A method's costs as shares of the plain forward, beside what peers published.

    Attributes:
        selection: all that is done to choose.
        observing: the part of it that computes attention in the decoder.
        text: the text tower.
        projection: patches brought into the space that they share with text.
        other: what else the engine adds.
        forward: decoder and all of these; None where only the choice is timed.
        bound: what the rows that every layer sees allow of it.
    """

    shape: str
    method: str
    keep: int
    selection: float
    observing: float
    peer: float | None
    text: float
    projection: float
    other: float
    forward: float | None
    peer_forward: float | None
    bound: float | None


class Stopwatch:
    """Splits the time of a call among the kinds of functions it passes; each moment counts for the innermost."""

    def __init__(self) -> None:
        self.clock: Callable[[], float] = time.thread_time
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._running = ["decoder"]
        self._since = 0.0

    def wrap(self, owner: Any, kind: str, *names: str) -> None:
        """Replace functions of `owner` by timed versions."""
        for name in names:
            setattr(owner, name, self._timed(getattr(owner, name), kind))

    def time(self, call: Callable[[], Any]) -> defaultdict[str, float]:
        """Seconds of a call by kind; "decoder" is what no wrapped function spent."""
        self.seconds, self._since = defaultdict(float), self.clock()
        call()
        self._switch()
        return self.seconds

    def _timed(self, function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._running.append(kind)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._running.pop()

        return timed

    def _switch(self) -> None:
        now = self.clock()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now


STOPWATCH = Stopwatch()


def install(llava: Any) -> None:
    """Time whatever a compressed forward does beside the decoder."""
    engine = ("_before_base", "_before_decoder", "_before_layer", "_context", "_physical", "_after_decoder")
    STOPWATCH.wrap(hooks.Hooks, "other", *engine)
    STOPWATCH.wrap(hooks.Hooks, "observing", "_observe", "_look")
    STOPWATCH.wrap(hooks.Hooks, "choosing", "_read")
    STOPWATCH.wrap(hooks, "choosing", "decide")
    STOPWATCH.wrap(tower.TowerStage, "other", "_before_tower", "_after_tower", "_context")
    STOPWATCH.wrap(tower, "other", "_kept_rows", "_spread")
    STOPWATCH.wrap(foveal.TextTower, "text", "embed")
    STOPWATCH.wrap(foveal.TextTower, "projection", "project")
    STOPWATCH.wrap(type(llava.model.vision_tower), "vision", "forward")
    STOPWATCH.wrap(type(llava.model.multi_modal_projector), "vision", "forward")
    for name in foveal.available():
        if "choose" in vars(method_class(name)):
            STOPWATCH.wrap(method_class(name), "choosing", "choose")


def device_clock() -> float:
    """The time at which the GPU has nothing left to do."""
    torch.cuda.synchronize()
    return time.perf_counter()


class Bench:
    """The models of one shape, and their inputs."""

    def __init__(self, shape: Shape) -> None:
        torch.manual_seed(0)
        self.shape = shape
        self.place: dict[str, Any] = {"device": shape.device, "dtype": shape.dtype}
        with torch.device(shape.device):
            self.llama = self._llama()
            self.llava = self._llava()
            self.text_tower = _text_tower()
        for model in (self.llama, self.llava, self.text_tower):
            model.eval().to(**self.place)
        self.embeds = torch.randn(1, TOKENS, shape.width, **self.place)
        ids = torch.randint(WORD, VOCABULARY, (1, TOKENS), device=shape.device)
        ids[:, 35 : 35 + VISUAL] = IMAGE
        self.visual = ids == IMAGE
        self.inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 336, 336, **self.place)}

    def plain(self, rows: int) -> None:
        """A prefill of the bare decoder."""
        self.llama(inputs_embeds=self.embeds[:, :rows], use_cache=False, logits_to_keep=1)

    def compressed(self, method: foveal.Compressor) -> tuple[defaultdict[str, float], foveal.Run]:
        """A prefill under a method, timed."""
        if not isinstance(method, TowerCompressor):
            with foveal.compress(self.llama, method, visual_mask=self.visual) as run:
                return STOPWATCH.time(partial(self.plain, TOKENS)), run
        text_tower = self.text_tower if method.needs_text else None
        with foveal.compress(self.llava, method, text_tower=text_tower) as run:
            run.questions = ["where is it?"]
            prefill = partial(self.llava, **self.inputs, use_cache=False, logits_to_keep=1)
            return STOPWATCH.time(prefill), run

    def matching(self, method: Any) -> defaultdict[str, float]:
        """What ToMe does to choose, in a whole tower."""
        left, seconds = VISUAL + 1, 0.0
        for removed in method.removals(VISUAL, BLOCKS):
            keys = torch.randn(1, left, PATCH_WIDTH // 16, **self.place)
            seconds += STOPWATCH.time(partial(method.match, keys, removed, True))["decoder"]
            left -= removed
        return defaultdict(float, choosing=seconds)

    def _llama(self) -> Any:
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=self.shape.width,
                intermediate_size=self.shape.inner,
                num_hidden_layers=self.shape.layers,
                num_attention_heads=self.shape.heads,
                vocab_size=VOCABULARY,
            )
        )

    def _llava(self) -> Any:
        """Shares the decoder."""
        vision = CLIPVisionConfig(
            hidden_size=PATCH_WIDTH,
            intermediate_size=4 * PATCH_WIDTH,
            num_hidden_layers=self.shape.tower_layers,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=self.llama.config,
            image_token_index=IMAGE,
            image_seq_length=VISUAL,
        )
        llava = LlavaForConditionalGeneration(config)
        llava.model.language_model, llava.lm_head = self.llama.model, self.llama.lm_head
        return llava


def _text_tower() -> foveal.TextTower:
    """CLIP-L's, which takes any text for the same tokens."""
    config = CLIPTextConfig(
        hidden_size=SHARED,
        intermediate_size=4 * SHARED,
        projection_dim=SHARED,
        num_hidden_layers=12,
        num_attention_heads=12,
        eos_token_id=_Tokenizer.eos_token_id,
    )
    text = CLIPTextModelWithProjection(config)
    clip = SimpleNamespace(
        text_model=text.text_model,
        text_projection=text.text_projection,
        visual_projection=nn.Linear(PATCH_WIDTH, SHARED, bias=False),
        vision_model=SimpleNamespace(post_layernorm=nn.LayerNorm(PATCH_WIDTH)),
    )
    return foveal.TextTower(clip, _Tokenizer(), None)


class _Tokenizer:
    eos_token_id = 2

    def __call__(self, texts: list[str], **_options: Any) -> dict[str, list[list[int]]]:
        """As many tokens for every text."""
        return {"input_ids": [[*range(WORD, WORD + QUESTION - 1), self.eos_token_id] for _ in texts]}


def rows_by_layer(run: foveal.Run, depth: int) -> tuple[int, ...]:
    """The rows that each layer saw."""
    rows = [TOKENS] * depth
    for stage in run.stages:
        rows[stage.layer :] = [TEXT + len(stage.kept[0])] * (depth - stage.layer)
    return tuple(rows)


def measure(shape: Shape) -> list[Row]:
    """All methods on one shape, timed in turns."""
    bench = Bench(shape)
    STOPWATCH.clock = time.thread_time if shape.device == "cpu" else device_clock
    install(bench.llava)
    methods = {
        (name, keep): foveal.get(name, keep=keep)
        for name in foveal.available()
        for keep in SEVERAL.get(name, (KEEP,))
    }
    seen = {
        case: rows_by_layer(bench.compressed(method)[1], shape.layers)
        for case, method in methods.items()
        if case[0] != "tome"
    }
    lengths = sorted({TOKENS}.union(*seen.values()))
    shares: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    prices: dict[int, list[float]] = defaultdict(list)
    for number in range(WARM + shape.rounds):
        plain = {rows: STOPWATCH.time(partial(bench.plain, rows))["decoder"] for rows in lengths}
        for case in random.sample(list(methods), len(methods)):
            method = methods[case]
            seconds = bench.matching(method) if case[0] == "tome" else bench.compressed(method)[0]
            seconds["forward"] = sum(seconds.values()) - seconds["vision"]
            seconds["selection"] = seconds["choosing"] + seconds["observing"]
            if number >= WARM:
                shares[case].append({kind: value / plain[TOKENS] for kind, value in seconds.items()})
        for rows, value in plain.items():
            prices[rows].append(value / plain[TOKENS])
    price = {rows: statistics.median(values[WARM:]) for rows, values in prices.items()}
    return [_row(shape, *case, shares[case], seen.get(case), price) for case in methods]


def _row(
    shape: Shape,
    name: str,
    keep: int,
    shares: list[dict[str, float]],
    seen: tuple[int, ...] | None,
    price: dict[int, float],
) -> Row:
    def median(kind: str) -> float:
        return statistics.median(share.get(kind, 0.0) for share in shares)

    ends = PEERS.get(name)
    return Row(
        shape=shape.name,
        method=name,
        keep=keep,
        selection=median("selection"),
        observing=median("observing"),
        peer=None if ends is None else ends[0] + (ends[1] - ends[0]) * (keep - 64) / 128,
        text=median("text"),
        projection=median("projection"),
        other=median("other"),
        forward=None if seen is None else median("forward"),
        peer_forward=PEER_FORWARDS.get(name),
        bound=None if seen is None else statistics.mean(price[rows] for rows in seen),
    )


def report(rows: list[Row]) -> None:
    """Print and save."""
    table = Table(box=None)
    heads = (
        "",
        "keep",
        "selection",
        "peer",
        "",
        "observing",
        "text",
        "other",
        "forward",
        "peer",
        "bound",
        "realised",
    )
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    last = ""
    for row in rows:
        if row.shape != last:
            table.add_row(f"\n[bold]{row.shape}[/bold]")
            last = row.shape
        table.add_row(
            f"  {row.method}",
            str(row.keep),
            f"{row.selection:.2%}",
            *(("", "") if row.peer is None else (f"{row.peer:.1%}", _verdict(row.selection, row.peer))),
            f"{row.observing:.2%}" if row.observing else "",
            f"{row.text + row.projection:.1%}" if row.text else "",
            f"{row.other:.2%}" if row.other else "",
            *map(_times, (row.forward, row.peer_forward, row.bound)),
            "" if row.forward is None or row.bound is None else f"{row.bound / row.forward:.0%}",
        )
    Console(width=130).print(table)
    setting = {
        "tokens": TOKENS,
        "visual": VISUAL,
        "question": QUESTION,
        "shapes": list(map(_described, SHAPES)),
    }
    result = {"setting": setting, "rows": [asdict(row) for row in rows], **provenance(seed=0)}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


def _verdict(share: float, peer: float) -> str:
    return "below" if share < peer else "ABOVE"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _described(shape: Shape) -> dict[str, Any]:
    return asdict(shape) | {"dtype": str(shape.dtype)}


def main() -> None:
    """Measure, print a table, and write the result file."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    random.seed(0)
    report([row for shape in SHAPES for row in measure(shape)])


if __name__ == "__main__":
    main()
