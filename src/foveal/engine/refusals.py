"""What the engine refuses, each in one line that says why: nothing may be silently wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers import Cache

from foveal.compressors.base import Compressor
from foveal.compressors.context import Selection
from foveal.engine.frame import Frame, Stream
from foveal.engine.rows import restore
from foveal.errors import FovealError

__all__ = [
    "check_stages",
    "refuse_attention_maps",
    "refuse_cache",
    "refuse_lost_labels",
    "refuse_old_checkpointing",
    "refuse_packing",
    "refuse_unknown_arguments",
    "refuse_window",
    "refuse_wrong_counts",
]

_KNOWN = frozenset(
    (
        "hidden_states",
        "attention_mask",
        "position_ids",
        "position_embeddings",
        "past_key_values",
        "cache_position",
        "labels",  # some models hand them down; no layer reads them
    )
)
_CHECKPOINTS_INSIDE_HOOKS = Version(transformers.__version__) >= Version("5.23")


def check_stages(compressors: Sequence[Compressor], depth: int) -> None:
    """Refuse methods that cannot work together on a decoder of `depth` layers."""
    if not compressors:
        raise FovealError("no method to compress with: pass at least one")
    layers = [compressor.layer for compressor in compressors]
    if max(layers) >= depth:
        raise FovealError(
            f"layer={max(layers)} is beyond the model's depth: it has decoder layers 0 to {depth - 1}"
        )
    twice = next((layer for layer in layers if layers.count(layer) > 1), None)
    if twice is not None:
        place = f"layer {twice}" if twice else "layer 0, where pre-LM methods drop their tokens"
        raise FovealError(f"two methods act at {place}: give each stage a layer of its own")
    if len({compressor.per_frame for compressor in compressors}) > 1:
        raise FovealError("all stages must count their budget alike: set per_frame on all of them or on none")


def refuse_attention_maps(kwargs: dict[str, Any], config: Any) -> None:
    """Maps between kept tokens only would be read as if they lined up with input_ids."""
    wanted = kwargs.get("output_attentions")
    if config.output_attentions if wanted is None else wanted:
        raise FovealError(
            "output_attentions gives maps between the kept tokens only, out of line with input_ids: ask for them "
            "without compression"
        )


def refuse_unknown_arguments(args: Sequence[Any], kwargs: dict[str, Any], rows: int) -> None:
    """An argument along the sequence that the engine does not gather would be silently misaligned."""
    named = {f"argument {place}": value for place, value in enumerate(args) if place} | kwargs
    for name, value in named.items():
        if name.startswith("cu_seq_lens") and value is not None:
            raise FovealError(
                "packed sequences (cu_seq_lens) cannot be compressed: pass one sample per row with padding"
            )
        if isinstance(value, Tensor) and rows in value.shape and name not in _KNOWN:
            raise FovealError(
                f"decoder layers of this model take {name!r} along the sequence, which is not supported"
            )


def refuse_packing(attention: str, mask: Any, positions: Tensor | None) -> None:
    """Without a mask, flash backends read positions that start again as another sample."""
    flash = "flash" in attention and mask is None and positions is not None and positions.ndim == 2
    if flash and bool((cast(Tensor, positions).diff(dim=1) < 0).any()):
        raise FovealError(
            "packed sequences (position_ids that start again) cannot be compressed: pass one sample per row with "
            "padding"
        )


def refuse_wrong_counts(compressor: Compressor, selection: Selection, counts: tuple[int, ...]) -> None:
    """Rows are gathered by counts known on the host; where it costs no wait, make sure that they are true."""
    marked = selection.kept.sum(dim=1).tolist() if selection.kept.is_cpu else list(counts)
    if marked != list(counts):
        raise FovealError(
            f"{type(compressor).__name__} marks {marked} tokens as kept but counts {list(counts)}: leave counts out of "
            "the Selection, or make them agree"
        )


def refuse_old_checkpointing(layer: nn.Module) -> None:
    """Before 5.23, transformers ran module hooks again when a checkpointed layer was recomputed."""
    if getattr(layer, "gradient_checkpointing", False) and layer.training and not _CHECKPOINTS_INSIDE_HOOKS:
        raise FovealError(
            "gradient checkpointing needs transformers >= 5.23 here: upgrade it, or switch checkpointing off"
        )


def refuse_window(attention: str, config: Any, layer: int) -> None:
    """Flash backends count a sliding window over the keys they are given, not over positions."""
    kinds = getattr(config, "layer_types", None)
    windowed = kinds[layer].startswith("sliding") if kinds else getattr(config, "sliding_window", None)
    if "flash" in attention and windowed:
        raise FovealError(
            "flash attention counts a sliding window over the tokens that were kept: load the model with "
            "attn_implementation='sdpa'"
        )


def refuse_cache(cache: Cache, attention: str) -> None:
    """Static caches whose slots cannot be told apart by position."""
    static: list[Any] = [layer for layer in cache.layers if layer.is_compileable]
    if any(layer.is_sliding for layer in static):
        raise FovealError(
            "a static cache with sliding-window layers cannot hold a compressed prompt: use the default "
            "cache_implementation (dynamic)"
        )
    if static and "flash" in attention:
        raise FovealError(
            "flash attention has no mask for the empty slots of a static cache: use the default cache_implementation "
            "(dynamic), or attn_implementation='sdpa'"
        )


def refuse_lost_labels(frame: Frame, stream: Stream) -> None:
    """A label is predicted by the row before it: that row must still exist."""
    if frame.labels is None or not frame.at_risk:
        return
    rows = stream.rows
    alive = restore(torch.ones_like(rows)[..., None], rows, frame.length)[..., 0].bool()
    labels = frame.labels.to(rows.device)
    lost = (labels[:, 1:] != -100) & ~alive[:, :-1]
    if bool(lost.any()):
        sample, row = lost.nonzero()[0].tolist()
        raise FovealError(
            f"label {row + 1} of sample {sample} is predicted by a visual token that was dropped: set it to -100"
        )
