"""Put questions to a model, compressed or not, and score the answers.

result = evaluate(model, processor, questions, foveal.DART(keep=64, layer=2))
print(result.accuracy, result.by_type)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel, ProcessorMixin

from foveal.compression import Run, attached, compress
from foveal.compressors import Compressor
from foveal.errors import FovealError
from foveal.evaluation import chat
from foveal.evaluation.provenance import provenance
from foveal.evaluation.questions import Question, as_question
from foveal.evaluation.results import EvaluationResult, Record
from foveal.images import open_image

__all__ = [
    "encode",
    "evaluate",
    "generate_answers",
    "method_name",
    "model_name",
    "options_of",
    "question_bar",
]


def evaluate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    questions: Iterable[Any],
    compressor: Compressor | None = None,
    *,
    batch_size: int = 8,
    max_new_tokens: int = 16,
    seed: int = 0,
    progress: bool | Callable[[int], object] = True,
    label: str = "",
) -> EvaluationResult:
    """Answer every question greedily, under `compressor` if one is given, and score the answers.

    The same call gives the same answers. A question whose image cannot be read is recorded with its error and left out
    of the scores; nothing stops.

    Args:
        model: an image-text-to-text model; put into eval mode for the duration.
        processor: its processor, with a chat template.
        questions: `Question`s, or mappings or objects with their attributes, see `as_question`.
        compressor: a method; None leaves the model as it is, attached compressor and all.
        batch_size: questions per forward; changes speed and memory only.
        max_new_tokens: longest answer.
        seed: for methods that draw.
        progress: whether a progress bar is drawn on stderr, if that is a terminal; or what to call after each batch,
            with the number of its questions.
        label: the progress bar's text; the method's name if empty.

    Raises:
        FovealError: no questions, or a question, option or model that cannot work.
    """
    if batch_size < 1:
        raise FovealError(f"batch_size={batch_size} must be at least 1")
    methods = (compressor,) if compressor else attached(model)
    total = len(questions) if isinstance(questions, Sized) else None
    records: list[Record] = []
    kept: list[tuple[int, float]] = []
    started = time.perf_counter()
    with (
        _progress(label or method_name(methods), total, progress) as advance,
        chat.steady(model, seed),
        _scope(model, compressor) as run,
    ):
        for batch in _batches(questions, batch_size):
            answered = _answer(model, processor, batch, max_new_tokens)
            records.extend(answered)
            kept.extend(_kept(run, answered))
            advance(len(batch))
    if not records:
        raise FovealError("no questions to evaluate")
    settings = {"method": method_name(methods), **options_of(methods)}
    settings |= {"model": model_name(model), "batch_size": batch_size, "max_new_tokens": max_new_tokens}
    return EvaluationResult(
        tuple(records),
        settings,
        provenance(seed),
        time.perf_counter() - started,
        *_means(kept),
    )


def _scope(model: PreTrainedModel, compressor: Compressor | None) -> AbstractContextManager[Run | None]:
    return compress(model, compressor) if compressor is not None else nullcontext()


def _kept(run: Run | None, answered: Sequence[Record]) -> list[tuple[int, float]]:
    """Of each image of the batch that was just answered: visual tokens after the last stage, and over the layers."""
    if run is None or all(record.error for record in answered):
        return []
    seen = run.tokens_by_layer
    return [(len(places), sum(seen) / len(seen)) for places in run.stages[-1].kept_in_image]


def _means(kept: Sequence[tuple[int, float]]) -> tuple[float | None, float | None]:
    if not kept:
        return None, None
    last, seen = zip(*kept, strict=True)
    return sum(last) / len(last), sum(seen) / len(seen)


def method_name(methods: Sequence[Compressor]) -> str:
    """What several methods at once are called; "none" for the plain model."""
    names = [method.card.name if method.card else type(method).__name__ for method in methods]
    return "+".join(names) or "none"


def options_of(methods: Sequence[Compressor]) -> dict[str, Any]:
    """The options of the only method, or those of each stage."""
    options = [_plain(method.options()) for method in methods]
    return options[0] if len(options) == 1 else {"stages": options} if options else {}


def _plain(value: Any) -> Any:
    """What JSON gives back unchanged; what it does not know becomes its text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return str(value)


def model_name(model: PreTrainedModel) -> str:
    """The model's name without the folders it was loaded from."""
    return str(model.name_or_path).rstrip("/").rpartition("/")[2] or type(model).__name__


def _batches(questions: Iterable[Any], size: int) -> Iterator[list[Question]]:
    numbered = (as_question(item, index) for index, item in enumerate(questions))
    while batch := list(islice(numbered, size)):
        yield batch


def _answer(
    model: PreTrainedModel, processor: ProcessorMixin, batch: list[Question], max_new_tokens: int
) -> list[Record]:
    """One record per question of the batch, those with an unreadable image without a prediction."""
    pictures: dict[int, Image.Image] = {}
    errors: dict[int, str] = {}
    for place, question in enumerate(batch):
        try:
            pictures[place] = open_image(question.image)
        except FovealError as error:
            errors[place] = str(error)
    readable = [batch[place] for place in pictures]
    texts = [question.question for question in readable]
    answers = iter(
        generate_answers(model, processor, list(pictures.values()), texts, max_new_tokens) if readable else []
    )
    return [
        _record(question, "", errors[place]) if place in errors else _record(question, next(answers))
        for place, question in enumerate(batch)
    ]


def _record(question: Question, prediction: str, error: str = "") -> Record:
    return Record(
        id=question.id,
        type=question.type,
        subset=question.subset,
        metric=question.metric,
        question=question.question,
        answers=question.answers,
        prediction=prediction,
        score=0.0 if error else question.score(prediction),
        error=error,
    )


def encode(processor: ProcessorMixin, images: list[Image.Image], questions: list[str]) -> Any:
    """The model inputs of one question about one image each, left-padded: what `generate` expects.

    Raises:
        FovealError: the processor has no chat template.
    """
    return chat.encode(processor, [_about(*pair) for pair in zip(images, questions, strict=True)])


def _about(image: Image.Image, question: str) -> chat.Chat:
    parts = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return chat.Chat([{"role": "user", "content": parts}], question)


def generate_answers(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: list[Image.Image],
    questions: list[str],
    max_new_tokens: int = 16,
) -> list[str]:
    """Answer one question about one image each, greedily, in one batch."""
    config = chat.generation_config(model, processor, {}, max_new_tokens)
    replies = chat.generate(model, processor, encode(processor, images, questions), config)
    return [reply.text for reply in replies]


def question_bar(*, shown: bool) -> Progress:
    """A bar on stderr, if that is a terminal, that counts questions."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not shown or not console.is_terminal)


@contextmanager
def _progress(
    label: str, total: int | None, progress: bool | Callable[[int], object]
) -> Iterator[Callable[[int], object]]:
    """Draws a progress bar on stderr, unless someone else does; yields the function that moves it on."""
    if callable(progress):
        yield progress
        return
    with question_bar(shown=progress) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)
