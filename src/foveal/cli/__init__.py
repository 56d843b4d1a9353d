"""The command line: one file a command."""

from foveal.cli.app import app, main

__all__ = ["app", "main"]
