"""The hooks that drop visual tokens inside an unmodified model.

Above the decoder layers everything stays in logical coordinates: nothing seems dropped. From the first stage on, a
pre-hook on each layer gathers what the model passes (rotary tables, mask) into the physical coordinates of the rows
that still exist, and one after the decoder puts the rows back.
"""

from __future__ import annotations

from contextlib import ExitStack
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache

from foveal.compressors.base import Compressor
from foveal.compressors.context import AttentionInputs, TokenContext, VisualLayout
from foveal.engine.cache import LogicalCache, physical_length, view_of, with_views
from foveal.engine.families import Parts
from foveal.engine.frame import Frame, StageResult, Stream
from foveal.engine.masks import translate_mask
from foveal.engine.probe import observe_attention
from foveal.engine.rows import restore, take
from foveal.errors import FovealError

__all__ = ["Hooks", "current_frame", "decide"]

_frame: ContextVar[Frame | None] = ContextVar("foveal_frame", default=None)
_labels: ContextVar[Tensor | None] = ContextVar("foveal_labels", default=None)

_KNOWN_SEQUENCE_ARGUMENTS = frozenset(
    (
        "hidden_states",
        "attention_mask",
        "position_ids",
        "position_embeddings",
        "past_key_values",
        "cache_position",
    )
)


class Hooks:
    """Installs and removes the hooks of one compressor on one model.

    Args:
        parts: the model's modules.
        compressor: the method, acting at its `layer`.
        visual_mask: (batch, rows) bool naming the visual tokens where input_ids cannot.

    Raises:
        FovealError: the layer is beyond the model's depth, or the model has no visual tokens to drop.
    """

    def __init__(self, parts: Parts, compressor: Compressor, visual_mask: Tensor | None = None) -> None:
        self.parts = parts
        self.compressor = compressor
        self.visual_mask = visual_mask
        self.last_frame: Frame | None = None
        depth = len(parts.layers)
        if compressor.layer >= depth:
            raise FovealError(
                f"layer={compressor.layer} is beyond the model's depth: it has decoder layers 0 to {depth - 1}"
            )
        if parts.image_token_id is None and visual_mask is None:
            raise FovealError(
                f"{type(parts.top).__name__} has no image token, so nothing says which tokens are visual: use a "
                "vision-language model, or pass visual_mask= with inputs_embeds"
            )
        self._hooked = tuple(range(compressor.layer, depth))
        self._stack = ExitStack()

    def install(self) -> None:
        """Put the hooks in place; `remove` restores the model exactly."""
        parts, stack = self.parts, self._stack
        with ExitStack() as undo:
            if self.compressor.observes():
                observer = partial(self._observe, self.compressor)
                undo.enter_context(observe_attention(parts.attention(self.compressor.layer - 1), observer))
            handles = [
                parts.top.register_forward_pre_hook(self._before_top, with_kwargs=True),
                parts.base.register_forward_pre_hook(self._before_base, with_kwargs=True),
                parts.decoder.register_forward_hook(self._after_decoder),
            ]
            for index in self._hooked:
                hook = partial(self._before_layer, index)
                handles.append(parts.layers[index].register_forward_pre_hook(hook, with_kwargs=True))
            for handle in handles:
                undo.callback(handle.remove)
            stack.push(undo.pop_all())

    def remove(self) -> None:
        """Take every hook away."""
        self._stack.close()

    # ------------------------------------------------------------------ around the model

    def _before_top(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        _labels.set(kwargs.get("labels"))

    def _before_base(self, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        frame = self._describe(args, kwargs, self._pending_labels())
        _frame.set(frame)
        if frame is not None:
            self.last_frame = frame

    def _pending_labels(self) -> Tensor | None:
        """The labels that the model's own forward was called with."""
        labels = _labels.get()
        _labels.set(None)
        return labels

    def _describe(self, args: Any, kwargs: dict[str, Any], labels: Tensor | None) -> Frame | None:
        """The frame of this forward; None for decode steps and for sequences without visual tokens."""
        ids: Tensor | None = kwargs.get("input_ids", args[0] if args else None)
        embeds: Tensor | None = kwargs.get("inputs_embeds")
        source = ids if ids is not None else embeds
        if source is None or source.shape[1] == 1:
            return None
        visual = self._visual(ids, source)
        real = _real_rows(kwargs.get("attention_mask"), visual)
        return Frame.of(visual, real, labels, self.parts.tokens_per_image)

    def _visual(self, ids: Tensor | None, source: Tensor) -> Tensor:
        batch, rows = source.shape[:2]
        if self.visual_mask is not None:
            return _expand_mask(self.visual_mask.to(source.device), batch, rows)
        if ids is None or self.parts.image_token_id is None:
            raise FovealError("nothing says which tokens are visual: pass visual_mask= (batch, rows) bool")
        return ids.eq(self.parts.image_token_id)

    def _after_decoder(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        frame = _frame.get()
        if frame is None or frame.student is None:
            return output
        output.last_hidden_state = restore(output.last_hidden_state, frame.student.rows, frame.length)
        frame.student.memo.clear()
        return output

    # ------------------------------------------------------------------ around each layer

    def _observe(self, compressor: Compressor, attention: AttentionInputs) -> None:
        frame = _frame.get()
        if frame is not None:
            frame.observed[compressor.layer] = compressor.observe(attention, frame.prompt)

    def _before_layer(self, index: int, _layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        frame = _frame.get()
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        if frame is not None and index == self.compressor.layer:
            _refuse_unknown_arguments(kwargs, hidden.shape[1])
            hidden = self._begin(frame, hidden, kwargs)
        if frame is None or frame.student is None:
            return self._continue_cache(index, hidden, args, kwargs)
        kwargs = self._physical(frame.student, frame, index, kwargs)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def _begin(self, frame: Frame, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Start the stage: choose the rows that go on, unless all do."""
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length(self.compressor.layer))
        return self._choose(frame, self._context(frame, hidden), hidden, past)

    def _choose(self, frame: Frame, context: TokenContext, hidden: Tensor, past: int) -> Tensor:
        """Let the method decide; returns the hidden rows that go on."""
        result, index = decide(self.compressor, frame, context, past)
        frame.stages.append(result)
        if index is None:
            return hidden
        frame.student = result.stream
        _refuse_lost_labels(frame)
        return take(hidden, index, 1, 0)

    def _context(self, frame: Frame, hidden: Tensor) -> TokenContext:
        return TokenContext(
            hidden=hidden.detach(),
            layout=VisualLayout.of(frame.whole.numbers, frame.whole.lengths),
            visual=frame.whole.numbers >= 0,
            prompt=frame.prompt,
            observed=frame.observed.get(self.compressor.layer),
            final_norm=cast(nn.Module, self.parts.decoder.norm),
        )

    def _physical(self, stream: Stream, frame: Frame, index: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The layer's arguments for a stream whose rows were dropped, its cache view brought up to date."""
        cache: Cache | None = kwargs.get("past_key_values")
        columns, uniform, past = stream.rows, stream.uniform, 0
        if cache is not None:
            logical = with_views(cache, self._hooked)
            view, past = stream.grow_view(logical, index, frame.length)
            logical.views[index] = view
            columns, uniform = view.columns, view.uniform
            visible = _held_keys(logical, index) + stream.rows.shape[1]
            columns = columns[:, columns.shape[1] - min(visible, columns.shape[1]) :]
        return stream.translate(
            kwargs, columns=columns, uniform=uniform, past=past, length=frame.length, attention=self._backend
        )

    def _continue_cache(self, index: int, hidden: Tensor, args: Any, kwargs: dict[str, Any]) -> Any:
        """Decode, or a turn without images: every row stays, but the mask must fit the keys of a pruned layer."""
        cache = kwargs.get("past_key_values")
        view = view_of(cache, index)
        mask = kwargs.get("attention_mask")
        if view is None or (mask is None and view.uniform):
            return None
        assert isinstance(cache, LogicalCache)
        physical, length = physical_length(cache, index), hidden.shape[1]
        held = _held_keys(cache, index)
        key = (physical, held, id(mask))
        if key not in view.memo:
            view.memo.clear()
            translated = translate_mask(
                mask,
                None,
                view.columns_between(physical - held, physical + length),
                uniform=view.uniform,
                past=physical + view.offset,
                length=length,
                attention=self._backend,
            )
            view.memo[key] = (mask, translated)
        return args, {**kwargs, "attention_mask": view.memo[key][1]}

    @property
    def _backend(self) -> str:
        config: Any = self.parts.decoder.config
        return str(config._attn_implementation)


def current_frame() -> Frame | None:
    """The frame of the forward that is running in this thread."""
    return _frame.get()


def decide(
    compressor: Compressor, frame: Frame, context: TokenContext, past: int
) -> tuple[StageResult, Tensor | None]:
    """Ask the method, and turn its answer into the rows that go on.

    Returns:
        the stage's result, and (batch, kept) the rows to gather; None where every visual token stays.
    """
    with torch.no_grad():
        selection = compressor.select(context)
    layout = context.layout
    counts = selection.counts or tuple(selection.kept.sum(dim=1).tolist())
    if counts == frame.whole.lengths:
        return StageResult(compressor.layer, past, frame.whole, selection, layout), None
    text = frame.real & (frame.whole.numbers < 0)
    keep = text | layout.scatter(selection.kept & layout.valid, text.shape)
    stream, index = frame.whole.narrow(keep, counts, frame.row_counts(counts))
    return StageResult(compressor.layer, past, stream, selection, layout), index


def _real_rows(mask: Any, visual: Tensor) -> Tensor:
    """(batch, rows) bool: which rows of this forward are no padding."""
    rows = visual.shape[1]
    if isinstance(mask, dict):
        mask = next(iter(mask.values()))
    if mask is None:
        return torch.ones_like(visual)
    if mask.ndim == 2:
        real: Tensor = mask[:, -rows:].bool()
        return real
    # Prepared 4-D masks: padding may not even see itself.
    own = mask[:, 0, :, -rows:].diagonal(0, -2, -1)
    real = own if own.dtype == torch.bool else own == 0
    return real.expand(visual.shape[0], -1)


def _expand_mask(mask: Tensor, batch: int, rows: int) -> Tensor:
    """Fit visual_mask to a forward: beams and return sequences repeat each sample."""
    if mask.ndim != 2 or mask.shape[1] != rows or batch % mask.shape[0]:
        raise FovealError(
            f"visual_mask has shape {tuple(mask.shape)} but the forward has {batch} samples of {rows} rows: pass one "
            "bool per row, or set run.visual_mask for the new inputs"
        )
    return mask.bool().repeat_interleave(batch // mask.shape[0], dim=0)


def _held_keys(cache: Cache, index: int) -> int:
    """Keys that a layer hands to attention besides the new ones: all, or a sliding window's last."""
    if index >= len(cache.layers):
        return 0
    layer: Any = cache.layers[index]
    if not layer.is_initialized or not layer.keys.numel():
        return 0
    held = int(layer.keys.shape[-2])
    return min(held, layer.sliding_window - 1) if getattr(layer, "is_sliding", False) else held


def _refuse_unknown_arguments(kwargs: dict[str, Any], rows: int) -> None:
    """An argument along the sequence that the engine does not gather would be silently misaligned."""
    for name, value in kwargs.items():
        if name.startswith("cu_seq_lens") and value is not None:
            raise FovealError(
                "packed sequences (cu_seq_lens) cannot be compressed: pass one sample per row with padding"
            )
        along = isinstance(value, Tensor) and rows in value.shape
        if along and name not in _KNOWN_SEQUENCE_ARGUMENTS:
            raise FovealError(
                f"decoder layers of this model take {name!r} along the sequence, which is not supported"
            )


def _refuse_lost_labels(frame: Frame) -> None:
    """A label is predicted by the row before it: that row must still exist."""
    if frame.labels is None or frame.student is None:
        return
    alive = restore(torch.ones_like(frame.student.rows)[..., None], frame.student.rows, frame.length)[
        ..., 0
    ].bool()
    lost = (frame.labels[:, 1:] != -100) & ~alive[:, :-1]
    if bool(lost.any()):
        sample, row = lost.nonzero()[0].tolist()
        raise FovealError(
            f"label {row + 1} of sample {sample} is predicted by a visual token that was dropped: set it to -100"
        )
