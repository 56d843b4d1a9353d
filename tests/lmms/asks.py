"""Run a suite on the bundled model, in as many processes as there are: `python asks.py DATA OUT RESULT [KILL]`.

With KILL, the process kills itself after so many batches.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState

import foveal
from foveal.suite.answer_log import AnswerLog, Given
from foveal.suite.harness import run_suite

METHODS = [None, foveal.DART(keep=16)]
OPTIONS: dict[str, Any] = {"limit": 9, "batch_size": 4, "max_new_tokens": 8, "progress": False}
SUITE = "gqa,mme"


def kill_after(batches: int) -> None:
    add, left = AnswerLog.add, iter(range(batches, 0, -1))

    def dying(self: AnswerLog, answers: dict[str, Given]) -> None:
        add(self, answers)
        if next(left) == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    AnswerLog.add = dying  # type: ignore[method-assign]


def main(data: str, out: str, result: str, kill: str = "") -> None:
    if kill:
        kill_after(int(kill))
    runs = run_suite(*foveal.load(), METHODS, SUITE, Path(data), out=Path(out), **OPTIONS)
    rank = PartialState().process_index
    Path(f"{result}-{rank}.json").write_text(json.dumps([run.to_json() for run in runs]))


if __name__ == "__main__":
    main(*sys.argv[1:])
