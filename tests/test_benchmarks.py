"""The code of benchmarks that nobody runs every day."""

from __future__ import annotations

import json
import weakref
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from foveal import FovealError
from foveal.efficiency import measure
from foveal.efficiency.bench_report import record
from foveal.efficiency.hardware import Hardware

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    device = Hardware("a device", 16, 1e10, 1e11)
    monkeypatch.setattr(measure, "measured", lambda *_: device)


@pytest.fixture
def gpu() -> Any:
    return import_module("gpu")


@pytest.fixture
def document(gpu: Any, tmp_path: Path) -> Path:
    path = tmp_path / "efficiency.md"
    path.write_text(f"before\n\n{gpu.BEGIN}\nold\n{gpu.END}\n\nbehind\n")
    return path


def test_without_a_result_the_page_says_so(gpu: Any, document: Path) -> None:
    gpu.write_page({}, document)
    text = document.read_text()
    assert "Not run on a GPU yet." in text
    assert "old" not in text
    assert text.startswith(f"before\n\n{gpu.BEGIN}\n")
    assert text.endswith(f"{gpu.END}\n\nbehind\n")
    gpu.write_page({}, document)
    assert document.read_text() == text


def test_a_page_without_marks(gpu: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("nothing\n")
    with pytest.raises(FovealError, match="lacks the lines"):
        gpu.write_page({}, path)


def test_prefills_on_the_page(gpu: Any, document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "METHODS", ("dart", "visionzip"))
    result = json.loads(json.dumps({"prefill-1": record(gpu.measured("prefill-1", tiny=True))}))
    gpu.write_page(result, document)
    text = document.read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == ["| plain", "| dart 36", "| visionzip 36"]
    bound = result["prefill-1"]["rows"][1]["times_faster"]["prefill"]["flops"]
    assert rows[1][4].endswith(f" of {bound:.2f}")
    assert (document.parent / gpu.PICTURE).stat().st_size > 10_000


def test_answers_on_the_page(gpu: Any) -> None:
    def row(name: str, seconds: float, gain: float | None) -> dict[str, Any]:
        gains = {} if gain is None else {"answer": {"measured": {"median": gain}}}
        return {"name": name, "batch": 1, "seconds": {"answer": {"median": seconds}}, "times_faster": gains}

    rows = [
        row("plain", 0.2, None),
        row("dart 64", 0.1, 2.1),
        row(gpu.EAGER, 0.3, 0.67),
        row(gpu.EAGER_ATTENTION, 0.4, 0.5),
    ]
    lines = gpu.answer_lines({"setting": {"answer": 3}, "rows": rows})
    assert "| plain | 1 | 200.0 | 1.00 | 1.50 | 2.00 |  |" in lines
    assert "| dart 64 | 1 | 100.0 | 2.10 | 3.00 | 4.00 | 1.48 |" in lines


def test_a_run_that_was_stopped_goes_on(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, asked = tmp_path / "gpu.json", []

    def measured(part: str, *, tiny: bool) -> str:
        asked.append(part)
        if asked == ["prefill-1", "prefill-8", "answers-1"]:
            raise KeyboardInterrupt
        return part

    monkeypatch.setattr(gpu, "measured", measured)
    monkeypatch.setattr(gpu, "record", lambda part: {"of": part})
    monkeypatch.setattr(gpu, "page", lambda _result: [])
    monkeypatch.setattr("sys.argv", ["gpu.py", "--out", str(out)])
    with pytest.raises(KeyboardInterrupt):
        gpu.main()
    assert list(json.loads(out.read_text())) == ["prefill-1", "prefill-8"]
    gpu.main()
    assert asked[3:] == ["answers-1", "answers-8"]
    assert list(json.loads(out.read_text())) == list(gpu.PARTS)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--only", "prefill-8", "--out", str(out)])
    gpu.main()
    assert asked[5:] == ["prefill-8"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_a_parts_memory_is_given_back(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "METHODS", ("dart",))
    built: list[Any] = []
    build = gpu.build

    def noting(*arguments: Any, **options: Any) -> Any:
        work = build(*arguments, **options)
        built.append(weakref.ref(work.model))
        return work

    monkeypatch.setattr(gpu, "build", noting)
    gpu.measured("prefill-1", tiny=True)
    gpu.release()
    assert built[0]() is None


def test_batches_stand_on_one_page(gpu: Any) -> None:
    found = {f"prefill-{batch}": {"setting": 1, "rows": [batch]} for batch in (1, 8)}
    assert gpu.parts({**found, "answers-1": {"rows": [0]}}, "prefill") == {"setting": 1, "rows": [1, 8]}
    assert gpu.parts(found, "answers") == {}


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_answers_compiled(gpu: Any) -> None:
    rows = gpu.measured("answers-1", tiny=True).rows
    assert [row.name for row in rows] == ["plain", "dart 64", gpu.EAGER, gpu.EAGER_ATTENTION]


def test_a_mask_hides_what_dropping_drops() -> None:
    """The same tokens, hidden or dropped: the same answer."""
    import torch

    import foveal
    from support import tiny

    plain = import_module("against_plain")
    inputs = tiny.batch([1], [8])
    first = int((inputs["input_ids"][0] == tiny.IMAGE).nonzero()[0])
    model = tiny.llava()

    class Front(foveal.Compressor):
        """Keeps the first tokens."""

        def score(self, context: Any) -> Any:
            return -context.layout.rows.double()

    with torch.no_grad():
        with plain.masking(first + 9, first + tiny.TOKENS, model):
            hidden = model.generate(
                **inputs, max_new_tokens=4, output_logits=True, return_dict_in_generate=True
            )
        with foveal.compress(model, Front(keep=9, layer=plain.LAYER)):
            dropped = model.generate(
                **inputs, max_new_tokens=4, output_logits=True, return_dict_in_generate=True
            )
    for one, other in zip(hidden.logits, dropped.logits, strict=True):
        assert (one - other).abs().max() < 1e-6
