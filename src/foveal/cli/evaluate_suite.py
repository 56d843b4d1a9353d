"""`foveal eval --suite`: the field's benchmarks under several methods, beside published rows."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.cli.common import load_model, print_json, screen
from foveal.errors import FovealError

if TYPE_CHECKING:
    from PIL import Image

    from foveal.compressors import Compressor
    from foveal.evaluation.chat import Chat
    from foveal.suite.answers import Answer
    from foveal.suite.comparison import Comparison
    from foveal.suite.harness import SuiteRun

__all__ = ["FORMATS", "SuiteOptions", "evaluate_suite"]

FORMATS = ("table", "markdown", "csv", "latex", "json")
_SCENES = 200
_TOLD = 5


@dataclass(frozen=True)
class SuiteOptions:
    """What the command line says of a suite.

    Attributes:
        suite: names of suites and benchmarks.
        model: a checkpoint; None for the bundled one.
        data: the folder of all data; None for scenes, unless `online`.
        limit: at most this many questions of each benchmark.
        batch_size: questions a forward.
        max_new_tokens: longest answer; None for what each benchmark says.
        seed: draws other scenes.
        online: whether data may come from the hub.
        out: a folder for results.
        form: one of `FORMATS`.
        differences: whether to subtract published rows of another model, too.
        forgiving: whether methods that cannot work are left out.
    """

    suite: str
    model: str | None
    data: Path | None
    limit: int | None
    batch_size: int
    max_new_tokens: int | None
    seed: int
    online: bool
    out: Path | None
    form: str
    differences: bool
    forgiving: bool


def evaluate_suite(methods: Sequence[Compressor | None], options: SuiteOptions) -> None:
    """Run a suite, print its table, and write files if a folder is given.

    Under `accelerate launch` the processes share the questions, and the first prints and writes.

    Raises:
        FovealError: an unknown suite, missing data, or lmms-eval is missing; the message says what to do.
    """
    _check(options)
    from foveal.suite import processes

    here, first = processes.join().device, processes.rank() == 0
    data, scenes = _data(options, told=first)
    model, processor = load_model(options.model)
    if processes.size() > 1:
        model.to(here)
    runs, able, refused = _run(model, processor, methods, data, options)
    if not first:
        return
    comparison = _compare(runs, model, processor, data, options, scenes=scenes)
    _print(comparison, options.form)
    for line in (*refused, *_unanswered(runs)):
        print(f"foveal: {line}", file=sys.stderr)  # noqa: T201
    if options.out is not None:
        _write(comparison, model, processor, able, data, options)


def _check(options: SuiteOptions) -> None:
    """Refuse what cannot work before anything is loaded."""
    from foveal.suite.benchmarks import benchmarks
    from foveal.suite.lmms_environment import check_installed

    if options.form not in FORMATS:
        raise FovealError(f"--format {options.form}: pass one of {', '.join(FORMATS)}")
    if options.out is not None and (options.out.suffix in (".json", ".jsonl") or options.out.is_file()):
        raise FovealError(f"--out {options.out}: a suite writes several files, so pass a folder")
    benchmarks(options.suite)
    check_installed()


def _data(options: SuiteOptions, *, told: bool) -> tuple[Path | None, bool]:
    """The folder of all data, and whether it holds scenes."""
    if options.data is not None or options.online:
        return options.data, False
    from foveal.suite.scene_tasks import write_scene_tasks

    questions = max(options.limit or 0, _SCENES)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "foveal" / f"scenes-{questions}-{options.seed}"
    if told:
        line = f"no --data: the ten benchmarks' formats, filled with procedural scenes ({folder})"
        print(line, file=sys.stderr)  # noqa: T201
    return write_scene_tasks(folder, questions, options.seed), True


def _run(
    model: Any,
    processor: Any,
    methods: Sequence[Compressor | None],
    data: Path | None,
    options: SuiteOptions,
) -> tuple[list[SuiteRun], list[Compressor | None], list[str]]:
    """The runs, the methods that worked, and why others did not."""
    from foveal.suite.harness import run_suite

    runs: list[SuiteRun] = []
    able: list[Compressor | None] = []
    refused = []
    for group in [[method] for method in methods] if options.forgiving else [list(methods)]:
        try:
            runs += run_suite(
                model,
                processor,
                group,
                options.suite,
                data,
                limit=options.limit,
                batch_size=options.batch_size,
                max_new_tokens=options.max_new_tokens,
                seed=options.seed,
                out=options.out,
                online=options.online,
            )
            able += group
        except FovealError as error:
            if not options.forgiving or group == [None]:
                raise
            refused.append(f"{group[0].card.name if group[0] and group[0].card else group[0]}: {error}")
    return runs, able, refused


def _compare(
    runs: Sequence[SuiteRun],
    model: Any,
    processor: Any,
    data: Path | None,
    options: SuiteOptions,
    *,
    scenes: bool,
) -> Comparison:
    from foveal.suite.comparison import Comparison
    from foveal.suite.kept_pictures import visual_tokens
    from foveal.suite.published import is_published_model

    some = {answer.benchmark: answer for answer in runs[0].answers}
    chats = _chats(model, data, list(some.values()), options)
    apart = [] if is_published_model(str(model.name_or_path), model.config) else ["another model"]
    apart += ["other data"] if scenes else []
    return Comparison(
        options.suite,
        tuple(runs),
        whole=visual_tokens(model, processor, chats),
        apart=" and ".join(apart),
        subtract=options.differences or not apart,
    )


def _chats(model: Any, data: Path | None, answers: Sequence[Answer], options: SuiteOptions) -> list[Chat]:
    from foveal.suite.kept_pictures import read_chats

    return read_chats(model, options.suite, data, answers, limit=options.limit, online=options.online)


def _print(comparison: Comparison, form: str) -> None:
    from foveal.suite import tables

    if form == "json":
        print_json(comparison.record())
    elif form == "table":
        tables.print_scores(comparison, screen())
        tables.print_changes(comparison, screen())
    else:
        print(_texts(comparison)[form], end="")  # noqa: T201


def _texts(comparison: Comparison) -> dict[str, str]:
    from foveal.suite import tables

    return {
        "markdown": tables.markdown_table(comparison),
        "csv": tables.csv_table(comparison),
        "latex": tables.latex_table(comparison),
    }


def _unanswered(runs: Sequence[SuiteRun]) -> list[str]:
    """The first questions without a prediction, and how many there are."""
    found = [answer for run in runs for answer in run.unanswered]
    lines = [f"counted as wrong: {each.benchmark} {each.id}: {each.error}" for each in found[:_TOLD]]
    return lines if len(found) <= _TOLD else [*lines, f"counted as wrong: {len(found) - _TOLD} more"]


def _write(
    comparison: Comparison,
    model: Any,
    processor: Any,
    methods: Sequence[Compressor | None],
    data: Path | None,
    options: SuiteOptions,
) -> None:
    """suite.json, the table in three formats, and report.html."""
    from foveal.evaluation import write_json
    from foveal.suite.kept_pictures import kept_pictures
    from foveal.suite.report import write_report

    def draw(answers: Sequence[Answer]) -> list[list[Image.Image]]:
        chats = _chats(model, data, answers, options)
        return kept_pictures(model, processor, methods, chats, round(comparison.whole))

    out = options.out
    assert out is not None
    out.mkdir(parents=True, exist_ok=True)
    record = comparison.record()
    for row, run in zip(record["runs"], comparison.runs, strict=True):
        row["answers"] = run.to_json()["answers"]
    write_json(out / "suite.json", record)
    for form, suffix in {"markdown": "md", "csv": "csv", "latex": "tex"}.items():
        (out / f"table.{suffix}").write_text(_texts(comparison)[form], encoding="utf-8")
    name = "The bundled model" if options.model is None else Path(options.model).name
    write_report(comparison, out / "report.html", f"{name} on {_count(comparison)}", draw)
    if options.form == "table":
        screen().print(
            f"report.html, suite.json and tables: {out}", style="dim", markup=False, soft_wrap=True
        )


def _count(comparison: Comparison) -> str:
    titles = [benchmark.title for benchmark in comparison.benchmarks]
    return titles[0] if len(titles) == 1 else f"{len(titles)} benchmarks"
