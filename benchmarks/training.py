"""What a training step costs: EPIC in lock-step, beside plain fine-tuning and the two-forward formulation.

    python benchmarks/training.py

One process, one thread, the bundled model's shape, 16 samples of 144 visual and about 60 text tokens. Each round takes
one step of each kind, forward and backward, at the same progress; medians over rounds at t = 0, 0.25, ... 1. Plain
fine-tuning sees all tokens and computes all logits, as Trainer does; the two-forward formulation runs the teacher and
the student one after the other with full logits, as the authors' code does.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import foveal
from foveal.distillation import Plan, ProgressiveSchedule, VisionCollator, cross_entropy, forward_kl, lockstep
from foveal.evaluation.provenance import provenance
from foveal.mini import SceneConversations

ROUNDS, BATCH, TURNS = 5, 16, 4
RESULT = Path(__file__).parent / "results" / "training.json"

Inputs = dict[str, Tensor]


def loss_of(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """EPIC's loss at lambda 0.7."""
    return (0.3 * cross_entropy(student, targets) + 0.7 * forward_kl(student, teacher)).mean()


def plain(model: Any, inputs: Inputs, labels: Tensor, _plan: Plan) -> Tensor:
    """Ordinary fine-tuning at all tokens."""
    loss: Tensor = model(**inputs, labels=labels, use_cache=False).loss
    return loss


def in_lockstep(model: Any, inputs: Inputs, labels: Tensor, plan: Plan) -> Tensor:
    """Foveal's step."""
    student, teacher = methods(plan)
    with lockstep(model, student, teacher, labels):
        logits = model(**inputs, use_cache=False).logits
    return loss_of(*logits, labels[:, 1:][labels[:, 1:] != -100])


def two_forwards(model: Any, inputs: Inputs, labels: Tensor, plan: Plan) -> Tensor:
    """The textbook step."""
    student, teacher = methods(plan)
    answers = labels[:, 1:] != -100
    with torch.no_grad(), foveal.compress(model, teacher):
        told = model(**inputs, labels=labels, use_cache=False).logits
    with foveal.compress(model, student):
        said = model(**inputs, labels=labels, use_cache=False).logits
    return loss_of(said[:, :-1][answers], told[:, :-1][answers], labels[:, 1:][answers])


def methods(plan: Plan) -> tuple[foveal.Compressor, foveal.Compressor]:
    """Student and teacher of a plan."""
    assert plan.teacher is not None
    return foveal.DART(keep=plan.student), foveal.DART(keep=plan.teacher)


def timed(step: Callable[..., Tensor], model: Any, *arguments: Any) -> float:
    """Seconds of one forward and backward."""
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    step(model, *arguments).backward()
    return time.perf_counter() - start


def main() -> None:
    """Measure, print a table, and write the result file."""
    torch.set_num_threads(1)
    model, processor = foveal.load()
    model.train()
    samples = SceneConversations("train", BATCH, turns=TURNS)
    inputs = VisionCollator(processor)([samples[index] for index in range(BATCH)])
    labels = inputs.pop("labels")
    steps = {
        "plain fine-tuning": plain,
        "EPIC in lock-step": in_lockstep,
        "EPIC in two forwards": two_forwards,
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for t in (0.0, 0.0, 0.25, 0.5, 0.75, 1.0):  # the first is warm-up
        for number in range(ROUNDS):
            plan = ProgressiveSchedule().plan(t, random.Random(f"{t}/{number}"))
            for name, step in steps.items():
                times[name].append(timed(step, model, inputs, labels, plan))
    report({name: values[ROUNDS:] for name, values in times.items()}, inputs["input_ids"].shape[1])


def report(times: dict[str, list[float]], rows: int) -> None:
    """Print and save the medians, and each kind's cost relative to plain fine-tuning, round by round."""
    reference = times["plain fine-tuning"]
    table = Table("step", "ms", "relative to plain", "samples/s")
    result: dict[str, Any] = {}
    for name, values in times.items():
        ratio = statistics.mean(values) / statistics.mean(reference)
        milliseconds = statistics.median(values) * 1e3
        rate = BATCH / statistics.mean(values)
        result[name] = {"median_ms": milliseconds, "relative": ratio, "samples_per_second": rate}
        table.add_row(name, f"{milliseconds:.0f}", f"{ratio:.2f}x", f"{rate:.1f}")
    Console().print(f"{BATCH} samples of {rows} tokens, averaged over the TCD schedule", table)
    setting = {"batch": BATCH, "rows": rows, "rounds": ROUNDS, "model": "bundled"}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(
        json.dumps({"setting": setting, "steps": result, **provenance(seed=0)}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
