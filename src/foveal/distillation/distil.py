"""One training step's losses, in one forward where teacher and student can share it, otherwise in two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from foveal.compressors import Compressor
from foveal.distillation.lockstep import can_share, lockstep, tell
from foveal.distillation.objective import Objective, Told

__all__ = ["distil"]


def distil(
    model: nn.Module,
    inputs: dict[str, Any],
    labels: Tensor,
    student: Compressor,
    teacher: Compressor | None = None,
    *,
    teacher_model: nn.Module | None = None,
    objective: Objective | None = None,
    call: Callable[..., Any] | None = None,
    visual_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The losses of every answer token.

    Teacher and student share one forward (`lockstep`) when they are the same model and part at one decoder layer. A
    method that acts before the decoder, or at several layers, leaves next to nothing to share; a teacher of its own
    leaves nothing: then the teacher's forward comes first, without gradient. Either way logits exist for answers only.

    Args:
        model: the student's model, without DDP or FSDP wrapper.
        inputs: the model's inputs without labels.
        labels: (batch, rows), -100 where nothing is predicted.
        student: its compression.
        teacher: the teacher's; None for no teacher.
        teacher_model: a frozen model to learn from; None for the student's own weights.
        objective: the losses; by default cross-entropy and forward KL.
        call: the wrapped model (DDP, FSDP), which is called in place of `model`.
        visual_mask: (batch, rows) bool naming the visual tokens where input_ids cannot.

    Returns:
        (answers,) cross-entropy and (answers,) divergence, None without a teacher, in reading order of `labels[:, 1:]`.
    """
    told: Compressor | Told | None = teacher
    if teacher is not None and (teacher_model is not None or not can_share(student, teacher)):
        told = tell(model if teacher_model is None else teacher_model, teacher, labels, inputs, visual_mask)
    with lockstep(model, student, told, labels, objective, visual_mask):
        losses = (model if call is None else call)(**inputs, use_cache=False)
    return losses[0], None if told is None else losses[1]
