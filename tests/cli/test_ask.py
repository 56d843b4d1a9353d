from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import foveal
from foveal.loading import record_compressor
from support import vlm

QUESTION = "is there a cat in the image?"


def test_an_answer_and_what_it_was_made_from(run: Any, checkpoint: Path, photo: Path) -> None:
    ran = run("ask", photo, QUESTION, "--model", checkpoint, "--method", "fastv", "--keep", 20)
    assert ran.code == 0
    answer, note = ran.out.strip().splitlines()
    assert answer
    assert note == "fastv kept 20 of 144 visual tokens from layer 2 on"


@pytest.mark.parametrize(
    ("method", "note"),
    [
        ("divprune", "divprune kept 20 of 144 visual tokens before the decoder"),
        ("visionzip", "visionzip kept 20 of 144 visual tokens before the decoder"),
        ("prumerge", "prumerge kept 20 of 144 visual tokens before the decoder"),
        (
            "pyramiddrop",
            "pyramiddrop kept 20 of 144 visual tokens from layer 3 on (75 from layer 1, 39 from layer 2)",
        ),
        ("random", "random kept 20 of 144 visual tokens from layer 2 on"),
    ],
)
def test_the_note_says_where_tokens_went(
    run: Any, checkpoint: Path, photo: Path, method: str, note: str
) -> None:
    ran = run("ask", photo, QUESTION, "--model", checkpoint, "--method", method, "--keep", 20)
    assert ran.out.strip().splitlines()[1:] == [note]


def test_json_of_several_stages(run: Any, checkpoint: Path, photo: Path) -> None:
    ran = run("ask", photo, QUESTION, "--model", checkpoint, "--method", "sparsevlm", "--keep", 20, "--json")
    reply = json.loads(ran.out)
    assert [stage["layer"] for stage in reply["stages"]] == [1, 2, 3]
    assert reply["stages"][-1]["kept"] == reply["kept"] == len(reply["positions"]) == 20
    assert "layer" not in reply["options"]
    assert foveal.get("sparsevlm", **reply["options"]) == foveal.SparseVLM(keep=20)


def test_an_option_of_the_command_goes_before_that_of_the_checkpoint(
    run: Any, photo: Path, tmp_path: Path
) -> None:
    model = vlm.model().float()
    record_compressor(model, foveal.PyramidDrop(keep=7, layers=(1, 3), budgets=(20,)))
    model.save_pretrained(tmp_path)
    vlm.processor().save_pretrained(tmp_path)
    ran = run("ask", photo, QUESTION, "--model", tmp_path, "--keep", 5, "--json")
    assert json.loads(ran.out)["stages"] == [{"layer": 1, "kept": 20}, {"layer": 3, "kept": 5}]
    check_refused(run("ask", photo, QUESTION, "--model", tmp_path, "--layer", 2), "pyramiddrop")


def test_json(run: Any, checkpoint: Path, photo: Path) -> None:
    reply = json.loads(run("ask", photo, QUESTION, "--model", checkpoint, "--json").out)
    assert reply["method"] == "dart"
    assert (reply["kept"], reply["visual_tokens"]) == (16, 144)
    assert len(reply["positions"]) == 16
    assert reply["options"]["layer"] == 2


def test_all_tokens_answer_as_the_bare_model_does(run: Any, checkpoint: Path, photo: Path) -> None:
    whole = json.loads(run("ask", photo, QUESTION, "--model", checkpoint, "--method", "none", "--json").out)
    every = json.loads(run("ask", photo, QUESTION, "--model", checkpoint, "--keep", "144", "--json").out)
    few = json.loads(run("ask", photo, QUESTION, "--model", checkpoint, "--keep", "1", "--json").out)
    assert (whole["method"], whole["kept"]) == ("none", 144)
    assert whole["answer"] == every["answer"] != few["answer"]


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "I;16", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (640, 31), (96, 96)])
def test_pictures_of_every_kind(
    run: Any, checkpoint: Path, tmp_path: Path, mode: str, size: tuple[int, int]
) -> None:
    picture = vlm.picture(1, size)
    picture = picture.convert("L").convert("I;16") if mode == "I;16" else picture.convert(mode)
    path = tmp_path / "picture.tiff"
    picture.save(path)
    assert run("ask", path, QUESTION, "--model", checkpoint).code == 0


def test_a_rotated_photo_is_seen_upright(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    upright, lying = tmp_path / "upright.png", tmp_path / "lying.png"
    picture = vlm.picture(2)
    picture.save(upright)
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(lying, exif=exif)
    answers = [run("ask", path, QUESTION, "--model", checkpoint, "--json").out for path in (upright, lying)]
    assert answers[0] == answers[1]


def test_the_kept_tokens_are_drawn(run: Any, checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept.png"
    assert run("ask", photo, QUESTION, "--model", checkpoint, "--method", "fastv", "--out", out).code == 0
    with Image.open(out) as drawn:
        assert drawn.size == (3 * 480 + 2 * 12, 480)


def test_a_checkpoint_brings_its_method(run: Any, photo: Path, tmp_path: Path) -> None:
    model = vlm.model().float()
    record_compressor(model, foveal.FastV(keep=7, layer=3))
    model.save_pretrained(tmp_path / "trained")
    vlm.processor().save_pretrained(tmp_path / "trained")
    own = json.loads(run("ask", photo, QUESTION, "--model", tmp_path / "trained", "--json").out)
    assert (own["method"], own["kept"], own["options"]["layer"]) == ("fastv", 7, 3)
    changed = run(
        "ask", photo, QUESTION, "--model", tmp_path / "trained", "--keep", 9, "--layer", 1, "--json"
    )
    changed = json.loads(changed.out)
    assert (changed["method"], changed["kept"], changed["options"]["layer"]) == ("fastv", 9, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep", "0"], "keep=0"),
        (["--keep", "-3"], "keep=-3"),
        (["--keep", "145"], "keep=145 is more than the 144 visual tokens"),
        (["--keep", "many"], "--keep many"),
        (["--keep", "1/0"], "--keep 1/0"),
        (["--keep", "1.5"], "keep=1.5"),
        (["--layer", "4"], "layer"),
        (["--layer", "99"], "layer"),
        (["--layer", "-1"], "layer=-1"),
        (["--method", "dort"], "unknown method 'dort': choose one of cdpruner, dart, "),
        (["--method", "tome", "--layer", "2"], "--layer 2: tome drops tokens before the decoder"),
        (["--method", "pumer", "--layer", "2"], "--layer 2: pumer drops tokens at several layers"),
        (["--keep", "auto"], 'keep="auto" needs a method'),
        (["--method", "none", "--out", "x.png"], "--out"),
        (["--out", "kept.nonsense"], "kept.nonsense"),
    ],
)
def test_a_bad_option_ends_in_one_line(
    run: Any,
    checkpoint: Path,
    photo: Path,
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    check_refused(run("ask", photo, QUESTION, "--model", checkpoint, *options), message)


def test_a_bad_picture_ends_in_one_line(run: Any, tmp_path: Path) -> None:
    check_refused(run("ask", tmp_path / "gone.png", QUESTION), "no such image")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    check_refused(run("ask", tmp_path / "broken.jpg", QUESTION), "cannot read")


def test_a_model_without_visual_tokens_ends_in_one_line(run: Any, text_model: Path, photo: Path) -> None:
    check_refused(run("ask", photo, QUESTION, "--model", text_model), "vision-language model")


def test_a_missing_model_ends_in_one_line(run: Any, photo: Path, tmp_path: Path) -> None:
    check_refused(run("ask", photo, QUESTION, "--model", tmp_path / "nowhere"), "nowhere")


def check_refused(ran: Any, message: str) -> None:
    assert ran.code == 2
    assert ran.out == ""
    assert len(ran.err.strip().splitlines()) == 1, ran.err
    assert ran.err.startswith("foveal: ")
    assert message in ran.err
