from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from foveal.data import lengths as lengths_module
from foveal.data.bad_samples import BadSample
from foveal.data.collator import VisionCollator
from foveal.data.lengths import token_lengths
from foveal.mini import SceneConversations
from support import processors, vlm

SIZES = [(30, 20), (20, 50), (40, 40), (64, 10), (200, 150), (9, 9)]


def sample(number: int, folder: Path) -> dict[str, Any]:
    """A conversation about `number` images of different sizes, as files."""
    paths = []
    for place in range(number):
        paths.append(folder / f"{number}-{place}.png")
        Image.new("RGB", SIZES[(number + place) % len(SIZES)]).save(paths[-1])
    question = [*[{"type": "image"}] * number, {"type": "text", "text": "what? " * number}]
    answer = [{"type": "text", "text": "a cat"}]
    return {
        "images": paths,
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
    }


def collated(samples: list[Any], processor: Any) -> list[int]:
    return [int(VisionCollator(processor, 10**5)([one])["attention_mask"].sum()) for one in samples]


@pytest.mark.parametrize("name", processors.BUILDERS)
def test_lengths_are_those_of_batches(name: str, tmp_path: Path) -> None:
    samples = [sample(number, tmp_path) for number in range(6)]
    processor = processors.processor(name)
    expected = collated(samples, processor)
    found = token_lengths(samples, processor)
    if name == "gemma":  # runs of newlines between two images merge
        assert found[:2] == expected[:2]
        assert all(
            abs(one - two) <= 2 * number
            for number, (one, two) in enumerate(zip(found, expected, strict=True))
        )
    else:
        assert found == expected


def test_the_bundled_model_and_several_processes() -> None:
    samples = SceneConversations("train", 20, turns=2)
    expected = collated([samples[index] for index in range(20)], vlm.processor())
    before = torch.get_rng_state()
    assert token_lengths(samples, vlm.processor()) == expected
    assert token_lengths(samples, vlm.processor(), workers=2) == expected
    assert torch.equal(torch.get_rng_state(), before), "training would draw other numbers"


def three(processor: Any, image_sizes: Any) -> dict[str, list[int]]:
    """A processor that is wrong about itself."""
    return {"num_image_tokens": [3]}


def test_what_a_processor_does_not_say_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [sample(number, tmp_path) for number in range(4)]
    for name in ("qwen", "idefics"):
        processor = processors.BUILDERS[name]()
        expected = collated(samples, processor)
        monkeypatch.setattr(type(processor), "_get_num_multimodal_tokens", three)
        assert token_lengths(samples, processor) == expected


def test_what_a_processor_leaves_out_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = processors.BUILDERS["qwen"]()
    ask = type(processor)._get_num_multimodal_tokens

    def without_two(self: Any, image_sizes: Any) -> dict[str, list[int]]:
        return {"num_image_tokens": [ask(self, image_sizes=image_sizes)["num_image_tokens"][0] - 2]}

    monkeypatch.setattr(type(processor), "_get_num_multimodal_tokens", without_two)
    samples = [sample(number, tmp_path) for number in range(4)]
    assert token_lengths(samples, processor) == collated(samples, processor)
    counter = lengths_module.ImageTokens(processor)
    monkeypatch.setattr(counter, "_measure", None)  # is not asked again
    assert counter.of_size((40, 40)) == ask(processor, image_sizes=[[40, 40]])["num_image_tokens"][0]


def test_images_of_one_length_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [sample(number, tmp_path) for number in range(3)]
    expected = token_lengths(samples, vlm.processor())
    opened: list[Any] = []
    monkeypatch.setattr(lengths_module, "image_size", opened.append)
    assert token_lengths(samples, vlm.processor()) == expected
    assert not opened


def test_bad_samples_count_as_one(tmp_path: Path) -> None:
    good = sample(1, tmp_path)
    samples = [good, BadSample("", "x", "y"), {**good, "images": [tmp_path / "gone.png"]}, {"messages": 3}]
    assert token_lengths(samples, processors.processor("qwen"))[1:] == [1, 1, 1]
    assert token_lengths(samples, processors.processor("qwen"))[0] > 1
