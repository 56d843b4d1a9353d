"""What a training step of EPIC costs, beside plain fine-tuning and beside teacher and student in two forwards.

    python benchmarks/train_step.py

One process, one thread, float32, random weights: a LLaVA of 12 layers, hidden size 512, vocabulary 32,000, on 576
visual and 60 text tokens, 30 of them answers. A step is forward, backward and AdamW; the vision tower is frozen.

- plain: all tokens, as Trainer does it: logits of every row.
- EPIC: `foveal.distillation.distil`, teacher and student in lock-step, logits of answers only.
- two forwards: the teacher's, then the student's, each with its own vision tower and the logits of every row, the loss
  over all rows in float32 and masked behind it, as the authors' code does. Both forwards are compressed by Foveal: the
  authors' own loops over samples and pivots would take longer.

Every round draws a plan at the middle of each of `POINTS` equal parts of the schedule, and takes one step of each kind
by it, in random order, by the processor's clock: waiting for a busy core does not count. A round's cost is the sum over
the schedule; reported are medians over rounds and their range, relative to the same round's plain steps. FLOPs are
those that torch counts (matrix products and attention) in the first round; a bound is what they allow.

Peak memory is the largest resident set of a process of its own that takes steps of one kind along the schedule, less
what it held before the first. "Gain" is how many times faster a step is than one in two forwards.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import foveal
from foveal.distillation import (
    LayerSchedule,
    Plan,
    Schedule,
    TokenSchedule,
    cross_entropy,
    distil,
    forward_kl,
)
from foveal.evaluation.provenance import provenance

WIDTH, LAYERS, VOCABULARY, VISUAL, TEXT, ANSWERS = 512, 12, 32000, 576, 60, 30
IMAGE, WORD, WEIGHT = 5, 100, 0.7
POINTS, ROUNDS = 8, 5
RESULT = Path(__file__).parent / "results" / "train_step.json"
SCHEDULES: dict[str, Schedule] = {"TCD": TokenSchedule(), "LCD": LayerSchedule(LAYERS)}

Inputs = dict[str, Tensor]
Step = Callable[[Any, Inputs, Tensor, Plan], Tensor]


def build() -> Any:
    """The model, its tower frozen and about a twentieth of the work, as in LLaVA-1.5-7B."""
    torch.manual_seed(0)
    text = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=1376,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=VOCABULARY,
    )
    vision = CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, image_seq_length=VISUAL
    )
    model = LlavaForConditionalGeneration(config).train()
    model.model.vision_tower.requires_grad_(False)
    return model


def batch(size: int) -> tuple[Inputs, Tensor]:
    """Samples of one image and as many words, the last of them answers."""
    words = torch.randint(WORD, VOCABULARY, (size, TEXT))
    ids = torch.cat([words[:, :10], torch.full((size, VISUAL), IMAGE), words[:, 10:]], dim=1)
    labels = ids.clone()
    labels[:, :-ANSWERS] = -100
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | {"pixel_values": torch.randn(size, 3, 336, 336)}, labels


def plain(model: Any, inputs: Inputs, labels: Tensor, _plan: Plan) -> Tensor:
    """Ordinary fine-tuning at all tokens."""
    loss: Tensor = model(**inputs, labels=labels, use_cache=False).loss
    return loss


def epic(model: Any, inputs: Inputs, labels: Tensor, plan: Plan) -> Tensor:
    """Foveal's step."""
    supervised, distilled = distil(model, inputs, labels, *methods(plan))
    return weighted(supervised.mean(), None if distilled is None else distilled.mean())


def two_forwards(model: Any, inputs: Inputs, labels: Tensor, plan: Plan) -> Tensor:
    """The textbook step, as the authors' code takes it."""
    student, teacher = methods(plan)
    told = None
    if teacher is not None:
        with torch.no_grad(), foveal.compress(model, teacher):
            told = model(**inputs, labels=labels, use_cache=False).logits.float()
    with foveal.compress(model, student):
        said = model(**inputs, labels=labels, use_cache=False).logits.float()
    targets = labels[:, 1:].flatten()
    rows = said[:, :-1].flatten(0, 1)
    answers = targets != -100
    supervised = cross_entropy(rows, targets.clamp(min=0))[answers].mean()
    if told is None:
        return supervised
    return weighted(supervised, forward_kl(rows, told[:, :-1].flatten(0, 1))[answers].mean())


def weighted(supervised: Tensor, distilled: Tensor | None) -> Tensor:
    """EPIC's loss."""
    return supervised if distilled is None else (1 - WEIGHT) * supervised + WEIGHT * distilled


def methods(plan: Plan) -> tuple[foveal.Compressor, foveal.Compressor | None]:
    """Student and teacher of a plan."""
    layer = 2 if plan.layer is None else plan.layer
    student = foveal.DART(keep=plan.student, layer=layer)
    return student, None if plan.teacher is None else foveal.DART(keep=plan.teacher, layer=layer)


KINDS: dict[str, Step] = {"plain": plain, "EPIC": epic, "two forwards": two_forwards}


def plans(schedule: Schedule, number: int) -> list[Plan]:
    """One plan for each part of the schedule."""
    times = [(point + 0.5) / POINTS for point in range(POINTS)]
    return [schedule.plan(t, random.Random(f"{t}/{number}")) for t in times]


class Bench:
    """A model, a batch, and an optimizer to take steps with."""

    def __init__(self, size: int) -> None:
        self.model = build()
        self.inputs, self.labels = batch(size)
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, lr=1e-5)

    def take(self, kind: str, plan: Plan) -> None:
        """One step."""
        self.optimizer.zero_grad(set_to_none=True)
        KINDS[kind](self.model, self.inputs, self.labels, plan).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def seconds(self, kind: str, plan: Plan) -> float:
        """Of one step."""
        start = time.process_time()
        self.take(kind, plan)
        return time.process_time() - start

    def flops(self, kind: str, plan: Plan) -> float:
        """Of one step."""
        with FlopCounterMode(display=False) as counter:
            self.take(kind, plan)
        return float(counter.get_total_flops())


def along(measure: Callable[[str, Plan], float], schedule: Schedule, number: int) -> dict[str, float]:
    """The sum over the schedule of what a step of each kind takes."""
    total = dict.fromkeys(KINDS, 0.0)
    for plan in plans(schedule, number):
        for kind in random.Random(f"{plan}").sample(list(KINDS), len(KINDS)):
            total[kind] += measure(kind, plan)
    return total


def peak_memory(kind: str, name: str, size: int) -> float:
    """MB that a process of its own needs for steps of this kind, above what it held before."""
    command = [sys.executable, __file__, "--memory", kind, name, "--batch-size", str(size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(kind: str, name: str, size: int) -> float:
    """The same, in the process itself (Linux)."""
    bench = Bench(size)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far; getrusage would keep the parent's
    before = resident("VmRSS")
    for plan in plans(SCHEDULES[name], 0):
        bench.take(kind, plan)
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """MB of memory that this process holds (VmRSS), or has held (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def compare(bench: Bench, name: str, rounds: int, size: int) -> list[dict[str, Any]]:
    """One row for each kind of step."""
    schedule = SCHEDULES[name]
    for kind in KINDS:  # warm-up
        bench.take(kind, plans(schedule, 0)[-1])
    flops = along(bench.flops, schedule, 0)
    totals = [along(bench.seconds, schedule, number) for number in range(rounds)]
    rows = []
    for kind in KINDS:
        relative = [total[kind] / total["plain"] for total in totals]
        gain = [total["two forwards"] / total[kind] for total in totals]
        rows.append(
            {
                "schedule": name,
                "step": kind,
                "median_seconds": statistics.median(total[kind] / POINTS for total in totals),
                "relative_to_plain": statistics.median(relative),
                "range": [min(relative), max(relative)],
                "bound_by_flops": flops[kind] / flops["plain"],
                "faster_than_two_forwards": statistics.median(gain),
                "peak_memory_mb": peak_memory(kind, name, size),
            }
        )
    return rows


def report(rows: list[dict[str, Any]], setting: dict[str, Any]) -> None:
    """Print and save."""
    table = Table("", "step", "s", "x plain", "range", "by FLOPs", "gain", "peak MB", box=None)
    for row in rows:
        low, high = row["range"]
        table.add_row(
            row["schedule"],
            row["step"],
            f"{row['median_seconds']:.2f}",
            f"{row['relative_to_plain']:.2f}",
            f"{low:.2f}..{high:.2f}",
            f"{row['bound_by_flops']:.2f}",
            f"{row['faster_than_two_forwards']:.2f}",
            f"{row['peak_memory_mb']:.0f}",
        )
    Console().print(table)
    RESULT.write_text(json.dumps({"setting": setting, "rows": rows, **provenance(seed=0)}, indent=2) + "\n")


def main() -> None:
    """Measure, print a table, and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--memory", nargs=2, metavar=("KIND", "SCHEDULE"), help="only this, printed in MB")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print(measure_memory(*options.memory, options.batch_size))
        return
    bench = Bench(options.batch_size)
    measured = partial(compare, bench, rounds=options.rounds, size=options.batch_size)
    rows = [row for name in SCHEDULES for row in measured(name)]
    setting = {
        "hidden": WIDTH,
        "layers": LAYERS,
        "vocabulary": VOCABULARY,
        "visual": VISUAL,
        "text": TEXT,
        "answers": ANSWERS,
        "batch": options.batch_size,
        "rounds": options.rounds,
        "points": POINTS,
        "dtype": "float32",
    }
    report(rows, setting)


if __name__ == "__main__":
    main()
