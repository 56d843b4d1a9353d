"""`foveal bench`: what compression gains on this machine, beside what it could."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.budget import parse_keep
from foveal.cli.common import (
    LayerOption,
    ModelOption,
    layer_option,
    print_json,
    screen,
    split_values,
)
from foveal.cli.load_options import method_options, parse_dtype, parse_visual
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.compressors import Compressor
    from foveal.efficiency.bench_report import Report

__all__ = ["bench", "progress_bar"]


def bench(
    model: ModelOption = None,
    method: Annotated[str, typer.Option(help="Methods; the plain model is always there.")] = "dart",
    keep: Annotated[str, typer.Option(help="Tokens kept: numbers or fractions.")] = "1/9",
    layer: LayerOption = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Another option of the methods; several times.", show_default=False
        ),
    ] = None,
    batch: Annotated[str, typer.Option(help="Samples of a request: `1 4`.")] = "1",
    concurrency: Annotated[
        str | None,
        typer.Option(
            help="Threads that ask at the same time: `1 2`. Default: not tried.", show_default=False
        ),
    ] = None,
    answer: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 8,
    text: Annotated[int, typer.Option(min=2, help="Text tokens of a prompt, about.")] = 60,
    visual: Annotated[
        str | None,
        typer.Option(
            help="Visual tokens, or rows and columns of them (24x24), where there is no processor to make them.",
            show_default=False,
        ),
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="Build the model from its config alone; needs no checkpoint."),
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="`float32`, `bfloat16` or `float16`. Default: float32, on a GPU bfloat16.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="`cpu` or `cuda`. Default: the GPU if there is one.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the CPU. Default: torch's.")] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rounds that count; every case runs once in each. Default: what 15 seconds hold, 9 to 61.",
            show_default=False,
        ),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="Decode with a static cache and compiled steps, plain model included."
        ),
    ] = False,
    processor_time: Annotated[
        bool,
        typer.Option(
            "--processor-time",
            help="Count processor time, where other programs disturb the clock; needs `--threads 1`.",
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write bench.json and pictures into this folder.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure what compression gains on this machine, beside what it could gain at most.

    The plain model and every method answer the same prompt in turn; medians over rounds. What a dropped token cannot
    make faster is said in words. Several values of `--method`, `--keep`, `--batch` and `--concurrency` are separated by
    spaces or commas.

    Behind "±" is what the clock cannot tell (95 %), and "noise" where that is all there is to a gain. Bounds are what
    FLOPs, this machine, and the model's own layers allow: docs/efficiency.md.

    Examples:
    - `foveal bench`
    - `foveal bench --method dart fastv visionzip --keep 32 16 --batch 1 4 --out bench`
    - `foveal bench --model llava-hf/llava-1.5-7b-hf --random-weights --keep 64 --compile`
    """
    import torch

    from foveal.efficiency.bench_report import record
    from foveal.efficiency.cost import Load
    from foveal.efficiency.measure import measure
    from foveal.efficiency.workload import workload

    if threads is not None:
        torch.set_num_threads(threads)
    methods = _methods(method, keep, layer, option or [])
    batches, asking = _whole("batch", batch), _whole("concurrency", concurrency or "")
    if not methods:
        raise FovealError(
            f"--method {method}: the plain model is always there; name a method, see foveal list"
        )
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _quiet()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    tokens = None if visual is None else parse_visual(visual)
    work = workload(
        model,
        list(methods.values()),
        load=Load(batch=max(batches, default=1), text=text, answer=answer, visual=tokens),
        random_weights=random_weights,
        device=_device(place),
        dtype=parse_dtype(dtype or ("bfloat16" if place.startswith("cuda") else "float32")),
    )
    with progress_bar(shown=not as_json) as progress:
        report = measure(
            work,
            methods,
            batches=batches,
            concurrency=asking,
            rounds=rounds,
            compiled=compiled,
            processor_time=processor_time,
            progress=progress,
        )
    if out is not None:
        _write(report, out)
    if as_json:
        print_json(record(report))
    else:
        _print(report, out)


def _methods(names: str, keep: str, layer: int | None, options: Sequence[str]) -> dict[str, Compressor]:
    """By the name that results go by."""
    from foveal.compressors import get, method_class

    budgets = [parse_keep(value) for value in split_values(keep)]
    if not budgets:
        raise FovealError("--keep: pass at least one number of tokens, such as 16")
    found = {}
    for name in split_values(names):
        for text, budget in zip(split_values(keep), budgets, strict=True):
            if name != "none":
                kind = method_class(name)
                chosen = layer_option(kind, layer) | method_options(kind, options)
                found[f"{name} {text}"] = get(name, keep=budget, **chosen)
    return found


def _whole(name: str, text: str) -> list[int]:
    try:
        return [int(value) for value in split_values(text)]
    except ValueError as error:
        raise FovealError(f"--{name} {text}: pass whole numbers such as 1,4") from error


def _device(name: str) -> Any:
    import torch

    try:
        return torch.device(name)
    except RuntimeError as error:
        raise FovealError(f"--device {name}: pass cpu, cuda, or one of several such as cuda:1") from error


def _quiet() -> None:
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


@contextmanager
def progress_bar(*, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, if that is a terminal; to be told how much is done of how much."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
    ) as bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _write(report: Report, folder: Path) -> None:
    from foveal.efficiency.bench_plots import plot
    from foveal.efficiency.bench_report import record
    from foveal.evaluation import write_json

    write_json(folder / "bench.json", record(report))
    plot(report, folder)


def _print(report: Report, out: Path | None) -> None:
    from foveal.cli.bench_tables import print_report

    print_report(report)
    if out is not None:
        screen().print(f"bench.json and pictures: {out}", style="dim", markup=False, soft_wrap=True)
