"""What lmms-eval and all that is around the model cost, and how much of a compressed model's gain is left of it.

    .venv-eval/bin/python benchmarks/suite.py            # the bundled model, on a CPU
    .venv-eval/bin/python benchmarks/suite.py --large    # LLaVA-1.5-7B's shapes in bfloat16, on a GPU of 24 GB

`run_suite` on scenes in POPE's file format, uncompressed and compressed, in random order, `ROUNDS` times. The model's
time is that of its `generate` calls, decoding included, within the very same run. Preparing is reading pictures, the
processor's work and prompts, which happens in the background while the model works on the batch before. Overhead is all
the rest: lmms-eval's requests and scores, and Foveal's accounts. Reported are medians over rounds.

On a CPU it is the processor's clock that counts, with one thread: waiting for a busy core does not. On a GPU it is the
wall clock, where what is prepared in time costs nothing. With --large weights are random (speed does not depend on
them), pictures are JPEGs of 640 x 480 pixels, and every answer has four tokens. Target: overhead below 10 % of the
model's time.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import foveal
from foveal.evaluation import write_json
from foveal.evaluation.provenance import provenance
from foveal.suite import answering
from foveal.suite.harness import run_suite
from foveal.suite.scene_tasks import write_scene_tasks
from shared import llava

ROUNDS, BATCH = 5, 8
QUESTIONS = {False: 200, True: 400}
METHODS: dict[bool, dict[str, foveal.Compressor | None]] = {
    False: {
        "none": None,
        "dart, 16 of 144": foveal.DART(keep=16),
        "divprune, 16 of 144": foveal.DivPrune(keep=16),
    },
    True: {
        "none": None,
        "dart, 64 of 576": foveal.DART(keep=64),
        "divprune, 64 of 576": foveal.DivPrune(keep=64),
    },
}
ANSWER = 4  # tokens, where weights are random
RESULTS = Path(__file__).parent / "results"


class Clock:
    """Seconds of a run, and those of them inside the model and inside what prepares its batches.

    Args:
        wall: whether waiting counts.
    """

    def __init__(self, *, wall: bool) -> None:
        self.whole = time.perf_counter if wall else time.process_time
        self.part = time.perf_counter if wall else time.thread_time
        self.spent = {"generate": 0.0, "_read": 0.0}

    def install(self) -> None:
        """Time every call of both from now on."""
        self._wrap(answering, "generate")  # its texts are on the host: nothing is left to wait for
        self._wrap(answering.Answerer, "_read")

    def _wrap(self, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        @wraps(function)
        def timed(*arguments: Any) -> Any:
            start = self.part()
            try:
                return function(*arguments)
            finally:
                self.spent[name] += self.part() - start

        setattr(owner, name, timed)

    def time(self, call: Callable[[], Any]) -> tuple[float, float, float]:
        """Seconds of a call in all, of the model, and of preparing."""
        self.spent = dict.fromkeys(self.spent, 0.0)
        start = self.whole()
        call()
        return self.whole() - start, self.spent["generate"], self.spent["_read"]


def large() -> tuple[Any, Any]:
    """LLaVA-1.5-7B's shapes, and a processor for pictures of 336 x 336."""
    torch.manual_seed(0)
    _, small = foveal.load()
    text = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32064,
        max_position_embeddings=4096,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = llava(
            text, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
        )
    torch.set_default_dtype(torch.float32)
    tokenizer = small.tokenizer
    model.config.image_token_id = tokenizer.convert_tokens_to_ids(small.image_token)
    model.generation_config.update(pad_token_id=tokenizer.pad_token_id, eos_token_id=None)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=small.chat_template,
        image_token=small.image_token,
        num_additional_image_tokens=1,
    )
    return model, processor


def enlarge(folder: Path) -> None:
    """POPE's pictures as large as the original's."""
    from datasets import Dataset, Image

    (path,) = (folder / "POPE").rglob("*.parquet")

    def photographed(row: dict[str, Any]) -> dict[str, Any]:
        file = io.BytesIO()
        row["image"].convert("RGB").resize((640, 480)).save(file, "JPEG")
        return {"image": {"bytes": file.getvalue(), "path": None}}

    Dataset.from_parquet(str(path)).map(photographed).cast_column("image", Image()).to_parquet(path)


def measure(model: Any, processor: Any, data: Path, *, is_large: bool, questions: int) -> dict[str, Any]:
    """Seconds of every round, by method."""
    clock = Clock(wall=is_large)
    clock.install()
    methods = METHODS[is_large]
    rounds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in methods}

    def run(method: foveal.Compressor | None) -> None:
        options: dict[str, Any] = {"batch_size": BATCH, "max_new_tokens": ANSWER, "progress": False}
        found = run_suite(model, processor, [method], "pope", data, limit=questions, **options)[0]
        assert len(found.answers) == questions
        assert not found.unanswered

    for turn in range(ROUNDS + 1):
        for name in random.sample(list(methods), len(methods)):
            times = clock.time(partial(run, methods[name]))
            if turn:  # the first round warms up
                rounds[name].append(times)
    return {name: summary(times, questions, is_large=is_large) for name, times in rounds.items()}


def summary(times: list[tuple[float, float, float]], questions: int, *, is_large: bool) -> dict[str, Any]:
    """Medians over rounds."""
    whole, model, preparing = (statistics.median(column) for column in zip(*times, strict=True))
    rest = [(total - inside - (0 if is_large else ahead)) / inside for total, inside, ahead in times]
    return {
        "samples_per_second": questions / whole,
        "samples_per_second_of_the_model": questions / model,
        "overhead": statistics.median(rest),
        "preparing": preparing / model,
        "seconds": [total for total, _, _ in times],
        "seconds_of_the_model": [inside for _, inside, _ in times],
    }


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    table = Table("", "samples/s", "model alone", "overhead", "preparing", "gain", "model alone")
    plain = found["none"]
    keys = ("samples_per_second", "samples_per_second_of_the_model")
    for name, row in found.items():
        speeds = [f"{row[key]:.1f}" for key in keys]
        gains = [f"{row[key] / plain[key]:.2f}x" for key in keys]
        table.add_row(name, *speeds, f"{row['overhead']:.1%}", f"{row['preparing']:.1%}", *gains)
    Console().print(table)


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--large", action="store_true", help="LLaVA-1.5-7B's shapes, on a GPU")
    is_large = parser.parse_args().large
    if is_large and not torch.cuda.is_available():
        raise SystemExit("--large needs a GPU")
    random.seed(0)
    if not is_large:
        torch.set_num_threads(1)
    model, processor = large() if is_large else foveal.load()
    questions = QUESTIONS[is_large]
    with tempfile.TemporaryDirectory() as folder:
        data = write_scene_tasks(Path(folder) / "data", questions=questions)
        if is_large:
            enlarge(data)
        found = measure(model, processor, data, is_large=is_large, questions=questions)
    show(found)
    name = "suite_large.json" if is_large else "suite.json"
    settings = {"questions": questions, "batch_size": BATCH, "answer_tokens": ANSWER, "rounds": ROUNDS}
    write_json(RESULTS / name, {"settings": settings, "methods": found, "provenance": provenance(0)})


if __name__ == "__main__":
    main()
