"""Teacher and student in one forward.

Below the compression layer both are the same computation, done once. From there on, the pre-hook of each layer first
advances the teacher's rows through the layer without gradient, then lets the student's go on. The result equals two
separate forwards. Only rows that predict an answer reach the language-model head, where their losses take the place
of logits: no (rows x vocabulary) tensor is ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foveal.compression import attached, install, remove
from foveal.compressors import Compressor, StagedCompressor, TowerCompressor
from foveal.distillation.head import Head
from foveal.distillation.objective import Objective, Told
from foveal.engine.attributes import replaced
from foveal.engine.deepstack import deepen
from foveal.engine.families import Parts, find_parts
from foveal.engine.frame import Frame, Stream
from foveal.engine.hooks import Hooks, advance, current_frame, decide
from foveal.engine.precision import no_cached_casts
from foveal.engine.refusals import refuse_lost_labels
from foveal.engine.rows import restore
from foveal.errors import FovealError
from foveal.text_tower import TextTower

__all__ = ["can_share", "lockstep", "tell"]

Finish = Callable[[Head, Tensor], Tensor]
"""(head, (streams, answers, width) final hidden states) -> what the model returns."""


@contextmanager
def lockstep(
    model: nn.Module,
    student: Compressor,
    teacher: Compressor | Told | None,
    labels: Tensor,
    objective: Objective | None = None,
    visual_mask: Tensor | None = None,
) -> Iterator[None]:
    """Make the model's forward return the losses of every answer token in place of logits.

    Inside the block `model(**inputs, use_cache=False)` returns (1 or 2, answers): the cross-entropy of each answer
    token, and the divergence from the teacher if there is one, in reading order of `labels[:, 1:]`. Do not pass labels
    to the model itself.

    Args:
        model: the model without DDP or FSDP wrapper (call the wrapped one).
        student: with gradient.
        teacher: a second compressor at the same layer of the same model, without gradient, in the same forward; or what
            another forward said (`tell`); None for no teacher.
        labels: (batch, rows), -100 where nothing is predicted.
        objective: the losses; by default cross-entropy and forward KL.
        visual_mask: (batch, rows) bool naming the visual tokens where input_ids cannot.

    Raises:
        FovealError: teacher and student cannot share a forward (`can_share`), a label's row was dropped, or a cache is
            used.
    """
    inside = teacher if isinstance(teacher, Compressor) else None
    if inside is not None and not can_share(student, inside):
        raise FovealError(
            f"{type(student).__name__} at layer {student.layer} and {type(inside).__name__} at layer {inside.layer} do "
            "not part at one decoder layer, so they cannot share a forward: use foveal.distillation.distil"
        )
    told = teacher if isinstance(teacher, Told) else None
    targets = labels[:, 1:][labels[:, 1:] != -100]
    measure = objective or Objective()

    def finish(head: Head, hidden: Tensor) -> Tensor:
        taught = Told(hidden[1].detach(), head) if inside is not None else told
        return measure(head, hidden[0], targets.to(hidden.device), taught).to(labels.device)

    with _installed(model, student, inside, labels, finish, visual_mask):
        yield


def tell(
    model: nn.Module,
    teacher: Compressor,
    labels: Tensor,
    inputs: dict[str, Any],
    visual_mask: Tensor | None = None,
) -> Told:
    """What a model says about the answers, in a forward of its own without gradient.

    Args:
        model: the teacher's model, without DDP or FSDP wrapper.
        teacher: its compression.
        labels: (batch, rows), -100 where nothing is predicted.
        inputs: the model's inputs without labels.
        visual_mask: (batch, rows) bool naming the visual tokens where input_ids cannot.
    """
    heads: list[Head] = []

    def finish(head: Head, hidden: Tensor) -> Tensor:
        heads.append(head)
        return hidden[0]

    with torch.no_grad(), no_cached_casts(), _installed(model, teacher, None, labels, finish, visual_mask):
        hidden = model(**inputs, use_cache=False)
    return Told(hidden, heads[0])


@contextmanager
def _installed(
    model: nn.Module,
    student: Compressor,
    teacher: Compressor | None,
    labels: Tensor,
    finish: Finish,
    visual_mask: Tensor | None,
) -> Iterator[None]:
    if attached(model):
        raise FovealError("this model is compressed already: call foveal.detach(model) before training it")
    if teacher is student:
        teacher = replace(teacher)  # each is known by its identity
    hooks = _AnswerHooks(find_parts(model), student, teacher, labels, finish, visual_mask)
    install(hooks)
    try:
        yield
    finally:
        remove(hooks)


def can_share(student: Compressor, teacher: Compressor) -> bool:
    """Whether both part at one decoder layer, so that one forward is enough."""
    alone = any(isinstance(method, StagedCompressor | TowerCompressor) for method in (student, teacher))
    return not alone and student.layer == teacher.layer


# Loaded once a model, not once a step.
_text_towers: WeakKeyDictionary[nn.Module, TextTower] = WeakKeyDictionary()


def _text_tower(parts: Parts, method: Compressor) -> TextTower | None:
    """CLIP's text tower, for a method that compares questions with images."""
    if not isinstance(method, TowerCompressor) or not method.needs_text:
        return None
    if parts.top not in _text_towers:
        _text_towers[parts.top] = TextTower.beside(parts.top)
    return _text_towers[parts.top].to(next(parts.tower.parameters()).device)


class _AnswerHooks(Hooks):
    """The engine's hooks with a second stream of rows, and something else in place of logits."""

    def __init__(
        self,
        parts: Parts,
        student: Compressor,
        teacher: Compressor | None,
        labels: Tensor,
        finish: Finish,
        visual_mask: Tensor | None,
    ) -> None:
        self.teacher = teacher
        super().__init__(parts, (student,), visual_mask, text_tower=_text_tower(parts, student))
        self.labels = labels
        self._finish = finish
        self._head = Head.of(parts)
        self._finished: Tensor | None = None

    def _replace(self, undo: ExitStack) -> None:
        super()._replace(undo)
        head, top = self._head, self.parts.top
        undo.enter_context(replaced(head.module, "forward", lambda hidden: self._finish(head, hidden)))
        undo.enter_context(replaced(top, "forward", self._answering(top.forward)))

    def _register(self) -> list[RemovableHandle]:
        # A hook, since wrappers such as DeepSpeed's add to what the head's forward returns.
        return [*super()._register(), self._head.module.register_forward_hook(self._note)]

    def _note(self, _head: nn.Module, _args: Any, output: Tensor) -> None:
        self._finished = output

    def _answering(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def answering(*args: Any, **kwargs: Any) -> Tensor:
            forward(*args, **kwargs)
            finished, self._finished = self._finished, None
            assert finished is not None
            return finished

        return answering

    def _labels_of(self, kwargs: dict[str, Any]) -> Tensor | None:
        return self.labels

    def _begin(self, compressor: Compressor, frame: Frame, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        if kwargs.get("past_key_values") is not None:
            raise FovealError("training makes no use of a cache: pass use_cache=False")
        return super()._begin(compressor, frame, hidden, kwargs)

    def _stages(self) -> Sequence[Compressor]:
        return super()._stages() if self.teacher is None else (*super()._stages(), self.teacher)

    def _choose(self, compressor: Compressor, frame: Frame, hidden: Tensor, past: int) -> Tensor:
        if self.teacher is not None:
            context = self._context(self.teacher, frame, hidden)
            result, index = decide(self.teacher, frame, context, past)
            frame.teacher = result.stream
            if result.stream is not frame.whole:
                refuse_lost_labels(frame, result.stream)
            frame.teacher_hidden = advance(frame, frame.current, context.hidden, result, index)
        return super()._choose(compressor, frame, hidden, past)

    def _before_layer(self, index: int, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        student = super()._before_layer(index, layer, args, kwargs)
        frame = current_frame()
        if frame is not None and frame.teacher is not None and _apart(frame):
            self._advance_teacher(frame, frame.teacher, index, layer, args[1:], kwargs)
        return student

    def _advance_teacher(
        self, frame: Frame, stream: Stream, index: int, layer: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> None:
        """One layer for the teacher's rows. `forward`, not the module's call: no hooks, so no recursion."""
        if stream is not frame.whole:
            kwargs = self._physical(stream, frame, index, kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        assert frame.teacher_hidden is not None
        with torch.no_grad(), no_cached_casts():
            hidden = layer.forward(frame.teacher_hidden, *args, **kwargs)
            frame.teacher_hidden = deepen(frame, stream, index, hidden)

    def _after_decoder(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        output = super()._after_decoder(module, args, kwargs, output)
        labels = self.labels.to(output.last_hidden_state.device)
        answers = (labels[:, 1:] != -100).nonzero(as_tuple=True)
        streams = [output.last_hidden_state[answers]]
        if self.teacher is not None:
            streams.append(self._teacher_rows(streams[0], answers))
        output.last_hidden_state = torch.stack(streams)
        return output

    def _teacher_rows(self, student: Tensor, answers: tuple[Tensor, ...]) -> Tensor:
        """(answers, width) the teacher's final hidden states; the student's own where nothing was dropped."""
        frame = current_frame()
        if frame is None or frame.teacher is None or not _apart(frame):
            return student.detach()
        assert frame.teacher_hidden is not None
        norm = cast(nn.Module, self.parts.decoder.norm)
        with torch.no_grad():
            hidden = restore(norm(frame.teacher_hidden), frame.teacher.rows, frame.length)
        frame.teacher.memo.clear()
        frame.teacher_hidden = None
        return hidden[answers]


def _apart(frame: Frame) -> bool:
    """Whether teacher and student see different rows; where neither dropped any, they are one computation."""
    return frame.student is not None or frame.teacher is not frame.whole
