"""Measure what compression gains, on this machine and this model, beside what it could gain.

report = measure(workload("my-llava", methods), {"dart 64": foveal.DART(keep=64)})
print(report.rows[1].gains["first_token"].measured.median, report.rows[1].explanation)

Every case works on a copy of the model that shares its weights, with its method attached once. A round runs every case
once, in random order; what is compared is the median over rounds of the ratio to the same round's plain model. Whole
requests are `model.generate`, timed from the model's inputs to each token's arrival at the host; parts come from
prefills of their own, so that watching them does not slow the others. The bound by this run's own layers takes plain
prompts of as many rows as each method leaves, in the same rounds.

With compilation the static cache of a case and batch is made once and emptied between requests, outside of what is
timed: CUDA graphs are recorded for one place in memory.

On a GPU a "thread" of concurrent requests overlaps the host's work only: all share one stream.
"""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import CompileConfig, GenerationConfig, StaticCache

from foveal.compression import Run, attach
from foveal.compressors import Compressor
from foveal.efficiency.bench_report import PLAIN, SEED, Report, Row, Throughput, make_row
from foveal.efficiency.cost import cost
from foveal.efficiency.gains import PREPROCESSING, Seen, spread
from foveal.efficiency.hardware import Hardware, measured
from foveal.efficiency.memory import peak_memory
from foveal.efficiency.roofline import roofline
from foveal.efficiency.timeline import Clock, Stamps, Timeline, layer_part, watched
from foveal.efficiency.workload import Workload, needs_text
from foveal.errors import FovealError

__all__ = ["Case", "load_average", "measure", "same_weights"]

_GRAPHS = 256  # compiled steps that may be kept: one a case and batch
_TURNS, _REQUESTS = 6, 2  # at each number of threads, and of each thread
_FEWEST, _MOST, _SECONDS = (
    9,
    61,
    15.0,
)  # rounds where nobody says how many: what fits into the time of a batch


@dataclass(frozen=True)
class Case:
    """A way to run the model.

    Attributes:
        method: None for all tokens.
        compiled: decode with a static cache and a compiled step; None for what `measure` is told.
        attention: the decoder's backend ("eager"); None for the model's own.
        alone: one sample after the other, instead of a batch.
        around: wraps the case's copy of the model in a context of its own, for what is not Foveal.
    """

    method: Compressor | None = None
    compiled: bool | None = None
    attention: str | None = None
    alone: bool = False
    around: Callable[[Any], AbstractContextManager[Any]] | None = None


def measure(
    work: Workload,
    methods: Mapping[str, Compressor | Case],
    *,
    batches: Sequence[int] = (1,),
    concurrency: Sequence[int] = (),
    rounds: int | None = None,
    compiled: bool = False,
    processor_time: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Time the plain model and every method, side by side.

    Args:
        work: the model and its prompt; `work.load.answer` tokens are generated.
        methods: by name. The plain model is always there, first.
        batches: samples of a request.
        concurrency: numbers of threads that ask at the same time.
        rounds: that count; one before them, three with compilation, does not. None for as many as take 15 s a batch, 9
            to 61.
        compiled: decode with a static cache and compiled steps, plain model included.
        processor_time: count this thread's processor time instead of the wall's, where other programs disturb the
            clock; CPU with one thread only.
        progress: called with what was done, and how much there is to do.

    Raises:
        FovealError: an option out of range, or a method that does not fit the model.
    """
    cases = {PLAIN: Case(compiled=compiled)}
    for name, given in methods.items():
        case = given if isinstance(given, Case) else Case(given)
        cases[name] = replace(case, compiled=compiled) if case.compiled is None else case
    _check(work, cases, batches, concurrency, rounds, processor_time)
    load = load_average()
    read = time.thread_time if processor_time else time.perf_counter
    hardware = measured(work.device, work.model.dtype, read)
    rows: list[Row] = []
    throughput: list[Throughput] = []
    with ExitStack() as undo:
        bench = _Bench(work, cases, Clock(work.device, read), undo)
        done = _Progress(progress, len(batches) * ((rounds or _MOST) + bench.warm + len(concurrency)))
        for batch in batches:
            rows += bench.rows(batch, rounds, hardware, done)
            throughput += bench.concurrent(batch, concurrency, done)
    setting = {
        "model": work.name,
        "device": str(work.device),
        "dtype": str(work.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "text": work.load.text,
        "visual": work.load.visual,
        "answer": work.load.answer,
        "compiled": compiled,
        "load_average_before": load,
        "clock": "this thread's processor time" if processor_time else "wall",
    }
    return Report(setting, hardware, rows, throughput)


def load_average() -> float | None:
    """How many programs wanted a core in the last minute, on average; None where nobody says."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def same_weights(model: Any) -> Any:
    """A copy of a model that shares its weights, so that each method can have one of its own."""
    kept: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, kept)


def _check(
    work: Workload,
    cases: Mapping[str, Case],
    batches: Sequence[int],
    concurrency: Sequence[int],
    rounds: int | None,
    processor_time: bool,
) -> None:
    if not batches or min(batches) < 1:
        raise FovealError(f"batches {list(batches)}: pass sizes of at least 1")
    if concurrency and min(concurrency) < 1:
        raise FovealError(f"concurrency {list(concurrency)}: pass numbers of at least 1")
    if rounds is not None and rounds < 1:
        raise FovealError(f"rounds={rounds} must be at least 1")
    if processor_time and (work.device.type != "cpu" or torch.get_num_threads() > 1 or concurrency):
        raise FovealError(
            "processor time counts one thread on the CPU: pass --threads 1 without --concurrency, or the wall's clock"
        )
    if concurrency and work.device.type == "cuda" and any(case.compiled for case in cases.values()):
        raise FovealError("CUDA graphs belong to one thread: leave out --concurrency or --compile")
    for case in cases.values():
        cost(work.shape, case.method, work.load)  # refuses what cannot be


class _Progress:
    """To be called at each step of so many; it may turn out that there are fewer."""

    def __init__(self, report: Callable[[int, int], None] | None, total: int) -> None:
        self._report, self.total, self._done = report, total, 0

    def __call__(self) -> None:
        self._done += 1
        if self._report is not None:
            self._report(self._done, self.total)


class _Subject:
    """A copy of the model, made ready for a case."""

    def __init__(self, work: Workload, case: Case, undo: ExitStack, timeline: Timeline | None = None) -> None:
        self.case, self.model = case, same_weights(work.model)
        self._caches: dict[int, StaticCache] = {}
        self.model.generation_config.eos_token_id = None  # every answer is as long as asked for
        if self.model.generation_config.pad_token_id is None:
            self.model.generation_config.pad_token_id = 0
        if case.attention is not None:
            self.model.set_attn_implementation({"text_config": case.attention})
        self._run = self._attach(work, undo, timeline)
        self._question = work.question if needs_text(case.method) else None
        if case.around is not None:
            undo.enter_context(case.around(self.model))

    def _attach(self, work: Workload, undo: ExitStack, timeline: Timeline | None) -> Run | None:
        method, tower = self.case.method, work.text_tower
        if timeline is not None:
            return undo.enter_context(watched(self.model, timeline, method, tower))
        if method is None:
            return None
        run = attach(self.model, method, text_tower=tower)
        undo.callback(run.detach)
        return run

    def generate(
        self,
        inputs: dict[str, Tensor],
        tokens: int,
        stamps: Stamps | None = None,
        cache: StaticCache | None = None,
    ) -> None:
        """Answer with so many tokens each; compiled steps use `cache`, or one of their own."""
        if self._run is not None and self._question is not None:
            self._run.questions = [self._question] * len(inputs["input_ids"])
        config = GenerationConfig(max_new_tokens=tokens, do_sample=False)
        if self.case.compiled and tokens > 1:
            config.compile_config = CompileConfig()
            config.compile_config._compile_all_devices = True
            if cache is None:
                config.cache_implementation = "static"
        held = {} if cache is None else {"past_key_values": cache}
        self.model.generate(**inputs, generation_config=config, streamer=stamps, **held)

    def _cache(self, inputs: dict[str, Tensor], tokens: int) -> StaticCache | None:
        """The empty static cache of this batch, for compiled steps."""
        if not self.case.compiled or tokens == 1:
            return None
        batch, rows = inputs["input_ids"].shape
        if batch not in self._caches:
            config = self.model.config.get_text_config(decoder=True)
            self._caches[batch] = StaticCache(config=config, max_cache_len=rows + tokens)
        self._caches[batch].reset()
        return self._caches[batch]

    def forget(self) -> None:
        """Give back what is kept between requests."""
        self._caches.clear()

    def answer(self, work: Workload, batch: int, clock: Clock) -> list[float]:
        """Seconds from the inputs to each token of all samples; one by one they add up."""
        total = [0.0] * work.load.answer
        for inputs in self._lots(work, batch):
            stamps, cache = Stamps(clock), self._cache(inputs, work.load.answer)
            start = clock.settled()
            self.generate(inputs, work.load.answer, stamps, cache)
            total = [before + moment - start for before, moment in zip(total, stamps.seconds, strict=True)]
        return total

    def prefill(self, work: Workload, batch: int) -> Callable[[], None]:
        """A call that makes the first token of all samples."""
        lots = self._lots(work, batch)

        def first() -> None:
            for inputs in lots:
                self.generate(inputs, 1)

        return first

    def _lots(self, work: Workload, batch: int) -> list[dict[str, Tensor]]:
        return [work.batch(1)] * batch if self.case.alone else [work.batch(batch)]


class _Bench:
    """All cases, ready to run."""

    def __init__(self, work: Workload, cases: Mapping[str, Case], clock: Clock, undo: ExitStack) -> None:
        self.work, self.cases, self.clock = work, cases, clock
        self.timeline = Timeline(clock)
        self.order = random.Random(SEED)
        compiled = any(case.compiled for case in cases.values())
        self.warm = 3 if compiled else 1
        if compiled:
            # One code object serves all cases; past its limit the compiler would silently give up.
            limits: Any = torch._dynamo.config.patch(
                recompile_limit=_GRAPHS, accumulated_recompile_limit=_GRAPHS
            )
            undo.enter_context(limits)
        self.subjects = {name: _Subject(work, case, undo) for name, case in cases.items()}
        self.watched = {name: _Subject(work, case, undo, self.timeline) for name, case in cases.items()}

    def rows(self, batch: int, rounds: int | None, hardware: Hardware, done: _Progress) -> list[Row]:
        """Time all cases with this batch."""
        load = replace(self.work.load, batch=batch)
        costs = {name: cost(self.work.shape, case.method, load) for name, case in self.cases.items()}
        lengths = sorted({rows for each in costs.values() for rows in each.rows})
        found = self._rounds(self._jobs(batch, lengths), rounds, done)
        prices = {rows: self._price(found["layers", rows]) for rows in lengths}
        seen = {name: self._seen(name, found, batch) for name in self.cases}
        preprocessing = median(found[PREPROCESSING, ""]) if (PREPROCESSING, "") in found else 0.0
        times = {name: roofline(costs[name], self.work.shape, load, hardware) for name in self.cases}
        return [
            make_row(name, batch, case.method, seen, costs, times, prices, preprocessing)
            for name, case in self.cases.items()
        ]

    def _rounds(
        self, jobs: Mapping[Any, Callable[[], Any]], rounds: int | None, done: _Progress
    ) -> dict[Any, list[Any]]:
        """What each job found in every round that counts."""
        found: dict[Any, list[Any]] = {job: [] for job in jobs}
        start = time.perf_counter()
        for _ in range(self.warm):
            start = time.perf_counter()
            self._round(jobs)
            done()
        if rounds is None:
            fitting = int(_SECONDS / max(time.perf_counter() - start, 1e-9))
            rounds = min(max(fitting, _FEWEST), _MOST)
            done.total -= _MOST - rounds
        for _ in range(rounds):
            for job, value in self._round(jobs).items():
                found[job].append(value)
            done()
        return found

    def _round(self, jobs: Mapping[Any, Callable[[], Any]]) -> dict[Any, Any]:
        return {job: jobs[job]() for job in self.order.sample(list(jobs), len(jobs))}

    def concurrent(self, batch: int, concurrency: Sequence[int], done: _Progress) -> list[Throughput]:
        """Samples a second at each number of threads."""
        found = []
        for threads in concurrency:
            rates: dict[str, list[float]] = {name: [] for name in self.cases}
            for _ in range(_TURNS):
                for name in self.order.sample(list(rates), len(rates)):
                    rates[name].append(self._rate(self.subjects[name], batch, threads))
            found += [Throughput(name, batch, threads, spread(values)) for name, values in rates.items()]
            done()
        return found

    def _jobs(self, batch: int, lengths: Sequence[int]) -> dict[tuple[str, Any], Callable[[], Any]]:
        """What a round does, each by what it finds."""
        jobs: dict[tuple[str, Any], Callable[[], Any]] = {}
        for name, subject in self.subjects.items():
            jobs["answer", name] = partial(subject.answer, self.work, batch, self.clock)
            first = self.watched[name].prefill(self.work, batch)
            jobs["parts", name] = partial(self.timeline.split, first)
        for rows in lengths:
            words = partial(self.watched[PLAIN].generate, self.work.words(batch, rows), 1)
            jobs["layers", rows] = partial(self.timeline.split, words)
        if self.work.preprocess is not None:
            jobs[PREPROCESSING, ""] = partial(self._preprocess, batch)
        return jobs

    def _preprocess(self, batch: int) -> float:
        assert self.work.preprocess is not None
        start = self.clock.now()
        self.work.preprocess(batch)
        return self.clock.now() - start

    def _price(self, rounds: Sequence[Mapping[str, float]]) -> list[float]:
        depth = len(self.work.shape.layers)
        return [median(parts[layer_part(index)] for parts in rounds) for index in range(depth)]

    def _seen(self, name: str, found: Mapping[Any, list[Any]], batch: int) -> Seen:
        self.subjects[name].forget()  # so that its memory is counted
        answers: list[list[float]] = found["answer", name]
        steps = [[later - earlier for earlier, later in pairwise(moments)] for moments in answers]
        return Seen(
            first_token=[moments[0] for moments in answers],
            next_token=[median(each) if each else 0.0 for each in steps],
            answer=[moments[-1] for moments in answers],
            parts=found["parts", name],
            memory=peak_memory(
                lambda: self.subjects[name].answer(self.work, batch, self.clock), self.work.device
            ),
        )

    def _rate(self, subject: _Subject, batch: int, threads: int) -> float:
        """Samples a second of threads that answer two requests each."""
        inputs, tokens, count = self.work.batch(batch), self.work.load.answer, torch.get_num_threads()

        def ask() -> None:
            torch.set_num_threads(count)  # a new thread starts with the default
            for _ in range(_REQUESTS):
                subject.generate(inputs, tokens)

        with ThreadPoolExecutor(threads) as pool:
            start = self.clock.settled()
            for asked in [pool.submit(ask) for _ in range(threads)]:
                asked.result()
            seconds = self.clock.settled() - start
        return batch * threads * _REQUESTS / seconds
