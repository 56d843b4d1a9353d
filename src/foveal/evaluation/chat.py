"""Conversations in, answers out: left-padded batches of chat messages with any number of images, stop strings, greedy.

batch = encode(processor, [Chat.of(messages)])
texts = generate(model, processor, batch, generation_config(model, processor, {"max_new_tokens": 16}))
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from foveal.errors import FovealError
from foveal.images import open_image

__all__ = ["Chat", "Reply", "encode", "generate", "generation_config", "steady"]

_GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "max_length": None,
}
_SAMPLING = frozenset({"temperature", "top_p", "top_k", "do_sample"})
_LONGEST = 1024


@dataclass(frozen=True)
class Chat:
    """A conversation that the model is to continue.

    Attributes:
        messages: role and parts, as a chat template wants them; pictures upright and in RGB.
        question: the text of the last turn, which methods such as TRIM compare with the image.
    """

    messages: list[dict[str, Any]]
    question: str

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]]) -> Chat:
        """Read messages whose parts are texts and images (under `url` or `image`), and open the images.

        Raises:
            FovealError: a part that is neither, or an image that cannot be read.
        """
        read = [
            {"role": message["role"], "content": [_part(part) for part in message["content"]]}
            for message in messages
        ]
        asked = (part["text"] for part in read[-1]["content"] if part["type"] == "text")
        return cls(read, "\n".join(asked).strip())

    @property
    def images(self) -> list[Image.Image]:
        """The pictures, in the order of the conversation."""
        parts = (part for message in self.messages for part in message["content"])
        return [part["image"] for part in parts if part["type"] == "image"]


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    kind = part["type"]
    if kind == "text":
        return {"type": "text", "text": str(part["text"])}
    if kind != "image":
        raise FovealError(f"a message holds {kind}, but only texts and images can be asked about")
    return {"type": "image", "image": open_image(part["url"] if "url" in part else part["image"])}


def encode(processor: ProcessorMixin, chats: Sequence[Chat]) -> Any:
    """The model inputs of several conversations, left-padded: what `generate` expects.

    All of them have images, or none has.

    Raises:
        FovealError: the processor has no chat template.
    """
    if not getattr(processor, "chat_template", None):
        raise FovealError(
            "the processor has no chat template: set processor.chat_template to the model's own"
        )
    conversations: list[Any] = [chat.messages for chat in chats]
    return processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )


@dataclass(frozen=True)
class Reply:
    """What the model said, and how many tokens it read and wrote."""

    text: str
    read: int
    written: int


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: Any,
    config: GenerationConfig,
    until: Sequence[str] = (),
) -> list[Reply]:
    """Continue each conversation of an encoded batch.

    Args:
        model: in eval mode.
        processor: its processor.
        inputs: what `encode` returned.
        config: see `generation_config`.
        until: strings that end an answer and do not belong to it.
    """
    inputs = inputs.to(model.device, model.dtype)
    run: Any = model.generate
    output: Tensor = run(**inputs, generation_config=config)
    new = output[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(new, skip_special_tokens=True)
    read = inputs["attention_mask"].sum(dim=1).tolist()
    written = new.ne(config.pad_token_id).sum(dim=1).tolist()
    return [
        Reply(_cut(text, until), before, behind)
        for text, before, behind in zip(texts, read, written, strict=True)
    ]


def _cut(text: str, until: Sequence[str]) -> str:
    """The text up to the first string that ends it; one that it begins with, a line feed say, ends nothing."""
    text = text.strip()
    for stop in filter(None, until):
        text = text.partition(stop)[0]
    return text.strip()


def generation_config(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    wanted: Mapping[str, Any],
    max_new_tokens: int | None = None,
) -> GenerationConfig:
    """The model's generation settings, greedy unless sampling is asked for, with those a task asks for.

    Args:
        model: whose settings are the starting point.
        processor: its processor, which knows the padding token where the model does not.
        wanted: a task's ``generation_kwargs``. What transformers has no name for is left out.
        max_new_tokens: longest answer, whatever the task says; None for the task's, or 1024.
    """
    config = copy.deepcopy(model.generation_config)
    known = {name: value for name, value in wanted.items() if hasattr(config, name) and value is not None}
    temperature = known.get("temperature")
    sampled = bool(known.get("do_sample", temperature)) and temperature != 0
    if not sampled:
        known = {name: value for name, value in known.items() if name not in _SAMPLING}
    config.update(**{**_GREEDY, **known, "do_sample": sampled})
    config.max_new_tokens = max_new_tokens or known.get("max_new_tokens", _LONGEST)
    if config.pad_token_id is None:
        tokenizer: Any = getattr(processor, "tokenizer", processor)
        config.pad_token_id = (
            tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        )
    return config


@contextmanager
def steady(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Eval mode and seeded draws, both put back afterwards."""
    training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        model.eval()
        try:
            yield
        finally:
            model.train(training)
