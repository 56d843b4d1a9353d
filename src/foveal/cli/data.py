"""`foveal data check`: look through a whole data set before a training run stumbles over it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from foveal.cli.common import print_json, screen
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.data.check import DataReport

__all__ = ["check", "data_app"]

data_app = typer.Typer(
    name="data", help="Look after training data.", no_args_is_help=True, rich_markup_mode="markdown"
)


@data_app.callback()
def _commands() -> None:
    """Look after training data."""


@data_app.command("check")
def check(
    file: Annotated[
        Path,
        typer.Argument(help="JSON, JSONL or Parquet, or a folder that `datasets` wrote.", show_default=False),
    ],
    images: Annotated[
        Path | None,
        typer.Option(help="Where relative image paths begin. Default: beside the file.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A checkpoint's folder or hub name: also check its chat template, answers and lengths.",
            show_default=False,
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(min=1, help="With --model: more tokens are an error.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes. Default: one a core, at most 8.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at every conversation and every image file of a data set.

    Names each bad row with the reason. Exit code 0 if all are good, 1 if some are bad.

    Examples:
    - `foveal data check llava_v1_5_mix665k.json --images ./images`
    - `foveal data check chats.jsonl --model ./llava-1.5-7b-hf --max-length 2048 --json`
    """
    from foveal.data.check import check_data
    from foveal.data.conversations import load_conversations

    if max_length is not None and model is None:
        raise FovealError("--max-length counts a model's tokens: name it with --model")
    if images is not None and not images.is_dir():
        raise FovealError(f"--images {images}: no such folder")
    processor = None if model is None else _processor(model)
    conversations = load_conversations(file, images)
    if workers is None:
        workers = min(8, os.cpu_count() or 1)
    report = check_data(conversations, processor, max_length, workers)
    if as_json:
        print_json(_as_json(file, report))
    else:
        _print(file, report)
    if report.bad:
        raise typer.Exit(1)


def _processor(model: str) -> Any:
    from transformers import AutoProcessor
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        return AutoProcessor.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FovealError(
            f"--model {model}: cannot load its processor ({reason}): pass a directory or hub name that AutoProcessor "
            "can load"
        ) from error


def _as_json(file: Path, report: DataReport) -> dict[str, Any]:
    return {
        "file": str(file),
        **dict(_counts(report)),
        "length_percentiles": report.percentiles(),
        "missing": sorted(report.missing_files),
        "bad": [{"row": row, "id": bad.id, "reason": bad.reason} for row, bad in report.bad.items()],
    }


def _counts(report: DataReport) -> list[tuple[str, int]]:
    return [
        ("conversations", report.conversations),
        ("answers", report.turns),
        ("images", report.images),
        ("text_only", report.text_only),
        ("several_images", report.several_images),
        ("missing_files", len(report.missing_files)),
        ("bad_rows", len(report.bad)),
    ]


def _print(file: Path, report: DataReport) -> None:
    table = Table("", str(file))
    table.columns[1].justify = "right"
    for name, count in _counts(report):
        table.add_row(name.replace("_", " "), f"{count:,}")
    for percent, tokens in report.percentiles().items():
        table.add_row(
            "longest, tokens" if percent == 100 else f"{percent} % have at most, tokens", f"{tokens:,}"
        )
    screen().print(table)
    for bad in report.bad.values():
        screen().print(str(bad), style="red", markup=False, soft_wrap=True)
