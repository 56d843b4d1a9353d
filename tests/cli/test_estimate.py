from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image

from foveal.cli import load_options
from foveal.compressors import DART, available
from foveal.efficiency.configs import KNOWN
from foveal.efficiency.hardware import HARDWARE
from foveal.errors import FovealError

LLAVA = ("--model", "llava-hf/llava-1.5-7b-hf", "--hardware", "a100", "--keep", 64)


def test_what_is_gained_and_why_not_more(run: Any) -> None:
    lines = run("estimate", *LLAVA).out.splitlines()
    assert lines[0] == "llava-hf/llava-1.5-7b-hf on a100 (312 TFLOP/s, 2.04 TB/s, 80 GiB), bfloat16"
    assert lines[1] == "batch 1; 1 image of 576 visual tokens, 60 text tokens, an answer of 20"
    assert lines[2].endswith("576 in layers 0 to 1, 64 in layers 2 to 31; 96 averaged over layers")
    table = {line[:28].strip(): line[28:].split() for line in lines[4:22]}
    assert table["FLOPs, prefill"] == ["8.45", "T", "2.04", "T", "4.14x"]
    assert table["KV cache behind the prompt"] == ["333", "MB", "81.8", "MB", "4.08x"]
    assert table["time, prefill"] == ["26.9", "ms", "7.82", "ms", "3.44x"]
    assert "It pays from batch 2 on: there the prefill gains 90 % or more of what its FLOPs allow." in lines
    assert "What limits the gain:" in lines
    assert any(line.startswith("- at batch 1 the prefill is bound by bandwidth: 13.5 GB") for line in lines)


def test_the_curve_in_a_narrow_terminal(run: Any) -> None:
    out = run("estimate", *LLAVA, "--keep", 100, columns=80).out
    assert "…" not in out
    rows = [
        line.split() for line in out.splitlines() if line.startswith(("576 ", "144 ", "100 ", "36 ", "1 "))
    ]
    assert [row[0] for row in rows] == ["576", "144", "100", "36", "1"]
    assert [[word for word in row if word in ("high", "low")] for row in rows] == [
        [],
        ["high", "high"],
        ["high", "low"],
        ["low", "low"],
        ["low", "low"],
    ]
    assert "return in FLOPs: high from 147 to 59 tokens, low below" in out


def test_you_will_not_gain_here(run: Any) -> None:
    words = ("--model", "Qwen/Qwen3-VL-30B-A3B-Instruct", "--hardware", "h100", "--keep", 114)
    out = run("estimate", *words).out
    assert "You will not gain here, because\n- at batch 1 the prefill is bound by bandwidth: 61.1 GB" in out
    assert "return in time: nothing to gain" in out
    assert "an image of 32x32 visual tokens: this model takes any size" in out


def test_numbers_for_a_program(run: Any) -> None:
    found = json.loads(run("estimate", *LLAVA, "--batch", 4, "--answer", 8, "--json").out)
    assert (found["method"], found["options"]["keep"], found["dtype"]) == ("dart", 64, "bfloat16")
    assert found["hardware"]["peak_flops_per_second"] == HARDWARE["a100"].peak
    assert (found["load"]["batch"], found["load"]["visual"], found["load"]["bytes"]) == (4, 576, 2)
    plain, compressed = found["plain"], found["compressed"]
    assert len(compressed["flops"]["layers"]) == len(compressed["seconds"]["layers"]) == 32
    assert compressed["average_visual_tokens"] == 96
    assert found["times_faster"]["prefill"] == plain["seconds"]["prefill"] / compressed["seconds"]["prefill"]
    assert found["paying_batch"] == 2
    assert found["areas_visual_tokens"]["cache"] == {"high": 144, "low": 58}
    assert [point["keep"] for point in found["curve"]][::17] == [576, 1]
    assert {reason["name"] for reason in found["reasons"]} == {"memory"}
    assert found["serving"]["compressed"]["batch"] > 2 * found["serving"]["plain"]["batch"]


def test_as_papers_count(run: Any) -> None:
    """EPIC: 367.2 MB and 9.3 T, 1.5 T for 64 tokens; FastV's 45 % less at half of the tokens; LLM-Viewer's 700 rows."""

    def counted(*words: object) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(run("estimate", *LLAVA, *words, "--json").out)["as_papers_count"]
        return found

    epic = counted()
    assert epic["KV cache, as EPIC counts"]["plain"] == pytest.approx(367.2e6, rel=1e-3)
    flops = epic["FLOPs, as EPIC counts"]
    assert [round(flops[name] / 1e12, 1) for name in ("plain", "compressed")] == [9.3, 1.5]
    layer = "FLOPs of a layer, as FastV counts"
    half = counted("--method", "fastv", "--keep", 0.5, "--text", 36)[layer]
    assert half["compressed"] / half["plain"] == pytest.approx(0.55, abs=0.01)
    trim = counted("--method", "trim", "--text", 123)
    assert set(trim) == {layer, "FLOPs, prefill by LLM-Viewer", "time, prefill by LLM-Viewer, V100"}
    assert trim["time, prefill by LLM-Viewer, V100"]["plain"] == pytest.approx(88.6e-3, rel=0.01)
    assert trim["time, prefill by LLM-Viewer, V100"]["compressed"] < 30e-3
    assert set(counted("--visual", 500)) == {layer}


def test_one_token_has_no_next_one(run: Any) -> None:
    found = json.loads(run("estimate", *LLAVA, "--answer", 1, "--json").out)
    assert found["times_faster"]["next_token"] is None
    assert "next token" not in run("estimate", *LLAVA, "--answer", 1).out


def test_a_picture(run: Any, tmp_path: Path) -> None:
    ran = run("estimate", *LLAVA, "--out", tmp_path / "returns.png")
    assert (ran.code, ran.out.splitlines()[-1]) == (0, f"drawn in {tmp_path / 'returns.png'}")
    with Image.open(tmp_path / "returns.png") as picture:
        assert picture.width == 1500


def test_the_bundled_model_on_this_machine(run: Any) -> None:
    out = run("estimate").out
    assert "the bundled model on this CPU, " in out
    assert out.splitlines()[0].endswith(", float32")
    assert "dart, 16 of 144 visual tokens" in out


@pytest.mark.parametrize("method", available())
def test_every_method(run: Any, method: str) -> None:
    ran = run("estimate", *LLAVA, "--method", method, "--json")
    assert ran.code == 0
    found = json.loads(ran.out)
    assert found["compressed"]["visual_tokens_by_layer"][-1] == 64
    assert 1 < found["times_faster"]["first_token"] < 5


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_model(run: Any, name: str) -> None:
    ran = run("estimate", "--model", name, "--hardware", "h200", "--batch", 64)
    assert ran.code == 0
    assert "What each budget returns" in ran.out


def test_images_of_any_size(run: Any) -> None:
    words = ("--model", "Qwen/Qwen2.5-VL-7B-Instruct", "--hardware", "l4", "--json")
    assert json.loads(run("estimate", *words).out)["load"]["visual"] == [32, 32]
    assert json.loads(run("estimate", *words, "--visual", "36x48").out)["load"]["visual"] == [36, 48]
    assert json.loads(run("estimate", *words, "--visual", 500).out)["notes"] == []


def test_images_in_tiles(run: Any) -> None:
    words = ("--model", "llava-hf/llava-v1.6-mistral-7b-hf", "--hardware", "l4")
    assert "an image of one tile: if yours are split" in run("estimate", *words).out
    found = json.loads(run("estimate", *words, "--visual", 2880, "--json").out)
    assert (found["load"]["tiles"], found["notes"]) == (5, [])


def test_sixteen_bits_are_what_data_sheets_count(run: Any) -> None:
    assert "a100's peak is that of 16-bit products" in run("estimate", *LLAVA, "--dtype", "float32").out


def test_what_does_not_fit(run: Any) -> None:
    out = run("estimate", "--model", "llava-hf/llava-1.5-13b-hf", "--hardware", "rtx4090").out
    assert "this does not fit into the memory of rtx4090, compressed or not" in out
    assert "largest batch" not in out


def test_options_of_a_method(run: Any) -> None:
    words = ("--method", "pyramiddrop", "--option", "layers=[4, 8]", "--option", "positions=original")
    found = json.loads(run("estimate", *LLAVA, *words, "--json").out)
    assert (found["options"]["layers"], found["options"]["positions"]) == ([4, 8], "original")
    seen = found["compressed"]["visual_tokens_by_layer"]
    assert (seen[3], seen[8]) == (576, 64)


def test_options_as_they_are_read() -> None:
    assert load_options.method_options(DART, ["parity=true", "image_pivots=8"]) == {
        "parity": True,
        "image_pivots": 8,
    }
    assert load_options.parse_visual("24X32") == (24, 32)
    with pytest.raises(FovealError, match="pass float32, bfloat16 or float16"):
        load_options.parse_dtype("int8")


def test_an_unknown_model_without_a_network(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    ran = run("estimate", "--model", "some/model")
    assert ran.code == 2
    assert "cannot read the config of 'some/model'" in ran.err
    assert "one of the 21 names whose shape is built in, such as " in ran.err
    assert len(ran.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hardware", "h300"], "hardware 'h300' is not known"),
        (["--method", "none"], "--method none: every method is shown beside the plain model"),
        (["--method", "dirt"], "unknown method 'dirt'"),
        (["--method", "trim", "--layer", 3], "--layer 3: trim drops tokens before the decoder"),
        (["--keep", "many"], "--keep many: pass"),
        (["--keep", 600], "keep=600 is more than the 576 visual tokens"),
        (["--layer", 32], "layer=32 is beyond the model's 32 layers"),
        (["--visual", "24x"], "--visual 24x: pass a number of visual tokens"),
        (["--visual", "0"], "--visual 0: pass a number of visual tokens"),
        (["--dtype", "int8"], "--dtype int8: pass"),
        (["--option", "pivots=8"], "--option pivots=8: pass NAME=VALUE, with a NAME among per_frame"),
        (["--option", "parity"], "--option parity: pass NAME=VALUE"),
        (["--option", "parity=maybe"], "parity='maybe' of DART must be True or False"),
        (["--out", "returns.xyz"], "end the name in .png"),
    ],
)
def test_what_is_refused(run: Any, words: list[Any], message: str) -> None:
    ran = run("estimate", *LLAVA, *words)
    assert ran.code == 2
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1


@pytest.mark.parametrize("columns", [60, 80])
def test_no_number_is_cut_on_a_narrow_terminal(run: Any, columns: int) -> None:
    out = run("estimate", *LLAVA, columns=columns).out
    assert "…" not in out
    assert ("█" in out) is (columns == 80)
    assert "\n64 " in out
