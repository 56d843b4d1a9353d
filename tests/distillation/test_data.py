"""The collator: answers, images, and errors that name the sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import foveal
from foveal.distillation import VisionCollator
from support import vlm


def sample(*turns: tuple[str, str], images: Any = None, **extra: Any) -> dict[str, Any]:
    pictures = [Image.new("RGB", (96, 96), "red")] if images is None else images
    messages: list[dict[str, Any]] = []
    for number, (question, answer) in enumerate(turns):
        marks = [{"type": "image"} for _ in pictures] if number == 0 else []
        messages.append({"role": "user", "content": [*marks, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": answer})
    return {"images": pictures, "messages": messages, **extra}


def words(ids: torch.Tensor) -> str:
    return vlm.processor().tokenizer.decode(ids[ids != -100])


def test_labels_are_the_assistants_words_of_every_turn() -> None:
    batch = VisionCollator(vlm.processor())(
        [
            sample(("what is this?", "fox")),
            sample(("is there a key?", "no"), ("where is the fox?", "top left")),
        ]
    )
    assert words(batch["labels"][0]) == "fox </s>"
    assert words(batch["labels"][1]) == "no </s> top left </s>"
    shown = batch["labels"] != -100
    assert torch.equal(batch["labels"][shown], batch["input_ids"][shown])
    assert batch["attention_mask"].sum(1).diff().item() > 0
    assert not shown[batch["attention_mask"] == 0].any()
    assert batch["pixel_values"].shape == (2, 3, 96, 96)


def test_samples_without_and_with_several_images() -> None:
    pictures = [Image.new("RGB", (40, 90), color) for color in ("red", "blue")]
    batch = VisionCollator(vlm.processor())(
        [sample(("what is 1 + 1?", "2"), images=[]), sample(("same?", "no"), images=pictures)]
    )
    image = vlm.model().config.image_token_id
    assert (batch["input_ids"] == image).sum(1).tolist() == [0, 2 * vlm.TOKENS]
    assert batch["pixel_values"].shape[0] == 2
    assert batch["pixel_values"][0, 0].mean() > batch["pixel_values"][1, 0].mean()


def test_images_may_be_paths(tmp_path: Path) -> None:
    Image.new("L", (10, 300), 90).save(tmp_path / "grey.png")
    batch = VisionCollator(vlm.processor())([sample(("hm?", "yes"), images=[tmp_path / "grey.png"])])
    assert batch["pixel_values"].shape == (1, 3, 96, 96)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            sample(("a?", "b"), images=[Path("nowhere.png")], id="night-7"),
            "sample 'night-7': no such image: nowhere.png",
        ),
        (
            {**sample(("a?", "b")), "images": []},
            "sample 1 of the batch has more image placeholders than images",
        ),
        (
            {**sample(("a?", "b")), "images": [Image.new("RGB", (9, 9))] * 2},
            "sample 1 of the batch has 2 images, more than",
        ),
        (
            {"messages": [{"role": "user", "content": "hello"}]},
            "sample 1 of the batch has no assistant words",
        ),
        (sample(("a " * 400 + "?", "b")), "sample 1 of the batch has .* more than max_length=300"),
    ],
)
def test_bad_samples_are_named(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(foveal.FovealError, match=message):
        VisionCollator(vlm.processor(), max_length=300)([sample(("a?", "b")), bad])
