"""Teacher and student in one forward.

Below the compression layer both are the same computation, done once. From there on, the pre-hook of each layer first
advances the teacher's rows through the layer without gradient, then lets the student's go on. The result equals two
separate forwards. Only rows that predict an answer reach the language-model head, so that no (rows x vocabulary)
tensor is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from foveal.compression import attached
from foveal.compressors import Compressor, StagedCompressor, TowerCompressor
from foveal.engine.deepstack import deepen
from foveal.engine.families import Parts, find_parts
from foveal.engine.frame import Frame, Stream
from foveal.engine.hooks import Hooks, advance, current_frame, decide
from foveal.engine.precision import no_cached_casts
from foveal.engine.rows import restore
from foveal.errors import FovealError

__all__ = ["lockstep"]


@contextmanager
def lockstep(
    model: nn.Module, student: Compressor, teacher: Compressor | None, labels: Tensor
) -> Iterator[None]:
    """Make the model's forward return answer logits of the student, and of the teacher if there is one.

    Inside the block `model(**inputs, use_cache=False).logits` has shape (1 or 2, answers, vocabulary): [0] is the
    student's, [1] the teacher's, at the rows that predict the labels, in reading order of `labels[:, 1:]`. Do not
    pass labels to the model itself.

    Args:
        model: the model without DDP or FSDP wrapper (call the wrapped one).
        student: acts at its layer, with gradient.
        teacher: a second compressor at the same layer, without gradient; None for no teacher.
        labels: (batch, rows), -100 where nothing is predicted.

    Raises:
        FovealError: teacher and student act at different layers, a label's row was dropped, or a cache is used.
    """
    if teacher is not None:
        _check_pair(student, teacher)
    if attached(model):
        raise FovealError("this model is compressed already: call foveal.detach(model) before training it")
    if teacher is student:
        teacher = replace(teacher)  # each is known by its identity
    parts = find_parts(model)
    hooks = _LockstepHooks(parts, student, teacher, labels)
    hooks.install()
    try:
        yield
    finally:
        hooks.remove()


def _check_pair(student: Compressor, teacher: Compressor) -> None:
    """Both streams of rows must part at one decoder layer."""
    for method in (student, teacher):
        if isinstance(method, StagedCompressor | TowerCompressor):
            raise FovealError(
                f"{type(method).__name__} does not act at one decoder layer, where teacher and student could part: "
                "train with a method such as DART, or without a teacher"
            )
    if teacher.layer != student.layer:
        raise FovealError(
            f"teacher and student must act at one layer, not {teacher.layer} and {student.layer}"
        )


class _LockstepHooks(Hooks):
    """The engine's hooks with a second stream of rows."""

    def __init__(self, parts: Parts, student: Compressor, teacher: Compressor | None, labels: Tensor) -> None:
        self.teacher = teacher
        super().__init__(parts, (student,))
        self.labels = labels

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
        answers = (self.labels[:, 1:] != -100).nonzero(as_tuple=True)
        student = output.last_hidden_state[answers]
        if self.teacher is None:
            output.last_hidden_state = student[None]
        else:
            output.last_hidden_state = torch.stack([student, self._teacher_rows(student, answers)])
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
