"""Answer masks of real processors, compared with answers tokenized by hand and found by their own search."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from PIL import Image

from foveal import FovealError
from foveal.data.answers import Tokens, answer_mask
from foveal.data.collator import VisionCollator
from support import processors

# What each template writes behind an answer to end the turn.
ENDINGS = {
    "llava": "</s>",
    "qwen": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "idefics": "<end_of_utterance>",
    "internvl": "<|im_end|>",
}
# And in front of it, so that an answer is told from the same words of the user.
HEADERS = {
    "llava": "ASSISTANT: ",
    "qwen": "<|im_start|>assistant\n",
    "gemma": "<start_of_turn>model\n",
    "idefics": "Assistant:",
    "internvl": "<|im_start|>assistant\n",
}
SIZES = [(30, 20), (20, 50), (40, 40), (64, 10)]


def turns(*images: int) -> dict[str, Any]:
    """Turn i brings images[i] images; every question quotes the answer before it."""
    messages: list[dict[str, Any]] = []
    for turn, count in enumerate(images):
        marks = [{"type": "image"}] * count
        question = {"type": "text", "text": f"was it cat {turn - 1}?\nor not"}
        messages.append({"role": "user", "content": [*marks, question]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": f"cat {turn}\nor a dog"}]})
    pictures = [Image.new("RGB", SIZES[number % 4], (number, 90, 200)) for number in range(sum(images))]
    return {"images": pictures, "messages": messages}


def expected(name: str, processor: Any, ids: list[int], count: int) -> list[int]:
    """Places of the answers: each behind its header's tokens, which the user never writes."""

    def tokens(text: str) -> list[int]:
        return list(processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    places: list[int] = []
    for turn in range(count):
        spoken = " " if name == "idefics" else ""  # "Assistant: cat" answers "Assistant:"
        answer = tokens(f"{spoken}cat {turn}\nor a dog{ENDINGS[name]}")
        header = tokens(HEADERS[name])
        found = [
            at + len(header)
            for at in range(len(ids))
            if ids[at : at + len(header) + len(answer)] == header + answer
        ]
        assert len(found) == 1, "the search by hand is not unique"
        places += range(found[0], found[0] + len(answer))
    return places


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", processors.BUILDERS)
def test_the_assistants_tokens_of_every_turn(name: str, side: str) -> None:
    processor = processors.processor(name, side)
    samples = [(1,), (0, 0), (2, 0, 0), (1, 1), (0, 1, 2)]
    batch = VisionCollator(processor)([turns(*sample) for sample in samples])
    for row, sample in enumerate(samples):
        ids, labels = batch["input_ids"][row], batch["labels"][row]
        places = (labels != -100).nonzero()[:, 0].tolist()
        assert places == expected(name, processor, ids.tolist(), len(sample)), sample
        assert labels[places].tolist() == ids[places].tolist()
        assert batch["attention_mask"][row][places].all()
    padded = batch["attention_mask"][0].tolist()
    assert (padded[0], padded[-1]) == (1, 0), "on the right, whatever the tokenizer says"


def test_all_that_the_processor_returns_is_in_the_batch() -> None:
    sample = turns(1)
    assert {"mm_token_type_ids", "image_grid_thw"} <= VisionCollator(processors.processor("qwen"))(
        [sample]
    ).keys()
    assert "token_type_ids" in VisionCollator(processors.processor("gemma"))([sample])
    assert "pixel_attention_mask" in VisionCollator(processors.processor("idefics"))([sample])


def test_a_run_of_newlines_that_merges_with_the_processors_own_is_no_answer() -> None:
    """Gemma 3 puts blank lines around an image, which its tokenizer merges with those of the text."""
    processor = processors.processor("gemma")
    sample = turns(1, 1)
    sample["messages"][0]["content"].insert(0, {"type": "text", "text": "look:"})
    batch = VisionCollator(processor)([sample])
    text = processor.tokenizer.decode(batch["input_ids"][0])
    assert "user\n\n\n<start_of_image>" in text
    places = (batch["labels"][0] != -100).nonzero()[:, 0].tolist()
    assert places == expected("gemma", processor, batch["input_ids"][0].tolist(), 2)


IMAGE = 0


def mask(plain: list[int], answers: list[int], ids: list[int]) -> list[int]:
    """Places of the answers, for a processor whose placeholder is 0 and whose added tokens are 0, 8 and 9."""

    class Tokenizer:
        added_tokens_decoder: ClassVar = {0: "image", 8: "begin", 9: "end"}

        def convert_tokens_to_ids(self, token: str) -> int:
            return IMAGE

    class Processor:
        image_token = "<image>"
        tokenizer = Tokenizer()

    tokens = Tokens(plain, [place in answers for place in range(len(plain))])
    return [place for place, answer in enumerate(answer_mask(Processor(), tokens, ids)) if answer]


@pytest.mark.parametrize(
    ("plain", "answers", "ids", "found"),
    [
        # no image
        ([1, 2, 3], [2], [1, 2, 3], [2]),
        # the tokens next to an image change, on either side
        ([1, 2, 0, 3, 4], [4], [1, 7, 0, 0, 7, 4], [5]),
        # the answer between two images, whole
        ([1, 0, 8, 2, 9, 0, 3], [3], [1, 0, 0, 8, 2, 9, 5, 0, 0, 3], [4]),
        # and with tokens beside the images that changed, up to the first added one
        ([1, 0, 4, 8, 2, 9, 4, 0, 3], [4], [1, 0, 0, 7, 8, 2, 9, 7, 0, 0, 3], [5]),
        # two equal texts in order: each has one place only
        ([1, 0, 8, 2, 9, 0, 8, 2, 9, 0, 3], [3, 7], [1, 0, 8, 2, 9, 0, 0, 8, 2, 9, 0, 3], [3, 8]),
    ],
)
def test_pieces_are_found_between_the_processors_tokens(
    plain: list[int], answers: list[int], ids: list[int], found: list[int]
) -> None:
    assert mask(plain, answers, ids) == found


@pytest.mark.parametrize(
    ("plain", "answers", "ids", "message"),
    [
        ([1, 2, 3], [2], [1, 2, 4], "changes the text"),
        ([1, 2, 0, 3, 4], [3], [1, 2, 0, 0, 7, 4], "changes the text"),  # an answer's token beside the image
        ([1, 2, 0, 3, 4], [1], [1, 7, 0, 0, 3, 4], "changes the text"),
        ([1, 0, 8, 2, 9, 4, 0, 3], [5], [1, 0, 0, 8, 2, 9, 7, 0, 3], "changes the text"),
        ([1, 0, 2, 4, 0, 3], [2], [1, 0, 0, 2, 7, 0, 3], "changes the text"),  # no added token to hold on to
        ([1, 0, 8, 2, 9, 0, 3], [3], [1, 0, 8, 2, 9, 0, 8, 2, 9, 0, 3], "several places"),
    ],
)
def test_what_cannot_be_found_for_certain_is_refused(
    plain: list[int], answers: list[int], ids: list[int], message: str
) -> None:
    with pytest.raises(FovealError, match=f"Processor .*{message}"):
        mask(plain, answers, ids)
