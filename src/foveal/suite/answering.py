"""Put many questions to one model under one method: in batches, prepared ahead, kept on disk, with failures named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

import foveal
from foveal.compression import Run, compress
from foveal.compressors import Compressor
from foveal.errors import FovealError
from foveal.evaluation.chat import Chat, Reply, encode, generate, generation_config, steady
from foveal.suite.answer_log import AnswerLog, Given, digest, method_digest, setup_digest, weights_digest
from foveal.text_tower import TextTower

__all__ = ["Answerer", "Ask"]

_IN_A_ROW = 16  # failures after which something is wrong with more than the questions

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Ask:
    """A question to be read when its turn comes.

    Attributes:
        task: the benchmark it belongs to.
        document: its place there.
        read: loads its pictures and makes the conversation.
        generation: a task's ``generation_kwargs``, `until` among them.
        length: of its text, by which questions are sorted.
    """

    task: str
    document: int
    read: Callable[[], Chat]
    generation: Mapping[str, Any] = field(default_factory=dict)
    length: int = 0

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.task} {self.document}"


@dataclass
class _Batch:
    """Questions that were read.

    Attributes:
        keys: in the log, of each question that is to be found there, by its place in the list of all.
        chats: those that have no answer yet.
        known: answers of an earlier run.
        groups: places of questions with images and of those without, and what the processor made of them, None where
            it failed.
        failed: what went wrong with the others.
    """

    keys: dict[int, str] = field(default_factory=dict)
    chats: dict[int, Chat] = field(default_factory=dict)
    known: dict[int, Given] = field(default_factory=dict)
    groups: list[tuple[list[int], Any]] = field(default_factory=list)
    failed: dict[int, Exception] = field(default_factory=dict)


class Answerer:
    """Answers questions with one model under one method.

    Args:
        model: an image-text-to-text model that is not compressed.
        processor: its processor, with a chat template.
        methods: the stages of the compression; none leaves the model as it is.
        batch_size: questions a forward.
        max_new_tokens: longest answer; None for what each task says.
        seed: for sampling, where a task asks for it.
        log: a folder in which answers are kept; those found there are not asked again. Sampled ones are not kept.
        rank: this process among several that share the questions.
        text_tower: for methods that read the question; by default the CLIP beside the model.

    Raises:
        FovealError: a method that does not fit the model, or an option out of range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        methods: Sequence[Compressor] = (),
        *,
        batch_size: int = 1,
        max_new_tokens: int | None = None,
        seed: int = 0,
        log: str | Path | None = None,
        rank: int = 0,
        text_tower: TextTower | None = None,
    ) -> None:
        if batch_size < 1:
            raise FovealError(f"batch_size={batch_size} must be at least 1")
        if max_new_tokens is not None and max_new_tokens < 1:
            raise FovealError(f"max_new_tokens={max_new_tokens} must be at least 1")
        self.model, self.processor = model, processor
        self.methods = tuple(methods)
        self.batch_size, self.max_new_tokens, self.seed = batch_size, max_new_tokens, seed
        self._reads_questions = any(getattr(method, "needs_text", False) for method in self.methods)
        self._text_tower = text_tower
        if self._reads_questions and text_tower is None:
            self._text_tower = TextTower.beside(model)
        with self._compressed():
            pass  # what does not fit is said before anything is read
        self._log = None if log is None else AnswerLog(log, rank)
        self._settings = self._describe() if log is not None else ""
        self._answers: list[Given] = []
        self._row = 0
        self.failures: dict[str, str] = {}

    @property
    def accounts(self) -> tuple[int, int, float]:
        """Of all images so far: their number, visual tokens left after the last stage, and those that a layer sees."""
        return (
            sum(len(answer.kept) for answer in self._answers),
            sum(sum(answer.kept) for answer in self._answers),
            sum(answer.seen * len(answer.kept) for answer in self._answers),
        )

    def answer(
        self, asks: Sequence[Ask], advance: Callable[[int], object] = lambda count: None
    ) -> list[Given | None]:
        """Answer all questions, in the order given; None where one could not be, which `failures` explains.

        A batch that fails is asked anew, one question at a time. Batches depend on the questions alone, not on what
        was answered before.

        Args:
            asks: the questions.
            advance: told after each batch how many questions it had.

        Raises:
            FovealError: no question can be answered, or too many in a row cannot.
        """
        found: dict[int, Given] = {}
        with self._compressed() as run, steady(self.model, self.seed):
            for places, batch in _ahead(lambda places: self._read(asks, places), self._batches(asks)):
                given = {**batch.known, **self._ask(asks, batch, run)}
                found.update(given)
                self._note(asks, places, given, batch.failed)
                advance(len(places))
        self._answers.extend(found.values())
        if asks and not found:
            name, reason = next(reversed(self.failures.items()))
            raise FovealError(
                f"none of the {len(asks)} questions could be answered; the last was {name}: {reason}"
            )
        return [found.get(place) for place in range(len(asks))]

    def _batches(self, asks: Sequence[Ask]) -> Iterator[list[int]]:
        """Places of questions that want the same of `generate`, the longest first."""
        wanted = [json.dumps(ask.generation, sort_keys=True, default=str) for ask in asks]
        order = sorted(range(len(asks)), key=lambda place: (wanted[place], -asks[place].length))
        for _, group in groupby(order, key=lambda place: wanted[place]):
            places = list(group)
            yield from (
                places[start : start + self.batch_size] for start in range(0, len(places), self.batch_size)
            )

    def _read(self, asks: Sequence[Ask], places: Sequence[int]) -> _Batch:
        """Pictures, prompts and the answers known from an earlier run."""
        batch = _Batch()
        for place in places:
            try:
                chat = asks[place].read()
            except Exception as error:
                batch.failed[place] = error
                continue
            answer = None
            if self._log is not None and not self._config(asks[place]).do_sample:
                wanted = sorted(asks[place].generation.items())
                batch.keys[place] = digest(self._settings, chat, wanted)
                answer = self._log.get(batch.keys[place])
            if answer is None:
                batch.chats[place] = chat
            else:
                batch.known[place] = answer
        for with_images in (True, False):
            group = [place for place, chat in batch.chats.items() if bool(chat.images) is with_images]
            if group:
                batch.groups.append((group, self._encoded([batch.chats[place] for place in group])))
        return batch

    def _encoded(self, chats: Sequence[Chat]) -> Any:
        try:
            return encode(self.processor, chats)
        except Exception:
            return None  # told by the question that is to blame, when it is asked alone

    def _ask(self, asks: Sequence[Ask], batch: _Batch, run: Run | None) -> dict[int, Given]:
        given: dict[int, Given] = {}
        for places, inputs in batch.groups:
            answers, error = self._try(asks, batch, places, inputs, run)
            if error is None:
                given |= answers
            elif len(places) == 1:
                batch.failed[places[0]] = error
            else:
                for place in places:
                    answers, error = self._try(asks, batch, [place], None, run)
                    given |= answers
                    if error is not None:
                        batch.failed[place] = error
        return given

    def _try(
        self, asks: Sequence[Ask], batch: _Batch, places: Sequence[int], inputs: Any, run: Run | None
    ) -> tuple[dict[int, Given], Exception | None]:
        """Answers to the questions at `places`, or why there are none; nothing else holds on to a failed forward."""
        chats = [batch.chats[place] for place in places]
        try:
            answers = self._generate(chats, asks[places[0]], inputs, run)
        except Exception as error:
            return {}, error.with_traceback(None)
        given = dict(zip(places, answers, strict=True))
        if self._log is not None:
            self._log.add(
                {batch.keys[place]: answer for place, answer in given.items() if place in batch.keys}
            )
        return given, None

    def _config(self, ask: Ask) -> GenerationConfig:
        return generation_config(self.model, self.processor, ask.generation, self.max_new_tokens)

    def _generate(self, chats: Sequence[Chat], ask: Ask, inputs: Any, run: Run | None) -> list[Given]:
        if run is not None and self._reads_questions:
            run.questions = [chat.question for chat in chats]
        config = self._config(ask)
        until = ask.generation.get("until") or ()
        replies = generate(
            self.model,
            self.processor,
            encode(self.processor, chats) if inputs is None else inputs,
            config,
            [until] if isinstance(until, str) else until,
        )
        copies = (config.num_beams or 1) * (config.num_return_sequences or 1)
        return _accounted(replies, run if chats[0].images else None, copies)

    def _note(
        self,
        asks: Sequence[Ask],
        places: Sequence[int],
        given: Mapping[int, Given],
        failed: Mapping[int, Exception],
    ) -> None:
        for place in places:
            self._row = 0 if place in given else self._row + 1
            if place in failed:
                self.failures[asks[place].name] = _reason(failed[place])
            if self._row == _IN_A_ROW:
                raise FovealError(
                    f"{_IN_A_ROW} questions in a row could not be answered; the last was {asks[place].name}: "
                    f"{_reason(failed[place])}"
                )

    def _describe(self) -> str:
        """All that an answer depends on besides the question."""
        models = [module for module in (self.model, self._text_tower) if module is not None]
        return json.dumps(
            [
                foveal.__version__,
                setup_digest(self.model, self.processor),
                [weights_digest(module) for module in models],
                [method_digest(method) for method in self.methods],
                self.max_new_tokens,
                self.seed,
            ]
        )

    def _compressed(self) -> AbstractContextManager[Run | None]:
        if not self.methods:
            return nullcontext()
        return compress(self.model, self.methods, text_tower=self._text_tower)


def _reason(error: Exception) -> str:
    """One line that says what went wrong."""
    text = " ".join(str(error).split())
    return text if isinstance(error, FovealError) else f"{type(error).__name__}: {text}"


def _accounted(replies: Sequence[Reply], run: Run | None, copies: int) -> list[Given]:
    """The answers with the visual tokens of their images; beams repeat each sample `copies` times."""
    kept: list[list[int]] = [[] for _ in replies]
    seen = 0.0
    if run is not None:
        last, by_layer = run.stages[-1], run.tokens_by_layer
        for sample, places in zip(last.image_samples, last.kept_in_image, strict=True):
            kept[sample // copies].append(len(places))
        seen = sum(by_layer) / len(by_layer)
    return [
        Given(reply.text, reply.read, reply.written, tuple(tokens), seen)
        for reply, tokens in zip(replies, kept, strict=True)
    ]


def _ahead(work: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[tuple[Item, Made]]:
    """Each item and what `work` makes of it, the next one being worked on in the background meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        before: tuple[Item, Future[Made]] | None = None
        for item in items:
            following = (item, pool.submit(work, item))
            if before is not None:
                yield before[0], before[1].result()
            before = following
        if before is not None:
            yield before[0], before[1].result()
