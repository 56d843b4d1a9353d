"""A benchmark as a task of lmms-eval that reads files on disk.

lmms-eval's own YAML says how questions are put and scored. Changed are only: where the data comes from; GQA's pictures,
which are joined as they are needed rather than all decoded first; how MMBench and OCRBench are added up (see
`_AGGREGATIONS`); and submission files, which are not written.
"""

from __future__ import annotations

import contextlib
import glob
import io
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from foveal.errors import FovealError
from foveal.mini.questions import UNANSWERABLE
from foveal.mini.scenes import SIDE
from foveal.suite.benchmarks import Benchmark, benchmarks, unit_of
from foveal.suite.lmms_environment import check_installed

__all__ = ["bundled_prompt", "choose_rows", "make_task", "task_config"]

_BUNDLED_VOCABULARY = 586
_PARQUET = b"PAR1"  # the last bytes of every file


def make_task(benchmark: Benchmark, data: Path | None, **options: Any) -> Any:
    """The task as an object, for `lmms_eval.evaluator.simple_evaluate(tasks=[...])`; its name is the column.

    Args:
        benchmark: which.
        data: the folder of all data, see `Benchmark.patterns`.
        **options: those of `task_config`.
    """
    config = task_config(benchmark, data, **options)
    from lmms_eval.api.task import ConfigurableMessagesTask

    return ConfigurableMessagesTask(config=config)


def task_config(
    benchmark: Benchmark,
    data: Path | None,
    *,
    limit: int | None = None,
    online: bool = False,
    prompt: Mapping[str, Any] | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """lmms-eval's configuration of the task, with what `data` holds instead of the hub.

    Args:
        benchmark: which.
        data: the folder of all data; what it holds goes before the hub.
        limit: at most this many questions, always the same ones: see `choose_rows`.
        online: whether what is not in `data` may come from the hub.
        prompt: what else to put around a question: entries of lmms-eval's ``lmms_eval_specific_kwargs``, for the tasks
            that have some.
        cache: where `datasets` keeps its converted copy of the files; its usual place by default.

    Raises:
        FovealError: the data is missing or incomplete, the benchmark needs a paid judge, or lmms-eval is missing.
    """
    benchmarks(benchmark.column)
    if limit is not None and limit < 1:
        raise FovealError(f"limit={limit} must be at least 1")
    source = _source(benchmark, data, online)
    config = _registered(benchmark)
    config.update(task=benchmark.column, metric_list=_metrics(benchmark, config["metric_list"]))
    if prompts := config.get("lmms_eval_specific_kwargs"):
        own = {**prompts["default"], **benchmark.prompt, **(prompt or {})}
        config["lmms_eval_specific_kwargs"] = {"default": own}
    process = config.get("process_docs")
    if source is None:  # its YAML demands to be logged in, which public data does not need
        config["dataset_kwargs"] = {**(config.get("dataset_kwargs") or {}), "token": None}
    else:
        kept = {"cache_dir": str(cache)} if cache is not None else {}
        config.update(source | {"dataset_kwargs": source["dataset_kwargs"] | kept}, dataset_name=None)
        process = None
        if benchmark.images:
            config["doc_to_visual"] = _joined(_load(benchmark, data, benchmark.images, kept))
    if limit is not None:
        process = _limited(benchmark, limit, process)
    config["process_docs"] = process
    return config


def bundled_prompt(benchmark: Benchmark, model: PreTrainedModel) -> dict[str, Any] | None:
    """What is put around a question for the bundled model and what was trained from it; None for all other models.

    It was taught to answer without instructions, some of which it does not know (OCR hints, VizWiz's, the Chinese
    one), as lmms-eval's models have prompts of their own where they need them. Chosen on validation scenes.
    """
    text, tower = (getattr(model.config, part, None) for part in ("text_config", "vision_config"))
    found = (getattr(text, "vocab_size", None), getattr(tower, "image_size", None))
    if found != (_BUNDLED_VOCABULARY, SIDE):
        return None
    before = f"if unsure say {UNANSWERABLE}. " if benchmark.column == "vizwiz" else ""
    hints = {"ocr": False} if benchmark.column.startswith("textvqa") else {}
    return {"pre_prompt": before, "post_prompt": "", **hints}


def _registered(benchmark: Benchmark) -> dict[str, Any]:
    """What lmms-eval's YAML says."""
    check_installed()
    from lmms_eval import tasks
    from lmms_eval.utils import load_yaml_config

    path = Path(tasks.__path__[0]) / benchmark.yaml
    if not path.is_file():
        raise FovealError(f"this lmms-eval has no {path}: install the tested version, lmms-eval 0.7.3")
    config: dict[str, Any] = load_yaml_config(str(path), mode="full")
    for key in ("tag", "group"):
        config.pop(key, None)
    return config


def _metrics(benchmark: Benchmark, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The numbers wanted, without the submission files that lmms-eval would write into the current folder."""
    wanted = {*benchmark.metrics, *(key for key, _ in benchmark.extras.values())}
    own = [dict(entry) for entry in entries if entry["metric"] in wanted]
    for entry in own:
        entry["aggregation"] = _AGGREGATIONS.get(entry["metric"], entry["aggregation"])
    return own


def _mmbench_static(results: list[dict[str, Any]]) -> float:
    """lmms-eval's circular evaluation by its static rules, in Chinese too, where its YAML would call a paid model."""
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    with contextlib.redirect_stdout(io.StringIO()):
        overall, _, _ = MMBench_Evaluator().eval_result(results, eval_method="static")
    return float(overall)


def _ocrbench_share(results: list[dict[str, Any]]) -> float:
    """The share of right answers: lmms-eval's own sum goes on counting from one run in a process to the next."""
    return float(sum(result["score"] for result in results) / len(results))


_AGGREGATIONS: dict[str, Callable[[list[dict[str, Any]]], float]] = {
    "gpt_eval_score": _mmbench_static,
    "ocrbench_accuracy": _ocrbench_share,
}


def _source(benchmark: Benchmark, data: Path | None, online: bool) -> dict[str, Any] | None:
    """Where the questions lie on disk, as entries of the configuration; None if they come from the hub."""
    if data is None and not online:
        raise FovealError(
            f"{benchmark.title}: no data folder; name the one its files are in, or allow the network"
        )
    if data is None:
        return None
    parts = [_files(data / benchmark.folder, part, benchmark.split) for part in _parts(benchmark)]
    if None not in parts:
        _check_complete(benchmark, data)
        return parts[0]
    if online:
        return None
    missing = " and ".join(benchmark.patterns())
    raise FovealError(
        f"{benchmark.title}: no {missing} in {data / benchmark.folder}: fetch them with `{benchmark.fetch(data)}`"
    )


def _parts(benchmark: Benchmark) -> list[str]:
    return [benchmark.config, benchmark.images] if benchmark.images else [benchmark.config]


def _files(folder: Path, config: str, split: str) -> dict[str, Any] | None:
    """The files of a configuration: the hub's parquet, else what `save_to_disk` wrote, else pictures and JSONL."""
    base = folder / (config or "data")
    if parquet := sorted(base.glob(f"{split}-*.parquet")):
        files = {split: [glob.escape(str(path)) for path in parquet]}
        return {"dataset_path": "parquet", "dataset_kwargs": {"data_files": files}}
    if (base / "dataset_dict.json").is_file():
        return {"dataset_path": str(base), "dataset_kwargs": {"load_from_disk": True}}
    if (base / split / "metadata.jsonl").is_file():
        files = {split: [f"{glob.escape(str(base / split))}/**"]}
        return {"dataset_path": "imagefolder", "dataset_kwargs": {"data_files": files}}
    return None


def _check_complete(benchmark: Benchmark, data: Path) -> None:
    """A download that was broken off leaves fewer parts than their names promise, or half a file."""
    for pattern in benchmark.patterns():
        files = sorted((data / benchmark.folder).glob(pattern))
        totals = {int(found[1]) for path in files if (found := re.search(r"-of-(\d+)", path.name))}
        problem = ""
        if totals and totals != {len(files)}:
            problem = f"{files[0].parent} holds {len(files)} of the {max(totals)} parts of {benchmark.split}"
        elif cut := next((path for path in files if not _is_whole(path)), None):
            problem = f"{cut} is no whole parquet file"
        if problem:
            raise FovealError(f"{problem}: go on with the download by `{benchmark.fetch(data)}`")


def _is_whole(path: Path) -> bool:
    """Whether a parquet file has its end."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_PARQUET)))
        return file.read() == _PARQUET


def _load(benchmark: Benchmark, data: Path | None, config: str, kept: Mapping[str, str]) -> Any:
    from datasets import load_dataset, load_from_disk

    found = _files(Path(data or "") / benchmark.folder, config, benchmark.split)
    assert found is not None
    if "load_from_disk" in found["dataset_kwargs"]:
        return load_from_disk(found["dataset_path"])[benchmark.split]
    return load_dataset(found["dataset_path"], split=benchmark.split, **found["dataset_kwargs"], **kept)


def _joined(images: Any) -> Callable[[dict[str, Any]], list[Any]]:
    """A question's picture, decoded when it is asked for."""
    rows = {name: row for row, name in enumerate(images["id"])}

    def visual(doc: dict[str, Any]) -> list[Any]:
        return [images[rows[doc["imageId"]]]["image"].convert("RGB")]

    return visual


def _limited(benchmark: Benchmark, limit: int, process: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    def choose(questions: Any) -> Any:
        rows = range(len(questions))
        units = [unit_of(unit) for unit in questions[benchmark.unit]] if benchmark.unit else rows
        categories = list(questions[benchmark.category]) if benchmark.category else [""] * len(units)
        chosen = questions.select(choose_rows(units, categories, limit))
        return process(chosen) if process else chosen

    return choose


def choose_rows(units: Sequence[Any], categories: Sequence[Any], limit: int) -> list[int]:
    """The rows of a fair sample, in order: the files are sorted, so their first rows would be of one category.

    Units (rows with equal `units`) are taken whole, one of each category in turn, in a fixed random order. Every
    category has at least one, whatever the limit: MME's score is a sum over them.

    Args:
        units: what a row is scored together with.
        categories: what kind of question it is.
        limit: the most rows.
    """
    rows: dict[Any, list[int]] = {}
    for row, unit in enumerate(units):
        rows.setdefault(unit, []).append(row)
    queues: dict[Any, list[list[int]]] = {}
    draw = random.Random(0)
    for members in sorted(rows.values(), key=lambda _: draw.random()):
        queues.setdefault(categories[members[0]], []).append(members)
    chosen = [row for queue in queues.values() for row in queue.pop()]
    while waiting := [queue for queue in queues.values() if queue]:
        for queue in waiting:
            if len(chosen) + len(queue[-1]) > limit:
                return sorted(chosen)
            chosen += queue.pop()
    return sorted(chosen)
