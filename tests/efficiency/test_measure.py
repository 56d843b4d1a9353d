from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch

import foveal
from foveal import FovealError
from foveal.efficiency import Load, cost, measure
from foveal.efficiency.bench_plots import plot
from foveal.efficiency.bench_report import record
from foveal.efficiency.hardware import Hardware
from foveal.efficiency.measure import Case, same_weights
from foveal.efficiency.measure import measure as run
from foveal.efficiency.workload import Workload, of_model
from support import tiny, vlm

DEVICE = Hardware("a device", 16, 1e10, 1e11)
METHODS = {"dart": foveal.DART(keep=9), "visionzip": foveal.VisionZip(keep=9)}


@pytest.fixture(autouse=True)
def known_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "measured", lambda *_: DEVICE)


def work(answer: int = 3) -> Workload:
    return of_model(tiny.llava(), name="tiny", load=Load(text=8, answer=answer))


def test_all_that_was_measured_beside_its_bound() -> None:
    report = run(work(), METHODS, batches=(1, 2), rounds=2)
    assert [(row.name, row.batch) for row in report.rows] == [
        *(("plain", 1), ("dart", 1), ("visionzip", 1)),
        *(("plain", 2), ("dart", 2), ("visionzip", 2)),
    ]
    plain, dart = report.rows[:2]
    assert plain.gains == {}
    assert plain.ceiling is None
    assert set(dart.gains) == {"prefill", "first_token", "next_token", "answer"}
    assert dart.visual == (36, 36, 9, 9, 9, 9)
    assert dart.method == foveal.DART(keep=9).options()
    assert len(dart.layers) == 6
    assert dart.parts["selection"] > 0 == plain.parts["selection"]
    assert dart.parts["preprocessing"] == 0
    shape = work().shape
    costs = [cost(shape, method, work().load) for method in (None, METHODS["dart"])]
    assert dart.gains["prefill"].flops == costs[0].prefill / costs[1].prefill
    assert dart.gains["prefill"].own_layers is not None
    for row in report.rows:
        assert 0 < row.first_token.median < row.answer.median
        assert row.next_token is not None
    assert report.setting["clock"] == "wall"
    assert report.hardware == DEVICE


def test_parts_add_up_to_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that counts its own looks, whole prefills and parts agree but for the marks between them."""
    looks = iter(range(10**9))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: float(next(looks)))
    report = run(work(), {"dart": METHODS["dart"]}, rounds=1)
    for row in report.rows:
        marks = sum(row.parts.values())
        assert marks == int(marks) > len(row.layers)
        assert row.first_token.median == 1
        assert row.next_token is not None
        assert row.next_token.median == 1
        assert row.answer.median == 3


def test_an_answer_of_one_token_has_no_steps() -> None:
    row = run(work(answer=1), {"dart": METHODS["dart"]}, rounds=1).rows[1]
    assert row.next_token is None
    assert "next_token" not in row.gains
    assert row.first_token == row.answer


def test_every_round_runs_every_case_once_in_random_order(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    answer = measure._Subject.answer

    def noting(subject: Any, *arguments: Any) -> Any:
        order.append(type(subject.case.method).__name__)
        return answer(subject, *arguments)

    monkeypatch.setattr(measure._Subject, "answer", noting)
    report = run(work(answer=1), METHODS, rounds=6)
    rounds = [tuple(order[start : start + 3]) for start in range(0, 3 * 7, 3)]  # one of them to get warm
    assert all(sorted(names) == ["DART", "NoneType", "VisionZip"] for names in rounds)
    assert len(set(rounds)) > 2
    assert len(order) == 3 * 8  # and one for memory
    assert [row.rounds for row in report.rows] == [6, 6, 6]
    first, order[:] = list(order), []
    random.seed(1)
    run(work(answer=1), METHODS, rounds=6)
    assert order == first  # by a seed of its own


def test_progress_ends_at_its_total() -> None:
    told: list[tuple[int, int]] = []
    run(
        work(answer=1),
        {},
        batches=(1, 2),
        concurrency=(1, 2),
        rounds=2,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(done, 10) for done in range(1, 11)]


@pytest.mark.parametrize(("seconds", "rounds"), [(0.01, 61), (0.5, 30), (60.0, 9)])
def test_rounds_fill_the_time_there_is(monkeypatch: pytest.MonkeyPatch, seconds: float, rounds: int) -> None:
    """By a clock on which a round takes so long."""
    now = [0.0]

    def round_of(bench: Any, jobs: Any) -> dict[Any, Any]:
        now[0] += seconds
        return {job: jobs[job]() for job in jobs}

    monkeypatch.setattr(measure._Bench, "_round", round_of)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    told: list[tuple[int, int]] = []
    bench = measure._Bench(work(answer=1), {}, measure.Clock(torch.device("cpu")), ExitStack())
    done = measure._Progress(lambda *both: told.append(both), 1 + 61)
    assert bench._rounds({"job": lambda: 7}, None, done) == {"job": [7] * rounds}
    assert told[-1] == (1 + rounds, 1 + rounds)


def test_copies_share_their_weights() -> None:
    model = tiny.llava()
    other = same_weights(model)
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    with foveal.compress(other, METHODS["dart"]):
        assert not model.model.language_model._forward_pre_hooks
        assert other.model.language_model._forward_pre_hooks


def test_the_model_is_left_as_it_was() -> None:
    given = work(answer=1)
    before = given.model.generation_config.to_dict()
    run(given, METHODS, rounds=1)
    assert given.model.generation_config.to_dict() == before
    assert not any(module._forward_pre_hooks for module in given.model.modules())


def test_cases_beside_methods() -> None:
    entered: list[Any] = []

    @contextmanager
    def around(model: Any) -> Iterator[None]:
        entered.append(model)
        yield
        entered.append(None)

    cases = {
        "eager": Case(attention="eager"),
        "alone": Case(METHODS["dart"], alone=True),
        "around": Case(around=around),
    }
    report = run(work(), cases, batches=(2,), rounds=1)
    assert [row.name for row in report.rows] == ["plain", *cases]
    assert report.rows[1].gains["prefill"].flops == 1
    # A whole request and a watched prefill each have a model of their own.
    assert [model is None for model in entered] == [False, False, True, True]


def test_one_by_one_asks_for_every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    generate = measure._Subject.generate

    def noting(subject: Any, inputs: Any, *arguments: Any) -> None:
        if subject.case.alone:
            sizes.append(len(inputs["input_ids"]))
        generate(subject, inputs, *arguments)

    monkeypatch.setattr(measure._Subject, "generate", noting)
    run(work(answer=1), {"alone": Case(alone=True)}, batches=(3,), rounds=1)
    assert sizes == [1] * 3 * 5  # answer and parts, twice each, and memory


def test_one_by_one_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter(range(10**9))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: float(next(looks)))
    row = run(work(), {"alone": Case(alone=True)}, batches=(3,), rounds=1).rows[1]
    assert row.next_token is not None
    assert (row.first_token.median, row.next_token.median, row.answer.median) == (3, 3, 9)


def test_throughput_of_threads() -> None:
    report = run(work(), {"dart": METHODS["dart"]}, rounds=1, concurrency=(1, 2))
    found = [(each.name, each.batch, each.concurrency) for each in report.throughput]
    assert found == [("plain", 1, 1), ("dart", 1, 1), ("plain", 1, 2), ("dart", 1, 2)]
    assert all(each.samples.low > 0 for each in report.throughput)


def test_preprocessing_is_part_of_the_story() -> None:
    given = of_model(vlm.model(), vlm.processor(), name="tiny", load=Load(text=40, answer=1))
    row = run(given, {"dart": METHODS["dart"]}, rounds=1).rows[1]
    assert row.parts["preprocessing"] > 0
    assert "from the picture to the first token" in row.explanation[0]


@pytest.mark.parametrize("method", [None, METHODS["dart"]])
def test_compiled_steps_keep_their_cache_between_requests(
    monkeypatch: pytest.MonkeyPatch, method: foveal.Compressor | None
) -> None:
    """CUDA graphs are recorded for a place in memory; the next request must find it empty."""
    given, seen = work(), []
    first = type(given.model).generate

    def noting(model: Any, **options: Any) -> Any:
        cache = options["past_key_values"]
        places = [layer.keys.data_ptr() for layer in cache.layers if layer.is_initialized]
        seen.append((cache, places, int(cache.get_seq_length()), first(model, **options).tolist()))

    monkeypatch.setattr(type(given.model), "generate", noting)
    monkeypatch.setattr(type(given.model), "get_compiled_call", lambda model, _config: model.__call__)
    with ExitStack() as undo:
        subject = measure._Subject(given, Case(method, compiled=True), undo)
        clock = measure.Clock(torch.device("cpu"))
        for _ in range(3):
            assert len(subject.answer(given, 2, clock)) == 3
    (cache, _, _, answer), *others = seen
    assert all(other is cache and length == 0 and said == answer for other, _, length, said in others)
    assert seen[1][1] == seen[2][1] != []
    subject.forget()
    assert subject._caches == {}


def test_cuda_graphs_and_threads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    given = work()
    monkeypatch.setattr(Workload, "device", torch.device("cuda"))
    with pytest.raises(FovealError, match="CUDA graphs belong to one thread"):
        run(given, METHODS, concurrency=(2,), compiled=True)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_decoding() -> None:
    torch.compiler.reset()
    given = of_model(vlm.model(layers=3).float(), name="tiny", load=Load(text=8, answer=3))
    report = run(given, {"dart": METHODS["dart"], "eager": Case(compiled=False)}, rounds=1, compiled=True)
    assert report.setting["compiled"]
    assert [row.name for row in report.rows] == ["plain", "dart", "eager"]
    torch.compiler.reset()


def test_a_record_that_json_can_hold() -> None:
    report = run(work(), METHODS, rounds=1, concurrency=(1,))
    found = json.loads(json.dumps(record(report)))
    assert set(found) >= {
        "setting",
        "machine",
        "rows",
        "throughput",
        "command",
        "commit",
        "versions",
        "hardware",
    }
    row = found["rows"][1]
    assert row["seconds"]["answer"]["median"] == report.rows[1].answer.median
    assert row["least_memory_bytes"] == report.rows[1].least_memory
    assert found["machine"]["peak_flops_per_second"] == DEVICE.peak
    assert found["setting"]["load_average_before"] == report.setting["load_average_before"]
    gain = row["times_faster"]["prefill"]
    assert gain["realised"] == pytest.approx(gain["measured"]["median"] / gain["own_layers"])


def test_pictures(tmp_path: Any) -> None:
    names = [path.name for path in plot(run(work(), METHODS, rounds=1, batches=(1, 2)), tmp_path)]
    assert names == ["time.png", "gains.png", "throughput.png"]
    assert all((tmp_path / name).stat().st_size > 10_000 for name in names)
    assert [path.name for path in plot(run(work(), {}, rounds=1), tmp_path)] == ["time.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": ()}, "batches"),
        ({"batches": (0,)}, "batches"),
        ({"concurrency": (0,)}, "concurrency"),
        ({"rounds": 0}, "rounds=0"),
        ({"processor_time": True, "concurrency": (2,)}, "processor time counts one thread"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FovealError, match=message):
        run(work(), METHODS, **options)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (foveal.DART(keep=99), "keep=99"),
        (foveal.DART(keep=9, layer=6), "layer=6"),
        (foveal.TRIM(keep="auto"), "auto"),
    ],
)
def test_a_method_that_cannot_be(method: foveal.Compressor, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        run(work(), {"it": method})
