from __future__ import annotations

import json
import re
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
    monkeypatch.setattr(measure, "load_average", lambda: 0.5)


def test_tables_and_a_verdict(run: Any, checkpoint: Path) -> None:
    ran = run("bench", "--model", checkpoint, *QUICK, "--keep", 16)
    assert ran.code == 0, ran.err
    assert "144 visual tokens, an answer of 2\na device: 0.1 TFLOP/s, 10 GB/s" in ran.out
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
    lines = ran.out.splitlines()
    gains = next(
        index for index, line in enumerate(lines) if line.startswith("Times faster than plain, batch 1")
    )
    assert [re.split(r"(?<=\w)  ", line)[0] for line in lines[gains + 1 : gains + 10]] == [
        "first token",
        "  FLOPs allow",
        "prefill",
        "  FLOPs allow",
        "  its own layers allow",
        "next token",
        "  this machine allows",
        "whole answer",
        "  FLOPs allow",
    ]
    reasons = next(
        line for line in lines if line.startswith("Why the first token of dart 16, batch 1, comes ")
    )
    assert lines[lines.index(reasons) + 1].startswith("- ")
    assert lines[-1] == "medians of 1 round: too few to be sure; 6 or more tell noise"


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_tables_keep_to_the_terminal(run: Any, checkpoint: Path, columns: int) -> None:
    chosen = ("--method", "dart", "fastv", "visionzip", "--keep", 16)
    ran = run("bench", "--model", checkpoint, *QUICK, *chosen, columns=columns)
    assert ran.code == 0, ran.err
    tables = ran.out.split("Why the first token")[0].split(", measured\n")[1].splitlines()
    assert max(map(len, tables)) <= columns
    assert all(line[:3].strip() for line in tables if line)  # no cell is broken in two
    assert len([line for line in tables if line.startswith("first token")]) == {60: 7, 80: 4, 200: 2}[columns]


def test_noise_is_called_noise(checkpoint: Path) -> None:
    from foveal.cli.bench_tables import _measured
    from foveal.efficiency.gains import Gain, Spread

    assert _measured(Gain(Spread(0.79, 0.6, 1.05), None, 1.1)) == "noise: 0.79 ±0.26"
    assert _measured(Gain(Spread(1.3, 1.2, 1.35), 1.7, 1.1)) == "1.30 ±0.10"
    assert _measured(Gain(Spread(1.3, 1.3, 1.3), 1.7, 1.1)) == "1.30"


def test_a_busy_machine_is_said(run: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for load, told in ((0.5, False), (999.0, True)):
        monkeypatch.setattr(measure, "load_average", lambda load=load: load)
        ran = run("bench", "--model", checkpoint, *QUICK, "--keep", 16)
        assert ("this machine was busy before (load 999.0 on " in ran.out) is told
    ran = run("bench", "--model", checkpoint, *QUICK, "--keep", 16, "--threads", 1, "--processor-time")
    assert "busy" not in ran.out


def test_an_interrupt_leaves_nothing_on_the_model(
    run: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[Any] = []

    def stop(subject: Any, *_arguments: Any) -> Any:
        models.append(subject.model)
        raise KeyboardInterrupt

    monkeypatch.setattr(measure._Subject, "answer", stop)
    ran = run("bench", "--model", checkpoint, *QUICK, "--keep", 16)
    assert ran.code == 130
    assert not any(module._forward_pre_hooks for module in models[0].modules())


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
    assert found["rows"][2]["visual_tokens_by_layer"] == [144, 144, 72, 72]
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
        (["--method", "none"], "--method none: the plain model is always there"),
        (["--visual", "100"], "makes 144 visual tokens of a picture of 640 x 480, not 100"),
        (["--out", "/proc/nowhere"], "/proc/nowhere"),
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
