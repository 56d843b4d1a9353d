"""The benchmarks of the field: what lmms-eval calls them, where their data lies, and how their scores are written.

EPIC's ten columns are in `SUITES["epic10"]`, those of TRIM that need no paid judge in `SUITES["trim"]`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveal.errors import FovealError

__all__ = ["BENCHMARKS", "ROTATION", "SUITES", "Benchmark", "average", "benchmarks", "unit_of"]

ROTATION = 10**6
"""MMBench numbers the rotated copies of question i with i + 1,000,000, i + 2,000,000 and so on."""

_SHORT = "\nAnswer the question using a single word or phrase."


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as a column of a table.

    Attributes:
        column: its name in tables and files, as in EPIC's table of published results.
        title: its name in print.
        yaml: its task in lmms-eval, a file below ``lmms_eval/tasks``.
        metrics: the keys of lmms-eval's results, without ``,none``, whose sum is the score.
        scale: what that sum is multiplied with to be in the published unit.
        repository: the data set on the Hugging Face hub.
        config: its configuration there, "" for the default one.
        split: the split that is asked.
        protocol: which numbers of papers these are, and which they are not.
        images: the configuration that holds the pictures, "" where they are beside the questions.
        divisor: what EPIC divides the score by in its average.
        extras: other numbers worth telling: a name, and the key and the scale of each.
        unit: the column whose equal values are scored together, "" where each question stands alone.
        category: the column that groups questions, "" where none does.
        prompt: what is put around a question where that is not lmms-eval's default.
        judge: whether scoring asks a paid language model.
    """

    column: str
    title: str
    yaml: str
    metrics: tuple[str, ...]
    scale: float
    repository: str
    config: str
    split: str
    protocol: str
    images: str = ""
    divisor: float = 1.0
    extras: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    unit: str = ""
    category: str = ""
    prompt: Mapping[str, Any] = field(default_factory=dict)
    judge: bool = False

    @property
    def task(self) -> str:
        """The task's name in lmms-eval."""
        return Path(self.yaml).stem.replace("-", "_")

    @property
    def folder(self) -> str:
        """The folder of its repository below the folder of all data."""
        return self.repository.rpartition("/")[2]

    def patterns(self) -> tuple[str, ...]:
        """The files needed, as patterns within `folder`: those of the hub's repository, under the same names."""
        return tuple(
            f"{config or 'data'}/{self.split}-*.parquet" for config in (self.config, self.images) if config
        ) or (f"data/{self.split}-*.parquet",)

    def fetch(self, data: Path | str) -> str:
        """The shell command that downloads the files to where `task_config` looks for them."""
        target = shlex.quote(str(Path(data) / self.folder))
        wanted = " ".join(f"--include {shlex.quote(pattern)}" for pattern in self.patterns())
        return f"hf download {self.repository} --repo-type dataset {wanted} --local-dir {target}"

    def score(self, results: Mapping[str, Any]) -> float:
        """The score in its published unit, from what lmms-eval calls the task's results.

        MME asked about perception alone has no score for cognition, which then counts nothing.
        """
        return self.scale * sum(float(results.get(f"{key},none", 0.0)) for key in self.metrics)

    def extra(self, results: Mapping[str, Any]) -> dict[str, float]:
        """The other numbers worth telling, by name, each in its own unit."""
        found = {name: (results.get(f"{key},none"), scale) for name, (key, scale) in self.extras.items()}
        return {name: scale * float(value) for name, (value, scale) in found.items() if value is not None}


_CHOICE_PROTOCOL = (
    "dev split with its rotated copies: a question counts if every rotation is answered right (circular evaluation); "
    "letters are read by lmms-eval's static rules, without the paid judge that papers may have used"
)
_VQA_PROTOCOL = (
    "validation split (214,354 questions); test-dev, which LLaVA's papers report, is scored by a server only"
)

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.column: benchmark
    for benchmark in (
        Benchmark(
            column="vqav2",
            title="VQAv2",
            yaml="vqav2/vqav2_val.yaml",
            metrics=("exact_match",),
            scale=100.0,
            repository="lmms-lab-encoder/VQAv2",
            config="",
            split="validation",
            protocol=_VQA_PROTOCOL,
            category="answer_type",
        ),
        Benchmark(
            column="gqa",
            title="GQA",
            yaml="gqa/gqa.yaml",
            metrics=("exact_match",),
            scale=100.0,
            repository="lmms-lab-encoder/GQA",
            config="testdev_balanced_instructions",
            split="testdev",
            protocol="balanced testdev, as papers report it",
            images="testdev_balanced_images",
        ),
        Benchmark(
            column="vizwiz",
            title="VizWiz",
            yaml="vizwiz_vqa/vizwiz_vqa_val.yaml",
            metrics=("exact_match",),
            scale=100.0,
            repository="lmms-lab-encoder/VizWiz-VQA",
            config="",
            split="val",
            protocol="validation split; the test split, which LLaVA's papers report, is scored by a server only",
            category="category",
        ),
        Benchmark(
            column="sqa_img",
            title="SQA-img",
            yaml="scienceqa/scienceqa_img.yaml",
            metrics=("exact_match",),
            scale=100.0,
            repository="lmms-lab-encoder/ScienceQA",
            config="ScienceQA-IMG",
            split="test",
            protocol="test questions that have a picture, as papers report it",
            category="subject",
        ),
        Benchmark(
            column="textvqa",
            title="TextVQA",
            yaml="textvqa/textvqa_val.yaml",
            metrics=("exact_match",),
            scale=100.0,
            repository="lmms-lab-encoder/textvqa",
            config="",
            split="validation",
            protocol="validation split with the words an OCR system read in the prompt, as LLaVA's papers report it",
            prompt={"post_prompt": _SHORT, "ocr": True},
        ),
        Benchmark(
            column="textvqa_no_ocr",
            title="TextVQA without OCR hints",
            yaml="textvqa/textvqa_val.yaml",
            metrics=("exact_match",),
            scale=100.0,
            repository="lmms-lab-encoder/textvqa",
            config="",
            split="validation",
            protocol="validation split without OCR hints, lmms-eval's default; LLaVA-1.5-7B has about 45 here, not 58",
            prompt={"post_prompt": _SHORT, "ocr": False},
        ),
        Benchmark(
            column="pope",
            title="POPE",
            yaml="pope/pope.yaml",
            metrics=("pope_f1_score",),
            scale=100.0,
            repository="lmms-lab-encoder/POPE",
            config="",
            split="test",
            protocol="F1 over all three subsets; papers print F1 averaged over the subsets, which differs by a hair",
            extras={"pope_accuracy": ("pope_accuracy", 100.0)},
            category="category",
        ),
        Benchmark(
            column="mme",
            title="MME",
            yaml="mme/mme.yaml",
            metrics=("mme_perception_score", "mme_cognition_score"),
            scale=1.0,
            repository="lmms-lab-encoder/MME",
            config="",
            split="test",
            protocol="perception and cognition together (2,800 at most); many papers print perception alone (2,000)",
            divisor=28.0,
            extras={
                "mme_perception": ("mme_perception_score", 1.0),
                "mme_cognition": ("mme_cognition_score", 1.0),
            },
            unit="question_id",
            category="category",
        ),
        Benchmark(
            column="mmbench",
            title="MMBench",
            yaml="mmbench/mmbench_en_dev_static.yaml",
            metrics=("gpt_eval_score",),
            scale=100.0,
            repository="lmms-lab-encoder/MMBench",
            config="en",
            split="dev",
            protocol=_CHOICE_PROTOCOL,
            unit="index",
            category="L2-category",
        ),
        Benchmark(
            column="mmbench_cn",
            title="MMBench-CN",
            yaml="mmbench/mmbench_cn_dev.yaml",
            metrics=("gpt_eval_score",),
            scale=100.0,
            repository="lmms-lab-encoder/MMBench",
            config="cn",
            split="dev",
            protocol=_CHOICE_PROTOCOL,
            unit="index",
            category="L2-category",
        ),
        Benchmark(
            column="ocrbench",
            title="OCRBench",
            yaml="ocrbench/ocrbench.yaml",
            metrics=("ocrbench_accuracy",),
            scale=1000.0,
            repository="echo840/OCRBench",
            config="",
            split="test",
            protocol="right answers of its 1,000 questions; of fewer questions, right answers per thousand",
            divisor=10.0,
            category="question_type",
        ),
        Benchmark(
            column="seed",
            title="SEED-Bench",
            yaml="seedbench/seedbench.yaml",
            metrics=("seed_all",),
            scale=100.0,
            repository="lmms-lab-encoder/SEED-Bench",
            config="",
            split="test",
            protocol="pictures and frames of videos together; pictures alone beside it",
            extras={"seed_image": ("seed_image", 100.0), "seed_video": ("seed_video", 100.0)},
            category="data_type",
        ),
        Benchmark(
            column="mmvet",
            title="MM-Vet",
            yaml="mmvet/mmvet.yaml",
            metrics=("gpt_eval_score",),
            scale=1.0,
            repository="lmms-lab-encoder/MMVet",
            config="",
            split="test",
            protocol="scored by a paid language model",
            judge=True,
        ),
        Benchmark(
            column="llava_w",
            title="LLaVA-Bench in the wild",
            yaml="llava-in-the-wild/llava-in-the-wild.yaml",
            metrics=("gpt_eval_llava_all",),
            scale=1.0,
            repository="lmms-lab-encoder/llava-bench-in-the-wild",
            config="",
            split="train",
            protocol="scored by a paid language model",
            judge=True,
        ),
    )
}

_EPIC = ("vqav2", "gqa", "vizwiz", "sqa_img", "textvqa", "pope", "mme", "mmbench", "mmbench_cn", "ocrbench")
_TRIM = ("vqav2", "gqa", "vizwiz", "sqa_img", "textvqa", "pope", "mme", "mmbench", "mmbench_cn", "seed")

SUITES: dict[str, tuple[Benchmark, ...]] = {
    name: tuple(BENCHMARKS[column] for column in columns)
    for name, columns in {"epic10": _EPIC, "trim": _TRIM}.items()
}


def benchmarks(names: str) -> tuple[Benchmark, ...]:
    """The benchmarks that `names` asks for: suites and columns, separated by commas or spaces, each once.

    Raises:
        FovealError: a name is unknown, or its benchmark is scored by a paid judge.
    """
    wanted: dict[str, Benchmark] = {}
    for name in names.replace(",", " ").split():
        found = SUITES.get(name) or ((BENCHMARKS[name],) if name in BENCHMARKS else ())
        if not found:
            known = ", ".join((*SUITES, *BENCHMARKS))
            raise FovealError(f"no suite or benchmark is called {name!r}: choose among {known}")
        wanted.update({benchmark.column: benchmark for benchmark in found})
    for benchmark in wanted.values():
        if benchmark.judge:
            raise FovealError(
                f"{benchmark.title} is scored by a paid language model, which Foveal never calls: leave it out, or run "
                f"`python -m lmms_eval --model foveal --tasks {benchmark.task}` with an OPENAI_API_KEY of your own"
            )
    if not wanted:
        raise FovealError(f"no benchmarks asked for: choose among {', '.join((*SUITES, *BENCHMARKS))}")
    return tuple(wanted.values())


def unit_of(value: str | int) -> str:
    """What a row is scored together with, by its `Benchmark.unit`: MME's picture, MMBench's question unrotated."""
    return str(value % ROTATION if isinstance(value, int) else value)


def average(scores: Mapping[str, float]) -> float:
    """EPIC's Avg: the mean of its ten columns, MME divided by 28 and OCRBench by 10.

    Args:
        scores: a score a column, in published units; columns that are not EPIC's are ignored.

    Raises:
        FovealError: a column is missing; a mean of fewer is no number to set beside published ones.
    """
    missing = [benchmark.title for benchmark in SUITES["epic10"] if benchmark.column not in scores]
    if missing:
        raise FovealError(f"EPIC's average needs all ten benchmarks: run {', '.join(missing)} too")
    return sum(scores[item.column] / item.divisor for item in SUITES["epic10"]) / len(SUITES["epic10"])
