"""Measure a checkpoint of the bundled model and write its card.

    python -m foveal.mini.evaluate src/foveal/mini/weights --log runs/mini/log.jsonl --hardware "2 CPU cores"

One question per image, greedy generation through the ordinary processor, on the test split of the scenes and on
easy-VQA's own test. The same questions are asked again with the picture blanked: a model that answers those has not
looked.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from rich.console import Console
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveal.mini.card import card
from foveal.mini.datasets import EasyQuestions, SceneQuestions
from foveal.mini.stages import STAGES

__all__ = ["answer_questions", "evaluate", "main", "wilson"]

Sample = dict[str, Any]


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % Wilson interval of a rate of `right` out of `total`."""
    if total == 0:
        return 0.0, 1.0
    rate, spread = right / total, z * z / total
    centre = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(rate * (1 - rate) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


@torch.inference_mode()
def answer_questions(model: Any, processor: Any, samples: Iterable[Sample], batch: int = 50) -> Iterator[str]:
    """Greedy answers, one for each sample's ``question`` about its ``image``."""
    pending = iter(samples)
    while chunk := list(islice(pending, batch)):
        prompts = [f"USER: <image>\n{sample['question']} ASSISTANT:" for sample in chunk]
        images = [sample["image"] for sample in chunk]
        inputs = processor(text=prompts, images=images, padding=True, return_tensors="pt").to(model.device)
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        yield from processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _score(model: Any, processor: Any, samples: Sequence[Sample]) -> dict[str, Any]:
    """Accuracy with its interval: in all, by type, and by type and subset."""
    tallies: dict[str, list[bool]] = defaultdict(list)
    answers = answer_questions(model, processor, samples)
    for sample, answer in zip(samples, answers, strict=True):
        hit = answer.strip() == sample["answer"]
        for name in ("overall", sample["type"], f"{sample['type']}/{sample['subset']}"):
            tallies[name].append(hit)
    ordered = sorted(tallies, key=lambda name: (name != "overall", name))
    return {name: _rate(tallies[name]) for name in ordered}


def _rate(hits: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson(sum(hits), len(hits))
    return {
        "accuracy": round(sum(hits) / len(hits), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "questions": len(hits),
    }


def _blanked(samples: Sequence[Sample]) -> list[Sample]:
    blank = Image.new("RGB", (96, 96), (128, 128, 128))
    return [{**sample, "image": blank} for sample in samples]


def evaluate(folder: Path, size: int = 2000, easy: int | None = None) -> dict[str, Any]:
    """Scores of the checkpoint in `folder` on `size` scenes and `easy` images of easy-VQA (all if None)."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    scenes = list(SceneQuestions("test", size))
    shapes = list(EasyQuestions("test", easy))
    begun = time.monotonic()
    return {
        "scenes": _score(model, processor, scenes),
        "scenes_blanked": _score(model, processor, _blanked(scenes)),
        "easy_vqa": _score(model, processor, shapes),
        "easy_vqa_blanked": _score(model, processor, _blanked(shapes)),
        "provenance": {
            "command": f"python -m foveal.mini.evaluate --size {size}",
            "split": "test, seed 0, one question per image, greedy",
            "seconds": round(time.monotonic() - begun, 1),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "dtype": str(model.dtype),
            "million_parameters": round(sum(part.numel() for part in model.parameters()) / 1e6, 2),
        },
    }


def _training(log: Path, hardware: str, note: str) -> dict[str, Any]:
    """What a training log says: the last line of each stage, with the images it saw a step."""
    last: dict[str, dict[str, Any]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        last[entry["stage"]] = {**entry, "batch": STAGES[entry["stage"]].batch}
    command = (
        "OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 -m foveal.mini.train --out runs/mini"
    )
    stages = list(last.values())
    return {"command": command, "seed": 0, "hardware": hardware, "note": note, "stages": stages}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m foveal.mini.evaluate", description="Measure the bundled model."
    )
    parser.add_argument(
        "folder", type=Path, help="the checkpoint; results.json and README.md are written into it"
    )
    parser.add_argument("--size", type=int, default=2000, help="how many scenes")
    parser.add_argument("--easy", type=int, help="how many images of easy-VQA's test (default all 1,000)")
    parser.add_argument("--log", type=Path, help="log.jsonl of the training run, to be quoted in the results")
    parser.add_argument("--hardware", default="", help="what it was trained on, in words")
    parser.add_argument("--note", default="", help="what else should be known about the training run")
    options = parser.parse_args(arguments)
    results = evaluate(options.folder, options.size, options.easy)
    if options.log:
        results["training"] = _training(options.log, options.hardware, options.note)
    (options.folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (options.folder / "README.md").write_text(card(results), encoding="utf-8")
    summary = {
        part: results[part]["overall"]
        for part in ("scenes", "scenes_blanked", "easy_vqa", "easy_vqa_blanked")
    }
    Console().print_json(data=summary)


if __name__ == "__main__":
    main()
