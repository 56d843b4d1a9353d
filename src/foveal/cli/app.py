"""The application: registers the commands and turns input errors into one line and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from foveal.cli import ask, bench, data, demo, estimate, evaluate, methods, schedule, train
from foveal.cli.common import join_values
from foveal.environment import check_torchvision
from foveal.errors import FovealError

__all__ = ["app", "main"]

# Fields of EpicConfig are read by the command itself; `--batch_size` and `--batch-size` are the same.
_ANY_OPTION = {
    "ignore_unknown_options": True,
    "token_normalize_func": lambda name: name.replace("_", "-"),
}

app = typer.Typer(
    name="foveal",
    help="Fewer visual tokens for vision-language models: compress, train with EPIC, and see the difference.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("ask")(ask.ask)
app.command("list")(methods.methods)
app.command("eval")(evaluate.evaluate)
app.command("estimate")(estimate.estimate)
app.command("bench")(bench.bench)
app.command("train", context_settings=_ANY_OPTION)(train.train)
app.command("schedule", context_settings=_ANY_OPTION)(schedule.schedule)
app.add_typer(data.data_app, name="data")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a bad input ends in one line on stderr and exit code 2.

    Args:
        arguments: in place of `sys.argv[1:]`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] in (["eval"], ["bench"]):
        words = join_values(words, ("--batch", "--concurrency", "--keep", "--method", "--tasks"))
    try:
        try:
            app(args=words)
        except ImportError:
            check_torchvision()  # which makes transformers fail with errors that do not name it
            raise
    except (FovealError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"foveal: {message}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
