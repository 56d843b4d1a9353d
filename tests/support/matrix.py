"""The support matrix: what tests noted with the `support` fixture, as docs/support.md."""

from __future__ import annotations

import platform
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import transformers

Cells = dict[tuple[str, str], Any]

TABLES = {
    "Prefill and decode": [
        "sdpa, batch 1",
        "sdpa, ragged",
        "eager, batch 1",
        "eager, ragged",
        "several stages",
        "merging, packing",
        "pre-LM",
        "video",
        "flash (2-D masks)",
        "flex",
    ],
    "Generate": [
        "sampling",
        "beams",
        "prompt lookup",
        "assistant",
        "chunked prefill",
        "second turn",
        "second turn, image",
        "static cache",
        "compiled decode",
    ],
}
HEAD = """# What is supported

Made by `make support` from the tests; do not edit. Each cell holds the largest difference of any logit, over all
methods, layers and prompts tested, between the compressed model and the masked oracle (the unmodified model, without
cache, whose deeper layers may not see the dropped tokens), in float64 on small random models of the real classes. All
below 1e-10 is exact. **refused**: one line says why. **plain**: the plain model cannot do it either. Empty: untested.
For wrappers, `equal` means bit for bit what the same compression gives without the wrapper.

`make test-versions` runs the same tests on transformers 5.16, 5.19 and the newest. On all of them compression is exact
wherever the plain model is right. Before 5.23 the library itself loses images in chunked prefill, and gradient
checkpointing under compression is refused; before 5.19 it mixes up images when beams or return sequences meet several
images in a sample, and assistants, second turns and static caches of some sliding-window models fail.
"""


class Matrix:
    """Collects cells as tests report, and writes the page at the end of the session."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: Cells = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the largest difference of each cell; a failed test makes it `failed`."""
        for name, value in report.user_properties if report.when == "call" else ():
            if name == "support":
                self.note(*value, failed=report.failed)

    def note(self, family: str, mode: str, difference: Any, *, failed: bool) -> None:
        """Add a test's result to its cell."""
        cell = (family, mode)
        if failed or self.cells.get(cell) == "failed":
            self.cells[cell] = "failed"
        elif isinstance(difference, float):
            self.cells[cell] = max(difference, self.cells.get(cell, 0.0))
        else:
            self.cells[cell] = difference or "refused"

    def pytest_sessionfinish(self, session: Any) -> None:
        """Write the page, once, in the process that collects."""
        if not hasattr(session.config, "workerinput"):
            self.path.write_text(page(self.cells))


def page(cells: Cells) -> str:
    """docs/support.md."""
    wanted = {mode for modes in TABLES.values() for mode in modes}
    families = sorted({family for family, mode in cells if mode in wanted})
    torch_version, python = torch.__version__, platform.python_version()
    versions = f"Versions: torch {torch_version}, transformers {transformers.__version__}, Python {python}.\n"
    parts = [HEAD, versions]
    for title, modes in TABLES.items():
        rows = [[family, *(shown(cells.get((family, mode), "")) for mode in modes)] for family in families]
        parts.append(f"## {title}\n\n{table(['family', *modes], rows)}")
    wrappers: dict[str, list[str]] = defaultdict(list)
    for (family, mode), value in sorted(cells.items()):
        if mode not in wanted and mode != "any":
            wrappers[mode].append(f"{family} {shown(value)}")
    rows = [[mode, ", ".join(found)] for mode, found in sorted(wrappers.items())]
    parts.append(f"## Wrappers\n\n{table(['wrapper', 'largest difference'], rows)}")
    rows = [[family, reason] for (family, mode), reason in sorted(cells.items()) if mode == "any"]
    parts.append(f"## Refused families\n\n{table(['family', 'why'], rows)}")
    return "\n".join(parts)


def shown(value: Any) -> str:
    """A cell's text."""
    if isinstance(value, float):
        return f"{value:.0e}" if value else "equal"
    return f"**{value}**" if value else ""


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
