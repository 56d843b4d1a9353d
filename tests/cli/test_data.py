from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from foveal.cli.data import data_app
from foveal.errors import FovealError
from support import vlm


def row(image: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nis there a cat?"}, {"from": "gpt", "value": "yes"}]
    return {"id": image, "image": image, "conversations": turns}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One good row, one without its image."""
    (tmp_path / "pictures").mkdir()
    vlm.picture(0).save(tmp_path / "pictures" / "one.png")
    (tmp_path / "mine.json").write_text(json.dumps([row("one.png"), row("two.png")]))
    return tmp_path / "mine.json"


def run(*arguments: Any) -> tuple[int, str]:
    app = typer.Typer()
    app.add_typer(data_app)
    result = CliRunner().invoke(app, ["data", *map(str, arguments)], env={"COLUMNS": "200"})
    if isinstance(result.exception, FovealError):
        raise result.exception
    return result.exit_code, result.output


def test_bad_rows_are_named_and_end_in_1(data: Path) -> None:
    code, out = run("check", data, "--images", data.parent / "pictures", "--workers", 0)
    assert code == 1
    assert "conversations │ 2" in " ".join(out.split())
    assert f"{data}, sample 2 (id 'two.png'): no such image: " in out
    assert "sample 1" not in out


def test_clean_data_ends_in_0(data: Path) -> None:
    data.write_text(json.dumps([row("pictures/one.png")]))
    code, out = run("check", data)
    assert code == 0
    assert "sample" not in out


def test_json_with_a_models_lengths(data: Path, checkpoint: Path) -> None:
    code, out = run(
        "check", data, "--images", data.parent / "pictures", "--model", checkpoint, "--workers", 0, "--json"
    )
    found = json.loads(out)
    assert code == 1
    assert found["conversations"] == found["images"] == 2
    assert found["missing"] == [str(data.parent / "pictures" / "two.png")]
    assert found["bad"] == [{"row": 2, "id": "two.png", "reason": f"no such image: {found['missing'][0]}"}]
    assert set(found["length_percentiles"]) == {"50", "90", "99", "100"}
    assert found["length_percentiles"]["100"] > vlm.TOKENS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["gone.json"], "no such file: gone.json"),
        (["--max-length", "9"], "--max-length counts a model's tokens: name it with --model"),
        (["--images", "gone"], "--images gone: no such folder"),
        (["--model", "/gone"], "--model /gone: cannot load its processor"),
    ],
)
def test_what_is_refused(data: Path, options: list[str], message: str) -> None:
    file = [] if options[0].endswith(".json") else [data]
    with pytest.raises(FovealError, match=message):
        run("check", *file, *options)


def test_help_has_examples() -> None:
    code, out = run("check", "--help")
    assert code == 0
    assert "foveal data check llava_v1_5_mix665k.json" in out
