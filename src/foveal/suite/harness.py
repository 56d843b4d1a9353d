"""The field's benchmarks under several methods, asked and scored by lmms-eval.

runs = run_suite(model, processor, [None, foveal.DART(keep=64, layer=2)], "epic10", Path("data"))
print(runs[1].scores["pope"], runs[1].kept)
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from foveal.compressors import Compressor
from foveal.errors import FovealError
from foveal.evaluation.provenance import provenance
from foveal.evaluation.runner import method_name, model_name, options_of, question_bar
from foveal.suite import processes
from foveal.suite.answering import Answerer
from foveal.suite.answers import Answer, read_answers
from foveal.suite.benchmarks import Benchmark, benchmarks
from foveal.suite.lmms_environment import check_installed, offline, quiet
from foveal.suite.references import reference, suite_scores
from foveal.suite.tasks import bundled_prompt, make_task

__all__ = ["Answer", "Report", "SuiteRun", "run_suite"]

Report = Callable[[str, int, int], object]


@dataclass(frozen=True)
class SuiteRun:
    """One model under one method on several benchmarks.

    Attributes:
        settings: method, its options, model, batch size and the like.
        scores: by column, in the published unit.
        extra: other numbers worth telling, such as MME's perception apart, each in its own unit.
        answers: one a question.
        kept: visual tokens of an image after the last stage, averaged over images; None if nothing was compressed.
        seen: visual tokens of an image that a decoder layer sees, averaged over layers and images.
        seconds: wall-clock time, without loading model and data.
        provenance: see `foveal.evaluation.provenance`.
    """

    settings: dict[str, Any]
    scores: dict[str, float]
    extra: dict[str, float] = field(default_factory=dict)
    answers: tuple[Answer, ...] = ()
    kept: float | None = None
    seen: float | None = None
    seconds: float = 0.0
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def unanswered(self) -> tuple[Answer, ...]:
        """The questions without a prediction: counted as wrong."""
        return tuple(answer for answer in self.answers if answer.error)

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> SuiteRun:
        """What `to_json` was called on.

        Raises:
            FovealError: something is missing.
        """
        try:
            answers = (Answer(**{**answer, "answers": tuple(answer["answers"])}) for answer in row["answers"])
            return cls(**{**row, "answers": tuple(answers)})
        except (KeyError, TypeError) as error:
            raise FovealError(f"this is no run of a suite ({error}): pass what `to_json` returned") from error


def run_suite(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    methods: Sequence[Compressor | None],
    suite: str,
    data: Path | None,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    max_new_tokens: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    online: bool = False,
    progress: bool | Report = True,
) -> list[SuiteRun]:
    """Put the same questions to a model under several methods.

    Under `accelerate launch` or `torchrun` the processes share the questions, and each returns the whole result.

    Args:
        model: an image-text-to-text model that is not compressed, on its device.
        processor: its processor, with a chat template.
        methods: None leaves the model as it is.
        suite: names of suites and benchmarks, see `foveal.suite.benchmarks.benchmarks`.
        data: the folder of all data.
        limit: at most this many questions of each benchmark, always the same ones.
        batch_size: questions a forward; changes speed and memory only.
        max_new_tokens: longest answer; None for what each benchmark says.
        seed: for sampling, where a benchmark asks for it.
        out: a folder in which answers are kept: a run that was killed goes on where it stopped.
        online: whether data that is not in `data` may come from the hub.
        progress: whether a bar is drawn on stderr, if that is a terminal; or what to call after each batch, with the
            method's name, how many questions it was asked, and how many it will be (by this process).

    Raises:
        FovealError: lmms-eval or data is missing, or a question, option or model cannot work.
    """
    check_installed()
    wanted = benchmarks(suite)
    processes.join()
    with ExitStack() as stack:
        stack.enter_context(nullcontext() if online else offline())
        stack.enter_context(quiet())
        files = out if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tasks = [
            _task(benchmark, data, limit=limit, online=online, prompt=bundled_prompt(benchmark, model))
            for benchmark in wanted
        ]
        report = stack.enter_context(_reporting(progress))
        options: dict[str, Any] = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "seed": seed}
        log = None if out is None else out / "answers"
        runs = []
        for method in methods:
            answerer = Answerer(
                model, processor, [method] if method else [], log=log, rank=processes.rank(), **options
            )
            settings = {"method": method_name(answerer.methods), **options_of(answerer.methods)}
            settings |= {"model": model_name(model), "limit": limit, **options}
            runs.append(_run(answerer, wanted, tasks, settings, files, report))
    return runs


def _task(benchmark: Benchmark, data: Path | None, **options: Any) -> Any:
    try:
        task = make_task(benchmark, data, **options)
        _check_rows(benchmark, task.eval_docs_no_media)
        return task
    except FovealError:
        raise
    except Exception as raised:  # of datasets, lmms-eval or Pillow, which looks at the first picture
        error = raised.__cause__ or raised  # lmms-eval tries several times, and raises that it did
        fetch = f": fetch it anew with `{benchmark.fetch(data)}`" if data is not None else ""
        raise FovealError(
            f"{benchmark.title}: its data cannot be read ({type(error).__name__}: {error}){fetch}"
        ) from error


def _check_rows(benchmark: Benchmark, documents: Any) -> None:
    """Refuse data that could be asked but not scored: a column is missing (KeyError), or a question of MME's pairs."""
    reference(benchmark, documents[0], 0)
    if benchmark.column == "mme":
        pairs = Counter(zip(documents["category"], documents["question_id"], strict=True))
        odd = [picture for (_, picture), count in pairs.items() if count != 2]
        if odd:
            raise ValueError(
                f"two questions about each picture are scored together, but {odd[0]} has another number"
            )


def _run(
    answerer: Answerer,
    wanted: Sequence[Benchmark],
    tasks: Sequence[Any],
    settings: dict[str, Any],
    files: Path,
    report: Report,
) -> SuiteRun:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from foveal.suite.lmms import FovealModel

    title = " ".join(str(settings[name]) for name in ("method", "keep") if name in settings)
    started = time.perf_counter()
    found = simple_evaluate(
        model=FovealModel(answerer, report=partial(report, title), shared=True),
        tasks=list(tasks),
        task_manager=TaskManager(include_defaults=False),
        batch_size=answerer.batch_size,
        bootstrap_iters=0,
        random_seed=None,
        numpy_random_seed=None,
        torch_random_seed=None,
        distributed_executor_backend="torchrun" if processes.size() > 1 else "accelerate",
        cli_args=_arguments(files),
    )
    seconds = time.perf_counter() - started
    tokens = _means(processes.gathered(answerer.accounts))
    failures = {name: why for part in processes.gathered(answerer.failures) for name, why in part.items()}
    run = None if found is None else _result(found, wanted, tasks, settings, failures, tokens, seconds)
    return processes.first_tells(run)


def _arguments(files: Path) -> SimpleNamespace:
    """Of lmms-eval's command line: files that a task writes go below `files`, and scoring decodes no picture."""
    return SimpleNamespace(output_path=str(files), process_with_media=False, reasoning_tags=None)


def _means(sums: Sequence[tuple[int, int, float]]) -> tuple[float | None, float | None]:
    """Visual tokens kept and seen, averaged over the images of all processes."""
    images, kept, seen = (sum(column) for column in zip(*sums, strict=True))
    return (kept / images, seen / images) if images else (None, None)


def _result(
    found: Mapping[str, Any],
    wanted: Sequence[Benchmark],
    tasks: Sequence[Any],
    settings: dict[str, Any],
    failures: Mapping[str, str],
    tokens: tuple[float | None, float | None],
    seconds: float,
) -> SuiteRun:
    scores: dict[str, float] = {}
    extra: dict[str, float] = {}
    answers: list[Answer] = []
    for benchmark, task in zip(wanted, tasks, strict=True):
        results, samples = found["results"][benchmark.column], found["samples"][benchmark.column]
        scores[benchmark.column] = benchmark.score(results)
        extra |= _own_numbers(benchmark, task, samples) | benchmark.extra(results)
        answers += read_answers(benchmark, task.eval_docs_no_media, samples, failures)
    where = provenance(settings["seed"])
    where["versions"]["lmms-eval"] = version("lmms-eval")
    return SuiteRun(settings, scores, extra, tuple(answers), *tokens, seconds, where)


def _own_numbers(benchmark: Benchmark, task: Any, samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What lmms-eval does not compute, such as the mean of POPE's three F1, which papers print."""
    said = {int(sample["doc_id"]): sample["filtered_resps"][0] for sample in samples}
    rows, documents = sorted(said), task.eval_docs_no_media
    asked = [reference(benchmark, documents[row], row) for row in rows]
    found = suite_scores(benchmark, asked, [said[row] for row in rows])
    return {name: value for name, value in found.items() if name != benchmark.column}


@contextmanager
def _reporting(progress: bool | Report) -> Iterator[Report]:
    """Draws a progress bar on stderr, unless someone else does; yields the function that moves it on."""
    if callable(progress):
        yield progress
        return
    with question_bar(shown=progress) as bar:
        task = bar.add_task("loading")
        yield lambda title, done, total: bar.update(task, description=title, completed=done, total=total)
