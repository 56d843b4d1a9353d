from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveal import FovealError
from foveal.data.check import check_data
from foveal.data.collator import VisionCollator
from foveal.data.conversations import Conversations, load_conversations
from support import processors


def row(name: int, *images: str, answer: str = "yes", rounds: int = 1) -> dict[str, Any]:
    """A conversation of some turns in LLaVA's format."""
    turns = [
        {"from": "human", "value": "<image>\n" * len(images) + "is it?"},
        {"from": "gpt", "value": answer},
    ]
    more = [{"from": "human", "value": "sure?"}, {"from": "gpt", "value": answer}] * (rounds - 1)
    found: dict[str, Any] = {"id": name, "conversations": [*turns, *more]}
    return found | ({"image": list(images)} if images else {})


ROWS = [
    row(0, "a.png"),
    row(1),
    row(2, "a.png", "b.jpg", rounds=3),
    row(3, "gone.png"),
    row(4, "gone.png", "gone too.png", "cut.png"),
    row(5, "a.png", answer="word " * 60),
    {"id": 6},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    Image.new("RGB", (20, 50)).save(tmp_path / "b.jpg")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-20])
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    return tmp_path


@pytest.fixture
def conversations(folder: Path) -> Conversations:
    return load_conversations(folder / "rows.json")


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_and_every_bad_row(conversations: Conversations, folder: Path, workers: int) -> None:
    report = check_data(conversations, workers=workers)
    assert (report.conversations, report.images, report.text_only) == (7, 8, 1)
    assert (report.several_images, report.turns, report.lengths) == (2, 8, [])
    assert report.missing_files == {str(folder / "gone.png"), str(folder / "gone too.png")}
    assert report.percentiles() == {}
    assert list(report.bad) == [4, 5, 7]
    assert report.bad[4].name == f"{folder / 'rows.json'}, sample 4 (id '3')"
    assert report.bad[4].reason == f"no such image: {folder / 'gone.png'}"
    assert report.bad[5].reason.count(";") == 2
    assert "cut.png as an image" in report.bad[5].reason
    assert "expected an object" in report.bad[7].reason


@pytest.mark.parametrize("name", ["llava", "qwen", "idefics", "internvl"])
def test_with_a_processor_also_lengths_and_answers(conversations: Conversations, name: str) -> None:
    processor = processors.processor(name)
    good = [conversations[index] for index in (0, 1, 2, 5)]
    collated = [int(VisionCollator(processor)([one])["attention_mask"].sum()) for one in good]
    report = check_data(conversations, processor)
    assert report.lengths == collated
    assert list(report.bad) == [4, 5, 7]
    assert report.percentiles()[100] == max(collated)
    assert report.percentiles()[50] == sorted(collated)[1]
    limited = check_data(conversations, processor, max_length=collated[3] - 1)
    assert list(limited.bad) == [4, 5, 6, 7]
    assert f"{collated[3]} tokens, more than max_length={collated[3] - 1}" in limited.bad[6].reason


def test_what_the_template_refuses(tmp_path: Path) -> None:
    turns = [{"from": "gpt", "value": "hello"}]
    (tmp_path / "rows.json").write_text(json.dumps([{"conversations": turns}, row(1)]))
    data = load_conversations(tmp_path / "rows.json")
    assert list(check_data(data).bad) == []
    assert "must alternate" in check_data(data, processors.processor("gemma")).bad[1].reason
    with pytest.raises(FovealError, match="no image_token"):
        check_data(data, processors.tokenizer([]))
