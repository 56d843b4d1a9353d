"""The ten benchmarks in miniature: scenes and their questions in the files of the originals.

Columns, types, splits and file names are those of the repositories on the hub, so that what runs on these runs on the
originals.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from foveal.errors import FovealError
from foveal.suite.benchmarks import BENCHMARKS, Benchmark
from foveal.suite.scene_features import features
from foveal.suite.scene_rows import ROWS, Row, Source

__all__ = ["VERSION", "write_scene_tasks"]

VERSION = 1
_MARK = "scene_tasks.json"
_FIRST = 2**36  # beyond the scenes that `SceneQuestions` asks about
_BLOCK = 2**20


def write_scene_tasks(folder: Path, questions: int = 200, seed: int = 0) -> Path:
    """Write the ten data sets below `folder`, unless they are already there.

    Equal arguments give equal questions. A writer that is killed leaves `folder` as it was.

    Args:
        folder: the folder of all data, as `task_config` wants it; made if missing.
        questions: rows of each data set; MME has at least 28 (a pair a category), MMBench whole rotations.
        seed: other scenes, 0..1023.

    Returns:
        `folder`.

    Raises:
        FovealError: `datasets` is not installed, `folder` holds something else, or an argument is out of range.
    """
    if questions < 1:
        raise FovealError(f"questions={questions} must be at least 1")
    if not 0 <= seed < 1024:
        raise FovealError(f"seed={seed} must lie between 0 and 1023")
    wanted = {"version": VERSION, "questions": questions, "seed": seed}
    if _mark(folder) == wanted:
        return folder
    if _mark(folder) is None and folder.exists() and any(folder.iterdir()):
        raise FovealError(f"{folder} holds files that are no scene tasks: name an empty or a new folder")
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise FovealError("scene tasks are written with `datasets`: pip install datasets") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for place, (column, rows) in enumerate(ROWS.items()):
            source = Source("test", _FIRST + (seed * 16 + place) * _BLOCK)
            _write(made, BENCHMARKS[column], rows(source, questions))
        (made / _MARK).write_text(json.dumps(wanted), encoding="utf-8")
        made.chmod(0o755)
        _move(made, folder, wanted)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _mark(folder: Path) -> Any:
    try:
        return json.loads((folder / _MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _move(made: Path, folder: Path, wanted: dict[str, int]) -> None:
    """Put `made` in the place of `folder`, unless another process was quicker with the same."""
    if _mark(folder) == wanted:
        return
    old = made.with_name(f"{made.name}.old")
    if folder.exists():
        folder.rename(old)
    try:
        made.rename(folder)
    except OSError:
        if _mark(folder) != wanted:
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _write(data: Path, benchmark: Benchmark, tables: dict[str, list[Row]]) -> None:
    """Write the tables of a benchmark, one a configuration, as the hub's repository has them."""
    import pyarrow.parquet
    from datasets import Dataset

    for config, rows in tables.items():
        base = data / benchmark.folder / (config or benchmark.config or "data")
        base.mkdir(parents=True, exist_ok=True)
        table = Dataset.from_list(rows, features=features(benchmark, config)).data.table
        pyarrow.parquet.write_table(table, base / f"{benchmark.split}-00000-of-00001.parquet")
