"""The same prompts side by side: plain transformers, compressed, and what is often run instead.

    python benchmarks/against_plain.py           # about two minutes on a CPU; on a GPU, LLaVA-1.5-7B's shape
    python benchmarks/against_plain.py --keep 128 --batch 1 8

Nothing but this repository is needed: weights are random, since speed does not depend on them. On a CPU the model is a
LLaVA of hidden size 512 and 6 layers behind a small tower; 576 visual and 60 text tokens.

| case | what it is |
|---|---|
| plain | transformers' `generate`, all tokens |
| dart, fastv, random, visionzip | under Foveal, tokens dropped |
| masked | tokens hidden by an attention mask from layer 2 on, not dropped, as several released codes do |
| plain, eager | plain, with eager attention |
| fastv, eager | FastV with eager attention, as its released code reads its scores |
| dart, one by one | Foveal, but one sample after the other, which most released codes are limited to |

Every case runs once a round, in random order. Results: `results/against_plain.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig
from transformers.utils import logging

import foveal
from foveal.cli.bench import progress_bar
from foveal.cli.bench_tables import print_report
from foveal.efficiency import Load
from foveal.efficiency.bench_report import record
from foveal.efficiency.measure import Case, measure
from foveal.efficiency.workload import Workload, of_model, workload
from foveal.evaluation import write_json
from shared import llava

LAYER = 2
RESULT = Path(__file__).parent / "results" / "against_plain.json"


def small() -> Any:
    """A LLaVA that a laptop runs in a second."""
    language = LlamaConfig(
        hidden_size=512, intermediate_size=1376, num_hidden_layers=6, num_attention_heads=8, vocab_size=32064
    )
    torch.manual_seed(0)
    return llava(
        language, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4
    )


def build(load: Load) -> Workload:
    """The small model on a CPU, LLaVA-1.5-7B's shape on a GPU."""
    if torch.cuda.is_available():
        name = "llava-hf/llava-1.5-7b-hf"
        return workload(name, load=load, random_weights=True, device="cuda", dtype=torch.bfloat16)
    return of_model(small(), name="LLaVA, hidden 512, 6 layers", load=load)


@contextmanager
def masking(first: int, last: int, model: nn.Module) -> Iterator[None]:
    """Hide the columns `first` to `last` from every layer on from `LAYER`."""
    masks: dict[tuple[int, int], torch.Tensor] = {}

    def hide(index: int, _layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        hidden = args[0]
        past = kwargs["past_key_values"].get_seq_length(index)
        size = (hidden.shape[1], past + hidden.shape[1])
        if size not in masks:
            mask = torch.ones(size, dtype=torch.bool, device=hidden.device).tril(past)
            mask[:, first:last] = False
            mask[first:last].fill_diagonal_(True)  # a row that sees nothing would be NaN
            masks[size] = mask[None, None]
        return args, {**kwargs, "attention_mask": masks[size]}

    layers: Any = model.get_decoder().layers  # type: ignore[operator]
    handles = [
        layer.register_forward_pre_hook(partial(hide, index), with_kwargs=True)
        for index, layer in enumerate(layers)
        if index >= LAYER
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def cases(work: Workload, keep: int) -> dict[str, foveal.Compressor | Case]:
    """What is run beside the plain model."""
    visual = work.shape.tile_tokens
    assert visual is not None
    first = int((work.sample["input_ids"][0] == work.model.config.image_token_id).nonzero()[0])
    fastv, dart = foveal.FastV(keep=keep, layer=LAYER), foveal.DART(keep=keep, layer=LAYER)
    return {
        "dart": dart,
        "fastv": fastv,
        "random": foveal.Random(keep=keep, layer=LAYER),
        "visionzip": foveal.VisionZip(keep=keep),
        "masked": Case(around=partial(masking, first + keep, first + visual)),
        "plain, eager": Case(attention="eager"),
        "fastv, eager": Case(fastv, attention="eager"),
        "dart, one by one": Case(dart, alone=True),
    }


def main() -> None:
    """Measure, print tables, and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=int, default=64, help="visual tokens kept of 576")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--answer", type=int, default=4, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of the CPU; torch's own choice by default")
    parser.add_argument(
        "--processor-time", action="store_true", help="where other programs disturb the clock"
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    logging.set_verbosity_error()
    if options.threads:
        torch.set_num_threads(options.threads)
    work = build(Load(batch=max(options.batch), answer=options.answer))
    with progress_bar() as progress:
        report = measure(
            work,
            cases(work, options.keep),
            batches=options.batch,
            rounds=options.rounds,
            processor_time=options.processor_time,
            progress=progress,
        )
    print_report(report)
    options.out.parent.mkdir(exist_ok=True)
    write_json(options.out, record(report))


if __name__ == "__main__":
    main()
