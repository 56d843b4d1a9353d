"""The state of one compressed forward, and of the rows that flow through its deeper layers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from foveal.compressors.context import Selection, VisualLayout
from foveal.compressors.selection import on_device
from foveal.engine.cache import LayerView, static_length, view_of
from foveal.engine.masks import translate_mask
from foveal.engine.rows import compact, map_tensors, take
from foveal.errors import FovealError

__all__ = ["Frame", "StageResult", "Stream"]


@dataclass
class Stream:
    """Rows that exist physically from some layer on.

    Attributes:
        rows: (batch, kept) logical row of each physical row, -1 filler.
        numbers: (batch, kept) image number of each row, -1 for text and filler.
        text: (batch, kept) bool, real rows that are no visual token.
        prompt: (batch, kept) bool, real rows before the first answer.
        lengths: visual tokens left of each image, on the host.
        row_counts: rows of each sample, on the host.
        shift: (batch, kept) by how much the position of each row is ahead of the packed one, which is that of a
            sequence in which nothing but these rows ever existed; None where positions stay.
        ahead: (batch,) the same for the rows that follow this forward.
        deepstack: of a stream whose tokens were merged, (batch, kept, width) for each layer what is added behind it.
        memo: tables and masks already gathered for this forward, by the object they came from (kept alive there).
        views: cache views already made for this forward, by the id of the one they follow (kept alive there).
    """

    rows: Tensor
    numbers: Tensor
    text: Tensor
    prompt: Tensor
    lengths: tuple[int, ...]
    row_counts: tuple[int, ...]
    shift: Tensor | None = None
    ahead: Tensor | None = None
    deepstack: list[Tensor] | None = None
    memo: dict[Any, tuple[Any, Any]] = field(default_factory=dict)
    views: dict[int, tuple[LayerView | None, LayerView]] = field(default_factory=dict)

    @property
    def uniform(self) -> bool:
        """Whether every sample has the same number of rows, so that there is no filler."""
        return set(self.row_counts) == {self.rows.shape[1]}

    def narrow(
        self, keep: Tensor, lengths: tuple[int, ...], row_counts: tuple[int, ...]
    ) -> tuple[Stream, Tensor]:
        """The stream of the rows marked in `keep` (batch, rows), and (batch, kept) their index into this stream."""
        # Never a single row: behind a cache that would look like a decode step.
        index = compact(keep, max(*row_counts, min(2, keep.shape[1])))
        whole = set(row_counts) == {index.shape[1]}
        filler, index_or_first = (None, index) if whole else (index < 0, index.clamp(min=0))

        def narrowed(source: Tensor, value: int) -> Tensor:
            taken = source.gather(1, index_or_first)
            return taken if filler is None else taken.masked_fill_(filler, value)

        stream = Stream(
            rows=narrowed(self.rows, -1),
            numbers=narrowed(self.numbers, -1),
            text=narrowed(self.text, False),
            prompt=narrowed(self.prompt, False),
            lengths=lengths,
            row_counts=row_counts,
            shift=None if self.shift is None else self.shift.gather(1, index_or_first),
            ahead=self.ahead,
            deepstack=self.deepstack and [take(added, index, 1, 0) for added in self.deepstack],
        )
        return stream, index

    def packed(self, whole: Stream) -> Stream:
        """These rows at positions that count nothing of `whole`, all rows of this forward, that was dropped."""
        real = (whole.text | (whole.numbers >= 0)).cumsum(dim=1)
        alive = (self.rows >= 0).cumsum(dim=1)
        shift, ahead = take(real, self.rows, 1, 0) - alive, real[:, -1] - alive[:, -1]
        return replace(self, shift=shift, ahead=ahead, memo={}, views={})

    def grow_view(self, cache: Cache, layer: int, past: int, frame_length: int) -> LayerView:
        """The layer's cache view once these rows are added behind `past` logical keys."""
        old = view_of(cache, layer)
        if id(old) not in self.views:
            physical = past - (int(old.offset) if old else 0)
            before = old.columns_between(0, physical) if old else _counting(physical, self.rows)
            added = torch.where(self.rows >= 0, self.rows + past, -1)
            view = LayerView(
                columns=torch.cat([before.to(added.device), added], dim=1),
                offset=past + frame_length - physical - self.rows.shape[1],
                uniform=self.uniform and (old is None or old.uniform),
                shift=_sum(self.ahead, None if old is None else old.shift),
            )
            self.views[id(old)] = (old, view.allocated(static_length(cache, layer)))
        return self.views[id(old)][1]

    def translate(
        self,
        kwargs: dict[str, Any],
        *,
        view: LayerView | None,
        columns: Tensor,
        uniform: bool,
        past: int,
        length: int,
        attention: str,
    ) -> dict[str, Any]:
        """A layer's keyword arguments with the rows of this stream, and the key columns of its view, gathered."""
        kwargs = dict(kwargs)
        for name, dim, batch_dim in (("position_embeddings", -2, -3), ("position_ids", -1, -2)):
            if kwargs.get(name) is not None:
                kwargs[name] = self._gathered(kwargs[name], dim, batch_dim)
        mask = kwargs.get("attention_mask")
        key = (id(mask), id(view), columns.shape[1])
        if key not in self.memo:
            translated = translate_mask(
                mask, self.rows, columns, uniform=uniform, past=past, length=length, attention=attention
            )
            self.memo[key] = ((mask, view), translated)
        kwargs["attention_mask"] = self.memo[key][1]
        return kwargs

    def _gathered(self, table: Any, dim: int, batch_dim: int) -> Any:
        """Rotary tables and positions are gathered once per forward, not once per layer."""
        key = (id(table), None)
        if key not in self.memo:
            self.memo[key] = (
                table,
                map_tensors(lambda tensor: take(tensor, self.rows, dim, batch_dim), table),
            )
        return self.memo[key][1]


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second.to(first.device)


def _counting(length: int, like: Tensor) -> Tensor:
    return torch.arange(length, device=like.device).expand(like.shape[0], -1)


@dataclass(frozen=True)
class StageResult:
    """What one stage decided.

    Attributes:
        layer: where it acted.
        past: logical rows of earlier forwards on the same cache.
        stream: the rows that went on.
        selection: the method's decision, over `layout`.
        whole: all rows of the forward.
    """

    layer: int
    past: int
    stream: Stream
    selection: Selection
    layout: VisualLayout
    whole: Stream


@dataclass
class Frame:
    """One forward over a sequence that holds visual tokens.

    Attributes:
        length: logical rows of this forward.
        whole: the stream of all rows.
        text_counts: real text rows of each sample, on the host.
        image_samples: the sample of each image, on the host.
        past: logical rows of earlier forwards on the same cache.
        labels: (batch, rows) the labels of this forward, if any.
        at_risk: whether a label is predicted by a row that may be dropped.
        student: the model's own stream once something was dropped.
        teacher: the teacher's stream, in lock-step training.
        teacher_hidden: (batch, kept, width) the teacher's residual stream.
        deepstack: (batch, rows, width) what is added behind each of the first layers, in models that do so.
        keys: slots that are filled in the static cache of the layer being observed; None of a cache that grows.
        read: (batch, rows) what methods read of the embeddings, by the id of the method.
        observed: what methods observed, by the id of the method.
        stages: the decisions taken so far.
    """

    length: int
    whole: Stream
    text_counts: tuple[int, ...]
    image_samples: tuple[int, ...]
    past: int
    labels: Tensor | None
    at_risk: bool
    student: Stream | None = None
    teacher: Stream | None = None
    teacher_hidden: Tensor | None = None
    deepstack: list[Tensor] = field(default_factory=list)
    keys: int | None = None
    read: dict[int, Tensor] = field(default_factory=dict)
    observed: dict[int, Tensor] = field(default_factory=dict)
    stages: list[StageResult] = field(default_factory=list)

    @property
    def current(self) -> Stream:
        """The rows that reach the next layer."""
        return self.student or self.whole

    @classmethod
    def of(
        cls, numbers: Tensor, real: Tensor, labels: Tensor | None, asked: int = 1, past: int = 0
    ) -> Frame | None:
        """Describe a forward, None if it holds no visual token. Where an image prefill waits for the device.

        Args:
            numbers: (batch, rows) image number of each row, -1 for text.
            real: (batch, rows) bool, False for padding.
            labels: (batch, rows) or None.
            asked: the last rows whose logits the caller asked for; 0 for all.
            past: logical rows of earlier forwards on the same cache.

        Raises:
            FovealError: logits are asked for of a visual token, which may be dropped, or of padding.
        """
        visual = (numbers >= 0) & real
        text = real & ~visual
        # All that the host has to know, in one copy.
        facts = torch.stack([torch.where(visual, numbers, -1), text.long(), _predicts(labels, real)]).cpu()
        image, is_text, predicts = facts[0], facts[1].bool(), facts[2].bool()
        on_image = image >= 0
        if not on_image.any():
            return None
        _refuse_ends(on_image, is_text, asked)
        lengths = image[on_image].bincount()
        seen = lengths > 0  # an image may be masked out whole
        if not seen.all():
            # The last images of a batch may be masked out, too: they have no length at all.
            renumbered = on_device(seen.cumsum(0) - 1, numbers.device)
            numbers = renumbered[numbers.clamp(min=0, max=len(seen) - 1)]
        lengths = lengths[seen]
        first = lengths.cumsum(0) - lengths
        batch, rows = visual.shape
        whole = Stream(
            rows=torch.arange(rows, device=visual.device).expand(batch, -1),
            numbers=torch.where(visual, numbers, -1),
            text=text,
            prompt=_prompt(real, visual, labels, asked),
            lengths=tuple(lengths.tolist()),
            row_counts=(rows,) * batch,
        )
        return cls(
            length=rows,
            whole=whole,
            text_counts=tuple(is_text.sum(dim=1).tolist()),
            image_samples=tuple(on_image.nonzero()[:, 0][first].tolist()),
            past=past,
            labels=labels,
            at_risk=bool((predicts & ~is_text).any()),
        )

    @property
    def decided(self) -> set[int]:
        """The layers whose stage has been decided."""
        return {stage.layer for stage in self.stages}

    def streams(self, depth: int) -> list[Stream]:
        """The rows of the embeddings, then those behind each of the `depth` layers."""
        found = [self.whole] * (depth + 1)
        for stage in self.stages:
            # The library notes what enters layer 0 behind the engine's hook.
            start = stage.layer + 1 if stage.layer else 0
            found[start:] = [stage.stream] * (depth + 1 - start)
        return found

    def release(self) -> None:
        """Let go of what only this forward needed; what `stages` say stays."""
        self.deepstack = []
        self.read = {}
        for result in self.stages:
            result.stream.deepstack = None
            result.stream.memo.clear()
            result.stream.views.clear()

    def row_counts(self, lengths: tuple[int, ...]) -> tuple[int, ...]:
        """Rows of each sample when image i keeps lengths[i] tokens."""
        counts = list(self.text_counts)
        for sample, length in zip(self.image_samples, lengths, strict=True):
            counts[sample] += length
        return tuple(counts)


def _predicts(labels: Tensor | None, like: Tensor) -> Tensor:
    """(batch, rows) int64, 1 for the rows that predict a label."""
    predicts = torch.zeros_like(like, dtype=torch.int64)
    if labels is not None:
        predicts[:, :-1] = labels[:, 1:].to(like.device) != -100
    return predicts


def _refuse_ends(visual: Tensor, text: Tensor, asked: int) -> None:
    """Nothing would predict the next token; (batch, rows) bool on the host, `asked` for the logits of the last."""
    if not asked:
        return
    real = visual | text
    if visual[:, -asked:].any():
        raise FovealError(
            "the last row is a visual token, which may be dropped, so nothing would predict the next token: end the "
            "prompt with text, and in chunked prefill choose a prefill_chunk_size that cuts no image"
        )
    if (~real[:, -asked:] & real.any(dim=1, keepdim=True)).any():
        raise FovealError(
            "a sample ends with padding, where its next token is asked for: pad on the left "
            "(processor.tokenizer.padding_side = 'left')"
        )


def _prompt(real: Tensor, visual: Tensor, labels: Tensor | None, asked: int) -> Tensor:
    """Real rows before the first answer behind the last image: what an image is asked comes behind it.

    Drafts of assisted decoding are no prompt.
    """
    prompt = real
    if labels is not None:
        answered = (labels.to(real.device) != -100).cumsum(dim=1)
        before_images = answered.where(visual, 0).amax(dim=1, keepdim=True)
        prompt = real & (answered <= before_images)
    if asked > 1:
        prompt = prompt & (torch.arange(real.shape[1], device=real.device) <= real.shape[1] - asked)
    return prompt
