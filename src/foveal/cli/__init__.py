"""The command line: `foveal demo`, `ask`, `list`, `eval`, `train`, `schedule` and `data`, one file a command."""

from foveal.cli.app import app, main

__all__ = ["app", "main"]
