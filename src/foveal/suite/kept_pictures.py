"""What each method kept of a question's picture, drawn from the benchmark's data once more."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from foveal.compression import Run, compress
from foveal.compressors import Compressor
from foveal.errors import FovealError
from foveal.evaluation.chat import Chat, encode, generate, generation_config
from foveal.show import grid_of, overlay, seen_images
from foveal.suite.answers import Answer
from foveal.suite.benchmarks import benchmarks
from foveal.suite.lmms_environment import offline, quiet
from foveal.suite.tasks import bundled_prompt, make_task

__all__ = ["kept_pictures", "read_chats", "visual_tokens"]

WIDTH = 320


def read_chats(
    model: PreTrainedModel,
    suite: str,
    data: Path | None,
    answers: Sequence[Answer],
    *,
    limit: int | None,
    online: bool = False,
) -> list[Chat]:
    """The questions as they were put to the model, with their pictures.

    Args:
        model: that of the run, which may have prompts of its own.
        suite: what was run, see `foveal.suite.benchmarks.benchmarks`.
        data: the folder of all data.
        answers: what was answered.
        limit: that of the run.
        online: that of the run.

    Raises:
        FovealError: the data is not in `data`.
    """
    with nullcontext() if online else offline(), quiet():
        asked = {answer.benchmark for answer in answers}
        tasks = {
            benchmark.column: make_task(
                benchmark, data, limit=limit, online=online, prompt=bundled_prompt(benchmark, model)
            )
            for benchmark in benchmarks(suite)
            if benchmark.column in asked
        }
        found = []
        for answer in answers:
            task = tasks[answer.benchmark]
            found.append(Chat.of(task.doc_to_messages(task.eval_docs[answer.row])))
        return found


def visual_tokens(model: PreTrainedModel, processor: ProcessorMixin, chats: Sequence[Chat]) -> float:
    """Visual tokens of a picture with no compression, averaged over the chats' pictures."""
    counts: list[int] = []
    with compress(model, "random", keep=1.0, layer=0) as run:
        for chat in chats:
            _forward(model, processor, chat, run)
            counts += [len(kept) for kept in run.stages[-1].kept_in_image]
    return sum(counts) / len(counts)


def kept_pictures(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    methods: Sequence[Compressor | None],
    chats: Sequence[Chat],
    tokens: int,
) -> list[list[Image.Image]]:
    """Of each chat what the model saw under each method: kept patches bright, the others pale.

    Args:
        model: uncompressed.
        processor: its processor.
        methods: None shows the whole picture.
        chats: with one picture each.
        tokens: visual tokens of a picture with no compression.

    Raises:
        FovealError: pictures that cannot be drawn, such as those of a model that cuts them into tiles.
    """
    whole, grid = [_whole(processor, chat) for chat in chats], grid_of(tokens)
    columns: list[list[Image.Image]] = []
    for method in methods:
        if method is None:
            columns.append([overlay(picture, [0], (1, 1), WIDTH) for picture in whole])
            continue
        column = []
        with compress(model, method) as run:
            for chat, picture in zip(chats, whole, strict=True):
                _forward(model, processor, chat, run)
                column.append(overlay(picture, run.stages[-1].kept_in_image[0], grid, WIDTH))
        columns.append(column)
    return [list(row) for row in zip(*columns, strict=True)]


def _whole(processor: ProcessorMixin, chat: Chat) -> Image.Image:
    found = seen_images(encode(processor, [chat])["pixel_values"], processor)
    if len(found) != 1:
        raise FovealError(f"a question has {len(found)} pictures or tiles, but one can be drawn")
    return found[0]


def _forward(model: PreTrainedModel, processor: ProcessorMixin, chat: Chat, run: Run) -> None:
    """A prefill as the answer began with."""
    if any(getattr(method, "needs_text", False) for method in run.compressors):
        run.questions = [chat.question]
    config = generation_config(model, processor, {}, max_new_tokens=1)
    generate(model, processor, encode(processor, [chat]), config)
