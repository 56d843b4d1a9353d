"""DeepStack: some towers' features are added again to the visual rows behind the first decoder layers.

The model adds to all rows of the sequence. Where rows are missing, the engine takes the features away from the model
and adds them itself, to the rows that exist.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foveal.engine.frame import Frame, Stream
from foveal.engine.rows import take

__all__ = ["deepen", "of_stream", "take_over"]


def take_over(frame: Frame, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Move the features from the decoder's arguments into the frame, spread over all rows."""
    features = kwargs.get("deepstack_visual_embeds")
    if features is None:
        return kwargs
    visual = kwargs["visual_pos_masks"]
    frame.deepstack = [
        layer.new_zeros(*visual.shape, layer.shape[-1]).masked_scatter(
            visual[..., None].to(layer.device), layer
        )
        for layer in features
    ]
    return {**kwargs, "visual_pos_masks": None, "deepstack_visual_embeds": None}


def deepen(frame: Frame, stream: Stream, layer: int, hidden: Tensor) -> Tensor:
    """Add the features that belong behind `layer` to the rows of a stream: (batch, kept, width)."""
    if layer >= len(frame.deepstack):
        return hidden
    added = of_stream(frame, stream)[layer] if stream.deepstack else _gathered(frame, stream, layer)
    return hidden + added.to(hidden.device, hidden.dtype)


def of_stream(frame: Frame, stream: Stream) -> list[Tensor]:
    """What is added behind each layer to the rows of a stream."""
    return stream.deepstack or [_gathered(frame, stream, layer) for layer in range(len(frame.deepstack))]


def _gathered(frame: Frame, stream: Stream, layer: int) -> Tensor:
    added = frame.deepstack[layer]
    if stream is frame.whole:
        return added
    exists = (stream.rows >= 0)[..., None].to(added.device)
    return take(added, stream.rows, 1, 0) * exists
