"""A picture for micro-batches of text alone.

All processes must run the same modules: DDP waits for the gradient of every parameter, FSDP and ZeRO-3 gather every
module's weights together. A micro-batch without an image would leave out the tower, the projector and what a method
computes to choose tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from foveal.data.collator import VisionCollator
from foveal.errors import FovealError

__all__ = ["StandIn"]

Inputs = dict[str, Any]


class StandIn:
    """A conversation about a blank picture, without answers: rows of a batch do not see each other, so that it changes
    no loss, and gives every parameter behind it a gradient of zero.

    Args:
        processor: the model's processor; None if the trainer was given none.
        prepare: moves a batch to where the model is.
    """

    def __init__(self, processor: Any, prepare: Callable[[Inputs], Inputs]) -> None:
        self._processor, self._prepare = processor, prepare
        self._batch: Inputs | None = None

    def join(self, inputs: Inputs, labels: Tensor) -> tuple[Inputs, Tensor]:
        """Inputs and labels (batch, rows) with one more sample, padded on the right; as they are if they have images.

        Raises:
            FovealError: there is no processor to make the picture with.
        """
        if inputs.get("pixel_values") is not None:
            return inputs, labels
        stand_in = self._prepare(self._made())
        rows = max(labels.shape[1], stand_in["input_ids"].shape[1])
        joined = {
            name: value
            if inputs.get(name) is None
            else _stacked(inputs[name], value, rows, self._filler(name))
            for name, value in stand_in.items()
        }
        return {**inputs, **joined}, functional.pad(labels, (0, rows - labels.shape[1], 0, 1), value=-100)

    def _made(self) -> Inputs:
        if self._processor is None:
            raise FovealError(
                "several processes, and a micro-batch of text alone: pass processing_class= to EpicTrainer, so that a "
                "blank picture can take an image's part"
            )
        if self._batch is None:
            question = [{"type": "image"}, {"type": "text", "text": "-"}]
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "-"}]
            sample = {"images": [Image.new("RGB", (64, 64))], "messages": messages}
            self._batch = VisionCollator(self._processor, max_length=sys.maxsize)([sample])
            del self._batch["labels"]
        return self._batch

    def _filler(self, name: str) -> int:
        return int(self._processor.tokenizer.pad_token_id) if name == "input_ids" else 0


def _stacked(batch: Tensor, sample: Tensor, rows: int, filler: int) -> Tensor:
    return torch.cat(
        [functional.pad(part, (0, rows - part.shape[1]), value=filler) for part in (batch, sample)]
    )
