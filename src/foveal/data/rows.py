"""Rows of a data set that are read when they are asked for: JSON, JSONL, and what `datasets` reads.

Opening a JSON file notes where its rows begin and end, and keeps nothing else: 16 bytes a row.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from foveal.data.bars import bar
from foveal.errors import FovealError

__all__ = ["DatasetRows", "JsonRows", "Rows", "open_rows"]

_WINDOW = 1 << 24
_BOM = b"\xef\xbb\xbf"
_GAP = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_COLUMNS = ("messages", "conversations")


class Rows(Protocol):
    """What a data set is read from.

    Attributes:
        name: of the file or data set, for messages.
        folder: where relative image paths begin.
    """

    name: str
    folder: Path

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """The row; raises ValueError if it is no valid JSON."""
        ...


def open_rows(source: Any) -> Rows:
    """The rows of a JSON, JSONL or Parquet file, of a folder that `datasets` wrote, or of a `datasets.Dataset`.

    Raises:
        FovealError: there is no such file, it cannot be read, or it is none of these.
    """
    if not isinstance(source, str | Path):
        return DatasetRows(_one_split(source, "the data set"), "the data set", Path())
    path = Path(source)
    if path.is_dir():
        return DatasetRows(_from_folder(path), str(path), path)
    if not path.is_file():
        raise FovealError(f"no such file: {path}")
    if path.suffix == ".parquet":
        return DatasetRows(_from_parquet([path]), str(path), path.parent)
    return JsonRows(path)


_PROBED = 8  # rows of which one at least must be JSON


class JsonRows:
    """The elements of a JSON array, or the lines of a JSONL file.

    Raises:
        FovealError: the file cannot be read, or its array is broken off; a line that is broken is an error only
            when it is asked for.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.folder, self.path = str(path), path.parent, path
        try:
            with path.open("rb") as file:
                self._ranges = _ranges(file, path)
        except OSError as error:
            raise FovealError(f"cannot read {path}: {error}") from error
        if len(self) > 1 and not any(self._is_json(row) for row in range(min(len(self), _PROBED))):
            raise FovealError(f"{path} is neither one JSON array nor JSONL, one object a line: convert it")

    def _is_json(self, row: int) -> bool:
        try:
            self[row]
        except ValueError:
            return False
        return True

    def __len__(self) -> int:
        return len(self._ranges)

    def __getitem__(self, index: int) -> Any:
        begin, end = self._ranges[index].tolist()
        # A handle that stays open would be shared, with its position, by forked DataLoader workers.
        with self.path.open("rb") as file:
            file.seek(begin)
            return json.loads(file.read(end - begin).decode("utf-8"))


def _ranges(file: BinaryIO, path: Path) -> Any:
    """(rows, 2) int64: the bytes where each row begins and ends."""
    size = path.stat().st_size
    start = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
    file.seek(start)
    found = np.empty((1024, 2), dtype=np.int64)
    count = done = 0
    with bar(f"indexing {path.name}", size) as advance:
        for begin, end in _array(file, start, size, path) if _is_array(file) else _lines(file):
            if count == len(found):
                found = np.concatenate([found, np.empty_like(found)])
            found[count] = begin, end
            count += 1
            if end - done > _WINDOW:
                advance(end - done)
                done = end
    return found[:count].copy()


def _is_array(file: BinaryIO) -> bool:
    """Whether the next mark is a bracket; the file's position stays."""
    start = file.tell()
    mark = b" "
    while mark.isspace():
        mark = file.read(1)
    file.seek(start)
    return mark == b"["


def _lines(file: BinaryIO) -> Iterator[tuple[int, int]]:
    begin = file.tell()
    for line in file:
        end = begin + len(line)
        if line.strip():
            yield begin, end
        begin = end


def _array(file: BinaryIO, start: int, size: int, path: Path) -> Iterator[tuple[int, int]]:
    """Byte ranges of an array's elements, one window of the file at a time.

    The window is read as Latin-1, in which each byte is a character and JSON's own marks are what they are in UTF-8.
    """
    text, width, base, place, rows = "", _WINDOW, start, 0, 0
    opened = False
    while True:
        try:
            begin, end, place = _element(text, place) if opened else _opening(text)
        except (json.JSONDecodeError, IndexError) as error:
            if base + len(text) >= size:
                at = base + (error.pos if isinstance(error, json.JSONDecodeError) else len(text))
                raise FovealError(
                    f"{path}: no JSON behind sample {rows} (byte {at}: {error}); write one array, or one object a line"
                ) from error
            width = 2 * width if text and not place else width
            base, place = base + place, 0
            file.seek(base)
            text = file.read(width).decode("latin-1")
            continue
        if end > begin and opened:
            rows += 1
            yield base + begin, base + end
        opened = True
        if text[place - 1] == "]":
            break
    file.seek(base + place)
    if file.read().strip():
        raise FovealError(
            f"{path}: more behind the end of the array, at byte {base + place}: write one array"
        )


def _opening(text: str) -> tuple[int, int, int]:
    """Up to and with the array's bracket, and the one that closes it at once."""
    place = _skip(text, 0) + 1
    inside = _skip(text, place)
    return 0, 0, inside + 1 if text[inside] == "]" else place


def _element(text: str, place: int) -> tuple[int, int, int]:
    """Where the element begins and ends, and where the next one may begin: behind its comma or bracket.

    Raises:
        IndexError: the window ends before that.
        json.JSONDecodeError: no JSON, or the window ends within the element.
    """
    begin = _skip(text, place)
    _, end = _DECODER.raw_decode(text, begin)
    mark = _skip(text, end)
    if text[mark] not in ",]":
        raise json.JSONDecodeError("expected a comma", text, mark)
    return begin, end, mark + 1


def _skip(text: str, place: int) -> int:
    gap = _GAP.match(text, place)
    assert gap is not None
    return gap.end()


class DatasetRows:
    """The rows of a `datasets.Dataset`; images stay encoded until they are needed.

    Raises:
        FovealError: no column holds conversations.
    """

    def __init__(self, dataset: Any, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        if not set(_COLUMNS) & set(dataset.column_names):
            columns = ", ".join(dataset.column_names)
            raise FovealError(
                f"{name} has no column `messages` or `conversations`, only {columns}: rename one"
            )
        # A transform of the user's own sees what it expects.
        self._dataset = dataset if dataset.format["type"] == "custom" else _encoded(dataset)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]


def _encoded(dataset: Any) -> Any:
    """The data set with images as {"bytes", "path"}, so that a broken one is an error of its row alone."""
    from datasets import Image, List

    plain = dataset.with_format(None)
    for name, feature in dataset.features.items():
        if isinstance(feature, Image):
            plain = plain.cast_column(name, Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), Image):
            plain = plain.cast_column(name, List(Image(decode=False)))
    return plain


def _one_split(dataset: Any, name: str) -> Any:
    """The data set itself.

    Raises:
        FovealError: it is several splits, a stream, or no data set of `datasets`.
    """
    library = sys.modules.get("datasets")
    if library is None or not isinstance(dataset, library.Dataset):
        if library is not None and isinstance(dataset, library.DatasetDict):
            raise FovealError(f"{name} has several splits, {', '.join(dataset)}: pass one of them")
        kind = type(dataset).__name__
        raise FovealError(f"{name} is a {kind}: pass a file, a folder, or a datasets.Dataset (not a stream)")
    return dataset


def _from_folder(path: Path) -> Any:
    if (path / "dataset_dict.json").exists():
        splits = ", ".join(json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"])
        raise FovealError(f"{path} has several splits, {splits}: pass the folder of one of them")
    if (path / "dataset_info.json").exists():
        try:
            return _library().load_from_disk(str(path))
        except (OSError, ValueError) as error:
            raise FovealError(f"cannot read {path} as written by save_to_disk: {error}") from error
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise FovealError(f"{path} is a folder without a data set: expected Parquet files, or save_to_disk's")
    return _from_parquet(files)


def _from_parquet(files: list[Path]) -> Any:
    library = _library()
    try:
        return library.Dataset.from_parquet([str(file) for file in files])
    except (OSError, ValueError, library.exceptions.DatasetsError) as error:
        raise FovealError(f"cannot read {files[0]} as Parquet: {error.__cause__ or error}") from error


def _library() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise FovealError('this needs the package datasets: pip install "foveal[train]"') from error
    return datasets
