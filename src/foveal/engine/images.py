"""Which rows of a forward are visual tokens, and of which image.

Placeholder ids name the rows. The features that the model computes for them tell where one image ends and the next
begins: `watch_features` notes how many tokens each image has, whatever the family, without computing anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from foveal.compressors.selection import on_device
from foveal.engine.attributes import replaced
from foveal.engine.families import Parts
from foveal.errors import FovealError

__all__ = ["Placeholders", "watch_features"]

_watched: ContextVar[dict[str, list[int]] | None] = ContextVar("foveal_watched", default=None)
# Images that generate encoded for the prompt whose forward is about to come.
_encoded: ContextVar[dict[str, list[int]] | None] = ContextVar("foveal_encoded", default=None)


@dataclass
class Placeholders:
    """The visual rows of a forward, before the model has computed their features.

    Attributes:
        rows: by modality, (batch, rows) bool.
        lengths: by modality, tokens of each image in reading order over the batch, filled while the model runs.
        certain: rows named by the caller, which need no features.
    """

    rows: dict[str, Tensor]
    lengths: dict[str, list[int]] = field(default_factory=dict)
    certain: bool = False

    @classmethod
    def named(cls, mask: Tensor, batch: int, rows: int) -> Placeholders:
        """Rows named by the caller's `mask`; beams and return sequences repeat each of its samples.

        Raises:
            FovealError: a mask that does not fit this forward.
        """
        if mask.ndim != 2 or mask.shape[1] != rows or batch % mask.shape[0]:
            raise FovealError(
                f"visual_mask has shape {tuple(mask.shape)} but the forward has {batch} samples of {rows} rows: pass "
                "one bool per row, or set run.visual_mask for the new inputs"
            )
        return cls({"image": mask.bool().repeat_interleave(batch // mask.shape[0], dim=0)}, certain=True)

    @classmethod
    def of(cls, parts: Parts, ids: Tensor, kwargs: dict[str, Any]) -> Placeholders:
        """Find placeholders in `ids` (batch, rows), and features among the arguments of the base model."""
        found = cls({modality: ids.eq(token) for modality, token in parts.placeholders.items()})
        for modality, output in (kwargs.get("mm_encoder_outputs") or {}).items():
            if output is not None:
                found.lengths[modality] = _lengths(output)
                if len(found.lengths[modality]) == 1 and getattr(output, "last_hidden_state", None) is None:
                    _refuse_merged(parts, modality, found.rows[modality])
        if kwargs.get("image_hidden_states") is not None:
            found.lengths["image"] = _lengths(kwargs["image_hidden_states"])
        _watched.set(found.lengths)
        return found

    def numbers(self, parts: Parts, positions: Tensor | None, *, per_frame: bool) -> Tensor | None:
        """(batch, rows) int64: number of each row's image in reading order over the batch, -1 for text.

        Placeholders without features are text (a draft, or an answer, may hold their ids).

        Args:
            parts: the model's parts.
            positions: (batch, rows) or (axes, batch, rows) position ids, if known.
            per_frame: every frame of a clip counts as an image.

        Returns:
            None where there is no visual token.
        """
        present = [name for name in self.rows if self.certain or self.lengths.get(name)]
        if not present:
            return None
        firsts = []
        for modality in present:
            rows = self.rows[modality]
            starts = _first_rows(parts, modality, rows, self.lengths.get(modality, []))
            if per_frame and modality == "video":
                starts = starts | _frame_starts(parts, rows, starts, positions)
            firsts.append(starts)
        first = torch.stack(firsts).any(dim=0)
        visual = torch.stack([self.rows[modality] for modality in present]).any(dim=0)
        return torch.where(visual, first.flatten().cumsum(0).view_as(visual) - 1, -1)


def _run_starts(visual: Tensor) -> Tensor:
    """(batch, rows) bool -> (batch, rows) bool: the first row of each run of neighbouring True rows."""
    return visual & ~torch.nn.functional.pad(visual, (1, 0))[:, :-1]


@contextmanager
def watch_features(base: nn.Module) -> Iterator[None]:
    """Note the tokens per image whenever `base` computes features; the module is put back exactly on exit."""
    names = [f"get_{modality}_features" for modality in ("image", "video")]
    with ExitStack() as undo:
        for name in names:
            if hasattr(base, name):
                watching = _watching(getattr(base, name), name.split("_")[1])
                undo.enter_context(replaced(base, name, watching))
        yield


def _watching(function: Callable[..., Any], modality: str) -> Callable[..., Any]:
    @wraps(function)  # generate reads the signature
    def watching(*args: Any, **kwargs: Any) -> Any:
        watched = _watched.get()
        known = dict(watched or {})
        output = function(*args, **kwargs)
        if watched is not None:
            # Encoding a video may call the function for images, which noted something else.
            watched.clear()
            watched.update(known, **{modality: _lengths(output)})
        _encoded.set({**(_encoded.get() or {}), modality: _lengths(output)})
        return output

    return watching


def _lengths(output: Any) -> list[int]:
    """Feature rows of each image."""
    features = getattr(output, "pooler_output", output)
    if isinstance(features, Tensor) and features.ndim == 2:
        return [features.shape[0]]
    return [feature.numel() // feature.shape[-1] for feature in features]


def _refuse_merged(parts: Parts, modality: str, rows: Tensor) -> None:
    """Chunked prefill hands over one piece for all images of a chunk: tell them apart by their runs, or refuse."""
    encoded = (_encoded.get() or {}).get(modality, [])
    if len(encoded) < 2 or parts.family.tiles:
        return
    run = _run_starts(rows).flatten().cumsum(0)[rows.flatten()]
    runs = run.bincount()[1:].tolist()
    merged = any(length not in encoded and length > min(encoded) for length in runs)
    if merged or modality in parts.family.broken:
        raise FovealError(
            f"chunked prefill does not tell where one {modality} ends and the next begins: pass "
            "prefill_chunk_size=None"
        )


def _first_rows(parts: Parts, modality: str, rows: Tensor, lengths: list[int]) -> Tensor:
    """The first placeholder of each image: where a run starts, and where the features say so."""
    runs = _run_starts(rows)
    if parts.family.tiles or not lengths:
        return runs
    starts = on_device([0, *accumulate(lengths[:-1])], rows.device).clamp_(max=rows.numel())
    first = torch.zeros(rows.numel() + 1, dtype=torch.bool, device=rows.device).index_fill_(0, starts, True)
    told = rows & first[rows.flatten().cumsum(0).view_as(rows) - 1]
    # Features that do not add up (some models append a newline later) tell nothing.
    reliable = rows.sum() == sum(lengths)
    return torch.where(reliable, told if modality in parts.family.broken else told | runs, runs)


def _frame_starts(parts: Parts, rows: Tensor, clips: Tensor, positions: Tensor | None) -> Tensor:
    """The first placeholder of each frame of the clips that start at `clips`."""
    rule = parts.family.frames
    if rule == "runs":
        return _run_starts(rows)
    if rule == "grid" and positions is not None and positions.ndim == 3:
        # A new frame starts again at the top left: its raster index is no larger than the one before.
        raster = positions[-2] * (positions.amax() + 1) + positions[-1]
        return rows & (torch.diff(raster, dim=1, prepend=raster[:, :1]) <= 0)
    if callable(rule):
        length = rule(parts.top.config)
        # What is left over behind the last frame (a newline) belongs to it.
        clip = clips.flatten().cumsum(0).sub(1).clamp(min=0)
        index = rows.flatten().cumsum(0) - 1
        tokens = torch.zeros_like(clip).scatter_add(0, clip, rows.flatten().long())
        since = index - (tokens.cumsum(0) - tokens)[clip]
        starts = (since % length == 0) & (since + length <= tokens[clip])
        return rows & starts.view_as(rows)
    raise FovealError(
        "per_frame=True needs frames that can be told apart: not in this family, or not with position_ids of one axis"
    )
