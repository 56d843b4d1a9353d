"""The code of benchmarks that nobody runs every day."""

from __future__ import annotations

import json
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
    result = json.loads(json.dumps({"prefill": record(gpu.prefill(tiny=True))}))
    gpu.write_page(result, document)
    text = document.read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == ["| plain", "| dart 36", "| visionzip 36"]
    bound = result["prefill"]["rows"][1]["gains"]["prefill"]["flops"]
    assert rows[1][4].endswith(f" of {bound:.2f}")
    assert (document.parent / gpu.PICTURE).stat().st_size > 10_000


def test_answers_on_the_page(gpu: Any) -> None:
    def row(name: str, seconds: float, gain: float | None) -> dict[str, Any]:
        gains = {} if gain is None else {"answer": {"measured": {"median": gain}}}
        return {"name": name, "batch": 1, "answer": {"median": seconds}, "gains": gains}

    rows = [
        row("plain", 0.2, None),
        row("dart 64", 0.1, 2.1),
        row(gpu.EAGER, 0.3, 0.67),
        row(gpu.EAGER_ATTENTION, 0.4, 0.5),
    ]
    lines = gpu.answer_lines({"setting": {"answer": 3}, "rows": rows})
    assert "| plain | 1 | 200.0 | 1.00 | 1.50 | 2.00 |  |" in lines
    assert "| dart 64 | 1 | 100.0 | 2.10 | 3.00 | 4.00 | 1.48 |" in lines


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_answers_compiled(gpu: Any) -> None:
    rows = gpu.answers(tiny=True).rows
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
