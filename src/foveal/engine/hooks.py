"""The hooks that drop visual tokens inside an unmodified model.

Above the decoder layers everything stays in logical coordinates: nothing seems dropped. From the first stage on, a
pre-hook on each layer gathers what the model passes (rotary tables, mask) into the physical coordinates of the rows
that still exist, and one after the decoder puts the rows back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache

from foveal.compressors.base import Compressor, TowerCompressor
from foveal.compressors.context import AttentionInputs, Rows, TokenContext, VisualLayout
from foveal.engine.attributes import NotCopied, replaced
from foveal.engine.cache import (
    LayerView,
    LogicalCache,
    held_keys,
    physical_length,
    static_length,
    switch_of,
    view_of,
    with_views,
)
from foveal.engine.deepstack import deepen, of_stream, take_over
from foveal.engine.early_exit import features_only, leave_early
from foveal.engine.families import Parts
from foveal.engine.frame import Frame, StageResult, Stream
from foveal.engine.images import Placeholders, watch_features
from foveal.engine.masks import real_rows, translate_mask
from foveal.engine.peek import Peek
from foveal.engine.positions import RotaryTables
from foveal.engine.precision import undisturbed
from foveal.engine.probe import observe_attention
from foveal.engine.refusals import (
    check_stages,
    refuse_attention_maps,
    refuse_cache,
    refuse_lost_labels,
    refuse_old_checkpointing,
    refuse_packing,
    refuse_unknown_arguments,
    refuse_window,
    refuse_wrong_counts,
)
from foveal.engine.rows import blend, restore, take
from foveal.engine.tower import TowerStage, marked
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.text_tower import TextTower

__all__ = ["Hooks", "advance", "current_frame", "decide"]


@dataclass
class _Call:
    """What the model was called with, noted on the way down to the decoder.

    Attributes:
        labels: (batch, rows) or None.
        asked: the last rows whose logits were asked for; 0 for all.
        placeholders: the visual rows; None before the base model is reached.
        real: (batch, rows) bool, False for padding.
    """

    labels: Tensor | None = None
    asked: int = 0
    placeholders: Placeholders | None = None
    real: Tensor | None = None


_call: ContextVar[_Call | None] = ContextVar("foveal_call", default=None)
_frame: ContextVar[Frame | None] = ContextVar("foveal_frame", default=None)


class Hooks(NotCopied):
    """Installs and removes the hooks of one or several compressors on one model.

    Args:
        parts: the model's modules.
        compressors: the methods, each acting at its own `layer`.
        visual_mask: (batch, rows) bool naming the visual tokens where input_ids cannot.
        text_tower: what understands questions, for methods that compare them with the image; None to look for one
            beside the checkpoint.

    Raises:
        FovealError: a layer is beyond the model's depth, methods that do not go together, or a model that lacks visual
            tokens or what a method needs.
    """

    def __init__(
        self,
        parts: Parts,
        compressors: Sequence[Compressor],
        visual_mask: Tensor | None = None,
        text_tower: TextTower | None = None,
    ) -> None:
        depth = len(parts.layers)
        owners = [(stage, compressor) for compressor in compressors for stage in compressor.stages(depth)]
        stages = [stage for stage, _ in owners]
        check_stages(stages, depth)
        if not parts.placeholders and visual_mask is None:
            raise FovealError(
                f"{type(parts.top).__name__} has no image token, so nothing says which tokens are visual: use a "
                "vision-language model, or pass visual_mask= with inputs_embeds"
            )
        self.parts = parts
        self.compressors = tuple(
            sorted(compressors, key=lambda compressor: compressor.stages(depth)[0].layer)
        )
        self.visual_mask = visual_mask
        self._at = {stage.layer: stage for stage in sorted(stages, key=lambda stage: stage.layer)}
        self._owners = {id(stage): compressor for stage, compressor in owners}
        first = min(self._at)
        self._tower = next(
            (TowerStage(parts, stage, text_tower) for stage in stages if isinstance(stage, TowerCompressor)),
            None,
        )
        # Also for methods that do not pack: they may go on with a cache of one that did.
        self._tables = None if parts.many_axes else RotaryTables.of(parts.decoder)
        if self._tables is None and not parts.many_axes and any(s.positions == "packed" for s in stages):
            raise FovealError(
                f'positions="packed" needs rotary embeddings, which {type(parts.decoder).__name__} has not: pass '
                'positions="original"'
            )
        self._reads_positions = parts.reads_positions
        self._peek = Peek()
        self._hooked = tuple(range(first, len(parts.layers)))
        self._deepened = range(parts.deepstack if first < parts.deepstack else 0)
        self._switch = switch_of(parts.decoder)
        self._stack = ExitStack()
        self._last: Frame | None = None
        self._last_here = threading.local()

    @property
    def last_frame(self) -> Frame | None:
        """The last forward that held visual tokens: of this thread, or if it ran none, of any."""
        return getattr(self._last_here, "frame", self._last)

    @property
    def questions(self) -> list[str] | None:
        """Per sample, the question that a pre-LM method compares with the image; None to read it off the prompt."""
        return None if self._tower is None else self._tower.questions

    @questions.setter
    def questions(self, questions: list[str] | None) -> None:
        if self._tower is None:
            raise FovealError("no method here reads questions")
        self._tower.questions = questions

    def install(self) -> None:
        """Put the hooks in place; `remove` restores the model exactly."""
        with ExitStack() as undo:
            self._replace(undo)
            for handle in self._register():
                undo.callback(handle.remove)
            undo.enter_context(replaced(self._switch, "first", self._hooked[0]))
            self._stack.push(undo.pop_all())

    def _replace(self, undo: ExitStack) -> None:
        """What hooks cannot do."""
        top, first = self.parts.top, self.parts.layers[self._hooked[0]]
        if self._tower is not None:
            undo.enter_context(self._tower.installed())
        observed = None if self._tower is None else self._tower.observed_layer
        undo.enter_context(leave_early(self.parts, observed))
        undo.enter_context(watch_features(self.parts.base))
        for layer, stages in self._observers().items():
            observer = partial(self._observe, stages)
            undo.enter_context(observe_attention(self.parts.attention(layer), observer))
        if top is not self.parts.base:
            # Some wrappers (older PEFT) call the forward and not the module, past its hooks.
            undo.enter_context(replaced(top, "forward", self._noting(top.forward)))
        # torch.compile guards on a forward of the module's own, but not on hooks.
        undo.enter_context(replaced(first, "forward", _passing(first.forward)))

    def _register(self) -> list[RemovableHandle]:
        parts, layers = self.parts, self.parts.layers
        handles = [
            parts.base.register_forward_pre_hook(self._before_base, with_kwargs=True),
            parts.decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True),
            parts.decoder.register_forward_hook(self._after_decoder, with_kwargs=True),
        ]
        # Keys are counted, and embeddings read, behind the hook that may drop some.
        before: list[tuple[int, Callable[..., Any]]] = [
            (index, partial(self._before_layer, index)) for index in self._hooked
        ]
        before += [(index, partial(self._count_keys, index)) for index in self._observers()]
        if self._readers():
            before.append((0, self._read))
        after = [(index, partial(self._after_layer, index)) for index in self._deepened]
        handles += [layers[i].register_forward_pre_hook(hook, with_kwargs=True) for i, hook in before]
        handles += [layers[i].register_forward_hook(hook, with_kwargs=True) for i, hook in after]
        return handles

    def _stages(self) -> Sequence[Compressor]:
        """All that choose tokens, by layer."""
        return tuple(self._at.values())

    def _owner(self, stage: Compressor) -> Compressor:
        """The method that a stage belongs to."""
        return self._owners.get(id(stage), stage)

    def _readers(self) -> list[Compressor]:
        """The methods that read the embeddings."""
        owners = {id(owner): owner for owner in map(self._owner, self._stages())}
        return [owner for owner in owners.values() if owner.reads()]

    def _observers(self) -> dict[int, list[Compressor]]:
        """The stages that observe the attention of a layer, by layer."""
        found: dict[int, list[Compressor]] = {}
        for stage in self._stages():
            if stage.observes():
                found.setdefault(stage.layer - (not stage.own_layer), []).append(stage)
        return found

    def remove(self) -> None:
        """Take every hook away."""
        self._stack.close()

    # ------------------------------------------------------------------ around the model

    def _noting(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)  # Trainer and generate read the signature
        def noting(*args: Any, **kwargs: Any) -> Any:
            if _is_decode_step(_source(args, kwargs), kwargs):
                return forward(*args, **kwargs)
            outer = _call.get(), _frame.get()  # of a model that is running around this one
            asked = kwargs.get("logits_to_keep", 0)
            _call.set(_Call(self._labels_of(kwargs), asked if isinstance(asked, int) else 0))
            try:
                with features_only(self.parts.top):
                    return forward(*args, **kwargs)
            finally:
                _call.set(outer[0])
                _frame.set(outer[1])

        return noting

    def _labels_of(self, kwargs: dict[str, Any]) -> Tensor | None:
        """The labels that the model was called with."""
        return kwargs.get("labels")

    def _before_base(self, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        refuse_attention_maps(kwargs, self.parts.decoder.config)
        source = _source(args, kwargs)
        if _is_decode_step(source, kwargs):
            return
        call = _call.get()
        if call is None or call.placeholders is not None:
            # Nobody came by the top: the base model was called itself.
            call = _Call()
        _frame.set(None)
        _call.set(call)
        if source is None:
            return
        if self._tower is not None:
            self._tower.ask(kwargs.get("input_ids", args[0] if args else None))
        call.placeholders = self._placeholders(args, kwargs, source)
        call.real = real_rows(kwargs.get("attention_mask"), source, kwargs.get("past_key_values"))

    def _placeholders(self, args: Any, kwargs: dict[str, Any], source: Tensor) -> Placeholders:
        if self.visual_mask is not None:
            return Placeholders.named(self.visual_mask.to(source.device), *source.shape[:2])
        ids: Tensor | None = kwargs.get("input_ids", args[0] if args else None)
        if ids is None or not self.parts.placeholders:
            raise FovealError("nothing says which tokens are visual: pass visual_mask= (batch, rows) bool")
        return Placeholders.of(self.parts, ids, kwargs)

    def _before_decoder(self, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if _is_decode_step(_source(args, kwargs), kwargs):
            return None
        call = _call.get()
        _call.set(None)
        positions = kwargs.get("position_ids")
        refuse_packing(self._backend, kwargs.get("attention_mask"), positions)
        frame = None if call is None else self._describe(call, positions, kwargs.get("past_key_values"))
        _frame.set(frame)
        if frame is None:
            return (
                None
                if call is None or call.placeholders is None
                else _unmarked(call.placeholders, args, kwargs)
            )
        self._last = self._last_here.frame = frame
        return args, take_over(frame, kwargs) if self._deepened else kwargs

    def _describe(self, call: _Call, positions: Tensor | None, cache: Cache | None) -> Frame | None:
        """The frame of this forward; None for sequences without visual tokens."""
        if call.placeholders is None or call.real is None:
            return None
        per_frame = self.compressors[0].per_frame
        numbers = call.placeholders.numbers(self.parts, positions, per_frame=per_frame)
        if numbers is None:
            return None
        # Of a static cache that was used before, only the device knows how much it holds.
        past = 0 if cache is None else int(cache.get_seq_length())
        return Frame.of(numbers, call.real, call.labels, call.asked, past)

    def _after_decoder(self, _module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if _is_decode_step(_source(args, kwargs), kwargs):
            return output
        frame = _frame.get()
        if frame is None or frame.student is None:
            return output
        output.last_hidden_state = restore(output.last_hidden_state, frame.student.rows, frame.length)
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(
                hidden
                if hidden is None or stream is frame.whole
                else restore(hidden, stream.rows, frame.length)
                for hidden, stream in zip(
                    output.hidden_states, frame.streams(len(self.parts.layers)), strict=True
                )
            )
        frame.release()
        return output

    # ------------------------------------------------------------------ around each layer

    def _observe(self, stages: Sequence[Compressor], attention: AttentionInputs) -> None:
        frame = _frame.get()
        peeking = self._peek.running
        for stage in stages:
            # A layer that is checkpointed runs again in the backward pass, when its stage has long been decided.
            if frame is None or stage.own_layer != peeking or stage.layer in frame.decided:
                continue
            if not peeking:
                attention = attention.without_empty_slots(frame.keys)
            with undisturbed(attention.key.device):
                rows = _rows(frame, frame.read.get(id(self._owner(stage))), attention.key.device)
                frame.observed[id(stage)] = stage.observe(attention, rows)
        self._peek.stop()

    def _read(self, _layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Let methods read the embeddings that enter layer 0."""
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        frame = None if _is_decode_step(hidden, kwargs) else _frame.get()
        if frame is None or frame.read:
            return
        for method in self._readers():
            with undisturbed(hidden.device):
                read = method.read(self._context(method, frame, hidden))
            frame.read[id(method)] = restore(read[..., None], frame.current.rows, frame.length)[..., 0]

    def _count_keys(self, index: int, _layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Note how many slots of a static cache will be filled when the layer's attention is observed."""
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        frame = None if _is_decode_step(hidden, kwargs) else _frame.get()
        cache = kwargs.get("past_key_values")
        if frame is not None and cache is not None and static_length(cache, index) is not None:
            # Waits for the device, but not for the first prompt.
            before = physical_length(cache, index) if frame.past else 0
            frame.keys = before + frame.current.rows.shape[1]

    def _before_layer(self, index: int, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        frame = None if _is_decode_step(hidden, kwargs) else _frame.get()
        compressor = None if frame is None else self._at.get(index)
        if frame is not None and compressor is not None:
            refuse_unknown_arguments(args, kwargs, hidden.shape[1])
            refuse_old_checkpointing(layer)
            if any(stage.own_layer for stage in self._observers().get(index, ())):
                self._look(frame, index, layer, hidden, kwargs)
            hidden = self._begin(compressor, frame, hidden, kwargs)
        if frame is None or frame.student is None:
            return self._continue_cache(index, hidden, args, kwargs)
        kwargs = self._physical(frame.student, frame, index, kwargs)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def _after_layer(
        self, index: int, _layer: nn.Module, _args: Any, kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        frame = None if _is_decode_step(output, kwargs) else _frame.get()
        return output if frame is None else deepen(frame, frame.current, index, output)

    def _begin(self, compressor: Compressor, frame: Frame, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Start a stage: choose the rows that go on, unless all do."""
        cache = kwargs.get("past_key_values")
        hidden = self._choose(compressor, frame, hidden, frame.past)
        if cache is not None and frame.student is not None:
            refuse_cache(cache, self._backend)
        return hidden

    def _choose(self, compressor: Compressor, frame: Frame, hidden: Tensor, past: int) -> Tensor:
        """Let the method decide; returns the hidden rows that go on."""
        before = frame.current
        result, index = decide(compressor, frame, self._context(compressor, frame, hidden), past)
        frame.stages.append(result)
        if result.stream is not frame.whole:
            frame.student = result.stream
            refuse_lost_labels(frame, result.stream)
        return advance(frame, before, hidden, result, index)

    def _look(
        self, frame: Frame, index: int, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
    ) -> None:
        """Compute the queries and keys that a layer would have of all rows that reach it, and no more of it."""
        cache = kwargs.get("past_key_values")
        kwargs = {**kwargs, "past_key_values": None}
        if cache is not None:
            # Without the keys of earlier turns, and the empty slots of a static cache.
            past = frame.past
            columns = torch.arange(past, past + frame.length, device=hidden.device)
            kwargs["attention_mask"] = translate_mask(
                kwargs.get("attention_mask"),
                None,
                columns.expand(len(hidden), -1),
                uniform=True,
                past=past,
                length=frame.length,
                attention=self._backend,
            )
        if frame.student is not None:
            kwargs = self._physical(frame.student, frame, index, kwargs)
        self._peek.run(layer, hidden, kwargs)

    def _context(self, compressor: Compressor, frame: Frame, hidden: Tensor) -> TokenContext:
        stream, device = frame.current, hidden.device
        norm = cast(nn.Module, self.parts.decoder.norm)
        observed = frame.observed.pop(id(compressor), None)
        numbers = stream.numbers.to(device)
        return TokenContext(
            hidden=hidden.detach(),
            layout=VisualLayout.of(numbers, stream.lengths),
            visual=numbers >= 0,
            prompt=stream.prompt.to(device),
            observed=None if observed is None else observed.to(device),
            final_norm=lambda rows: norm(rows).to(device),
            whole_lengths=frame.whole.lengths,
        )

    def _physical(self, stream: Stream, frame: Frame, index: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The layer's arguments for a stream whose rows were dropped, its cache view brought up to date."""
        cache: Cache | None = kwargs.get("past_key_values")
        refuse_window(self._backend, self.parts.decoder.config, index)
        view, columns, uniform = None, stream.rows, stream.uniform
        if cache is not None:
            logical = with_views(cache, self._hooked, self._switch)
            view = stream.grow_view(logical, index, frame.past, frame.length)
            logical.views[index] = view
            uniform = view.uniform
            columns = view.table if view.table is not None else view.columns
            if view.table is None:
                visible = held_keys(logical, index) + stream.rows.shape[1]
                columns = columns[:, columns.shape[1] - min(visible, columns.shape[1]) :]
        kwargs = stream.translate(
            kwargs,
            view=view,
            columns=columns,
            uniform=uniform,
            past=frame.past,
            length=frame.length,
            attention=self._backend,
        )
        if self._tables is not None:
            before = None if view is None else view.shift
            if before is not None and stream.ahead is not None:
                before = before - stream.ahead.to(before.device)
            kwargs = self._tables.shifted(kwargs, index, stream.shift, before, stream.memo, id(view))
        if "flash" in self._backend and kwargs["attention_mask"] is None:
            # Each layer would read positions on the host, and take their gaps for the ends of packed sequences.
            if self._reads_positions:
                kwargs["attention_mask"] = columns >= 0  # beside a mask, gaps mean nothing
            else:
                kwargs["position_ids"] = None
        return kwargs

    def _continue_cache(self, index: int, hidden: Tensor, args: Any, kwargs: dict[str, Any]) -> Any:
        """Decode, or a turn without images: every row stays, but the mask must fit the keys of a pruned layer."""
        cache = kwargs.get("past_key_values")
        view = view_of(cache, index)
        mask = kwargs.get("attention_mask")
        if view is None or (mask is None and view.uniform and view.shift is None):
            return None
        assert isinstance(cache, LogicalCache)
        if view.table is not None and torch.compiler.is_compiling():
            # Nothing is remembered: a compiled step must not depend on it.
            kwargs = {**kwargs, "attention_mask": self._fit_slots(mask, view.table)}
            return args, kwargs if self._tables is None else self._tables.moved(
                kwargs, index, None, view.shift
            )
        static = view.table is not None
        physical, held = (0, 0) if static else (physical_length(cache, index), held_keys(cache, index))
        key = (physical, held, id(mask))
        if key not in view.memo:
            view.memo.clear()
            view.memo[key] = (
                mask,
                self._fit_keys(mask, view, physical, held, hidden.shape[1])
                if view.table is None
                else self._fit_slots(mask, view.table),
            )
        kwargs = {**kwargs, "attention_mask": view.memo[key][1]}
        if self._tables is not None:  # positions behind those that were packed
            kwargs = self._tables.shifted(kwargs, index, None, view.shift, view.memo, id(view))
        return args, kwargs

    def _fit_slots(self, mask: Any, table: Tensor) -> Any:
        """The mask of a static cache reads no length: it covers all slots at every step."""
        return translate_mask(mask, None, table, uniform=False, past=0, length=0, attention=self._backend)

    def _fit_keys(self, mask: Any, view: LayerView, physical: int, held: int, length: int) -> Any:
        """The mask of a cache that holds the last `held` of `physical` keys, and is given `length` more."""
        columns = view.columns_between(physical - held, physical + length)
        past = physical + int(view.offset)
        return translate_mask(
            mask, None, columns, uniform=view.uniform, past=past, length=length, attention=self._backend
        )

    @property
    def _backend(self) -> str:
        config: Any = self.parts.decoder.config
        return str(config._attn_implementation)


def _passing(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def passing(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return passing


def current_frame() -> Frame | None:
    """The frame of the forward that is running in this thread."""
    return _frame.get()


def _rows(frame: Frame, read: Tensor | None, device: torch.device) -> Rows:
    """What a stage is told about the rows whose attention it observes."""
    stream = frame.current
    return Rows(
        prompt=stream.prompt.to(device),
        visual=(stream.numbers >= 0).to(device),
        words=stream.text.to(device),
        most=max(frame.text_counts),
        read=None if read is None else take(read, stream.rows, 1, 0).to(device),
    )


def advance(
    frame: Frame, before: Stream, hidden: Tensor, result: StageResult, index: Tensor | None
) -> Tensor:
    """The rows (batch, kept, width) that a stage lets through, merged where it merges; the only step with gradient.

    Args:
        frame: the forward.
        before: the rows that reached the stage.
        hidden: their residual stream, (batch, rows, width).
        result: what the stage decided.
        index: (batch, kept) which of the rows go on; None for all.
    """
    if result.selection.mix is not None and frame.deepstack:
        result.stream.deepstack = [_through(added, result, index) for added in of_stream(frame, before)]
    return _through(hidden, result, index)


def _through(rows: Tensor, result: StageResult, index: Tensor | None) -> Tensor:
    if result.selection.mix is not None:
        rows = blend(rows, result.layout, result.selection)
    if index is None:
        return rows
    # Filler repeats a row that stays: attention multiplies what it hides by zero, and a dropped row may hold NaN.
    return take(rows, torch.where(index < 0, index[:, -1:], index), 1, 0)


def decide(
    compressor: Compressor, frame: Frame, context: TokenContext, past: int
) -> tuple[StageResult, Tensor | None]:
    """Ask the method, and turn its answer into the rows that go on.

    Returns:
        the stage's result, and (batch, kept) the rows to gather; None where every visual token stays.
    """
    with undisturbed(context.hidden.device):
        chosen_before = isinstance(compressor, TowerCompressor)
        selection = marked(context) if chosen_before else compressor.select(context)
    layout, stream = context.layout, frame.current
    counts = selection.counts or tuple(selection.kept.sum(dim=1).tolist())
    refuse_wrong_counts(compressor, selection, counts)
    packs = compressor.positions == "packed"
    if counts == stream.lengths:
        if packs and stream is not frame.whole:
            stream = stream.packed(frame.whole)
        return StageResult(compressor.layer, past, stream, selection, layout, frame.whole), None
    kept = selection.kept & layout.valid if layout.padded else selection.kept
    chosen = layout.scatter(kept, stream.text.shape)
    keep = stream.text | chosen.to(stream.text.device)
    narrowed, index = stream.narrow(keep, counts, frame.row_counts(counts))
    if packs:
        narrowed = narrowed.packed(frame.whole)
    return StageResult(compressor.layer, past, narrowed, selection, layout, frame.whole), index


def _unmarked(placeholders: Placeholders, args: Any, kwargs: dict[str, Any]) -> Any:
    """Images that the attention mask hides whole have no stage to drop their marks: zeros take their place."""
    embeds = kwargs.get("inputs_embeds")
    if embeds is None or not any(placeholders.lengths.values()):
        return None
    rows = torch.stack(list(placeholders.rows.values())).any(dim=0).to(embeds.device)[..., None]
    return args, {**kwargs, "inputs_embeds": embeds.masked_fill(rows & embeds.isnan(), 0)}


def _source(args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """The ids, or else the embeddings, that a model was called with."""
    ids: Tensor | None = kwargs.get("input_ids", args[0] if args else None)
    return ids if ids is not None else kwargs.get("inputs_embeds")


def _is_decode_step(source: Tensor | None, kwargs: dict[str, Any]) -> bool:
    """One row behind a cache. Hooks leave it to the cache: a compiled step could not read context variables."""
    if source is None or source.shape[1] != 1 or kwargs.get("past_key_values") is None:
        return False
    return not kwargs.get("mm_encoder_outputs") and kwargs.get("pixel_values") is None
