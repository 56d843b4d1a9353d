from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foveal.efficiency import measure
from foveal.efficiency.hardware import Hardware

QUICK = ("--rounds", 1, "--answer", 2, "--device", "cpu")


@pytest.fixture(autouse=True)
def known_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Hardware("a device", 16, 1e10, 1e11)
    monkeypatch.setattr(measure, "measured", lambda *_: device)


def test_tables_and_a_verdict(run: Any, checkpoint: Path) -> None:
    ran = run("bench", "--model", checkpoint, *QUICK, "--keep", 16)
    assert ran.code == 0, ran.err
    assert "144 visual tokens, float32; a device: 0.1 TFLOP/s, 10 GB/s" in ran.out
    parts = (
        "preprocessing",
        "tower",
        "projector",
        "selection",
        "prefill",
        "rest",
        "first token",
        "next token",
    )
    assert all(f"\n{part} " in ran.out for part in parts)
    *_, last = ran.out.strip().splitlines()
    assert last.startswith("dart 16, batch 1: first token ")
    assert "that its FLOPs allow" in last
    assert "untouched: at most" in last


def test_several_of_everything_as_json_and_pictures(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    several = (
        "--method",
        "fastv",
        "visionzip",
        "--keep",
        "16",
        "0.5",
        "--batch",
        1,
        2,
        "--concurrency",
        1,
        2,
    )
    out = tmp_path / "new" / "folder"
    ran = run("bench", "--model", checkpoint, *QUICK, *several, "--out", out, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    names = ["plain", "fastv 16", "fastv 0.5", "visionzip 16", "visionzip 0.5"]
    assert [(row["name"], row["batch"]) for row in found["rows"]] == [(n, b) for b in (1, 2) for n in names]
    assert found["rows"][1]["method"]["keep"] == 16
    assert found["rows"][2]["visual"] == [144, 144, 72, 72]
    assert len(found["throughput"]) == 2 * 2 * len(names)
    assert found["command"].startswith("foveal bench --model")
    assert sorted(path.name for path in out.iterdir()) == [
        "bench.json",
        "gains.png",
        "throughput.png",
        "time.png",
    ]
    assert json.loads((out / "bench.json").read_text())["rows"] == found["rows"]


def test_options_of_a_method(run: Any, checkpoint: Path) -> None:
    chosen = ("--layer", 1, "--option", "positions=packed", "--keep", 9)
    found = json.loads(run("bench", "--model", checkpoint, *QUICK, *chosen, "--json").out)
    method = found["rows"][1]["method"]
    assert (method["layer"], method["positions"], method["keep"]) == (1, "packed", 9)


def test_random_weights_of_the_bundled_model(run: Any) -> None:
    ran = run("bench", "--random-weights", *QUICK, "--dtype", "bfloat16", "--text", 50, "--json")
    assert ran.code == 0, ran.err
    setting = json.loads(ran.out)["setting"]
    assert (setting["dtype"], setting["text"], setting["visual"]) == ("bfloat16", 50, 144)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep", "0"], "keep=0"),
        (["--keep", "999"], "keep=999 is more than the 144 visual tokens"),
        (["--keep", "auto"], 'keep="auto" needs a method'),
        (["--keep", ""], "--keep"),
        (["--method", "dort"], "unknown method 'dort'"),
        (["--method", "tome", "--layer", "2"], "--layer 2: tome"),
        (["--option", "speed=9"], "--option speed=9"),
        (["--batch", "one"], "--batch one: pass whole numbers"),
        (["--batch", "0"], "batch"),
        (["--concurrency", "0"], "concurrency"),
        (["--visual", "24x"], "--visual 24x"),
        (["--dtype", "int8"], "--dtype int8"),
        (["--device", "abacus"], "--device abacus"),
        (["--model", "/no/such/folder"], "/no/such/folder"),
        (["--model", "/no/such/folder", "--random-weights"], "/no/such/folder"),
        (["--processor-time", "--concurrency", "2"], "processor time counts one thread"),
    ],
)
def test_a_bad_option_ends_in_one_line(run: Any, options: list[str], message: str) -> None:
    ran = run("bench", *QUICK, *options)
    assert ran.code == 2
    assert ran.out == ""
    assert len(ran.err.strip().splitlines()) == 1, ran.err
    assert ran.err.startswith("foveal: ")
    assert message in ran.err
