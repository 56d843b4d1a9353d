"""The collator: answers, images, and errors that name the sample."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import foveal
from foveal.data.bad_samples import BadSample, skipped
from foveal.data.collator import VisionCollator
from support import processors, vlm


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


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    file = BytesIO()
    image.save(file, form)
    return file.getvalue()


def test_images_may_be_bytes() -> None:
    picture = vlm.picture(3)
    bare, packed = (sample(("hm?", "yes"), images=[image]) for image in (picture, encoded(picture)))
    first, second = VisionCollator(vlm.processor())(
        [bare, {**packed, "images": [{"bytes": packed["images"][0]}]}]
    )["pixel_values"]
    assert torch.equal(first, second)


BAD: list[tuple[Any, str]] = [
    (
        sample(("a?", "b"), images=[Path("nowhere.png")], id="night-7"),
        "sample 'night-7': no such image: nowhere.png",
    ),
    (sample(("a?", "b"), images=[b"nothing"]), "cannot read image 1"),
    (sample(("a?", "b"), images=[encoded(vlm.picture(0))[:300]]), "cannot read image 1"),
    ({**sample(("a?", "b")), "images": []}, "0 images, but 1 places for one"),
    ({**sample(("a?", "b")), "images": [Image.new("RGB", (9, 9))] * 2}, "2 images, but 1 places for one"),
    ({"messages": [{"role": "user", "content": "hello"}]}, "no assistant words"),
    (sample(("a " * 400 + "?", "b")), "more than max_length=300"),
    (sample(("is <image> a mark?", "b")), "1 images, but 2 times <image> in the text"),
    (sample((3, "b")), "a part of `content` is"),  # type: ignore[arg-type]
    ({"images": 7}, "expected an object"),
    ("nonsense", "expected an object"),
    (BadSample("x", "mine.json, sample 4", "no JSON"), r"mine.json, sample 4 \(id 'x'\): no JSON"),
]


def has_name(bad: Any) -> bool:
    """Whether the sample is known by more than its place in the batch."""
    return isinstance(bad, BadSample) or "id" in bad


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_bad_samples_are_named(bad: Any, message: str) -> None:
    with pytest.raises(foveal.FovealError, match=message) as caught:
        VisionCollator(vlm.processor(), max_length=300)([sample(("a?", "b")), bad])
    assert "sample 1 of the batch" in str(caught.value) or has_name(bad)


@pytest.mark.parametrize("bad", [bad for bad, _ in BAD])
def test_a_bad_sample_leaves_the_batch(bad: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = tmp_path / "run" / "skipped.jsonl"
    collator = VisionCollator(vlm.processor(), max_length=300, on_bad="skip", report=report)
    one, two = sample(("a?", "b")), sample(("c?", "d and e"))
    batch = collator([one, bad, two])
    alone = VisionCollator(vlm.processor())([one, two])
    assert batch.keys() == alone.keys()
    assert all(torch.equal(batch[name], alone[name]) for name in alone)
    collator([bad, one])
    assert len(skipped(report)) == len(caplog.records) == (1 if has_name(bad) else 2)
    assert all(record.levelname == "WARNING" for record in caplog.records)


def test_what_the_processor_refuses_is_found_out_one_by_one(tmp_path: Path) -> None:
    """Qwen2.5-VL takes no picture that is 200 times as wide as high."""
    stripe = sample(("a?", "b"), images=[Image.new("RGB", (4000, 4))], id="stripe")
    fine = sample(("a?", "b"), id="fine")
    qwen = processors.processor("qwen")
    with pytest.raises(foveal.FovealError, match=r"'stripe'.*aspect ratio"):
        VisionCollator(qwen)([fine, stripe])
    collator = VisionCollator(qwen, on_bad="skip", report=tmp_path / "bad")
    batch, alone = collator([stripe, fine, stripe, fine]), collator([fine, fine])
    assert all(torch.equal(batch[name], alone[name]) for name in alone)
    assert len(skipped(tmp_path / "bad")) == 1


def test_a_processor_that_fails_on_good_samples_is_no_bad_sample() -> None:
    class Two:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __call__(self, text: Any, **options: Any) -> Any:
            if len(text) == 2:
                raise RuntimeError("never two")
            return self.inner(text=text, **options)

    with pytest.raises(RuntimeError, match="never two"):
        VisionCollator(Two(vlm.processor()), on_bad="skip")([sample(("a?", "b"))] * 2)


def test_a_batch_without_good_samples_teaches_nothing() -> None:
    collator = VisionCollator(vlm.processor(), on_bad="skip")
    bad = BadSample("", "here", "broken")
    first = collator([bad, bad])
    assert (first["labels"] == -100).all()
    assert first["input_ids"].shape[0] == 1
    assert "pixel_values" not in first
    good = collator([sample(("a?", "b")), sample(("what is this?", "fox"))])
    again = collator([bad])
    assert (again["labels"] == -100).all()
    assert torch.equal(again["input_ids"][0], good["input_ids"][1])
    assert torch.equal(again["pixel_values"], good["pixel_values"][1:])


def test_workers_share_the_report(tmp_path: Path) -> None:
    samples = [BadSample(str(number), f"sample {number}", "x" * 200) for number in range(40)]
    collator = VisionCollator(vlm.processor(), on_bad="skip", report=tmp_path / "bad.jsonl")
    for _ in range(2):
        assert len(list(DataLoader(samples, batch_size=4, num_workers=2, collate_fn=collator))) == 10  # type: ignore[arg-type]
    found = skipped(tmp_path / "bad.jsonl")
    assert set(found) == {f"sample {number} (id '{number}')" for number in range(40)}
    assert set(found.values()) == {"x" * 200}
    assert skipped(tmp_path / "none") == {}


def test_options_and_processors_are_refused_in_any_case() -> None:
    with pytest.raises(foveal.FovealError, match="on_bad='go': choose one of stop, skip"):
        VisionCollator(vlm.processor(), on_bad="go")
    with pytest.raises(foveal.FovealError, match="no image_token"):
        VisionCollator(processors.tokenizer([]), on_bad="skip")([])
