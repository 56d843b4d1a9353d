"""The losses of answers, from hidden states: logits exist for a bounded number of rows at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from foveal.distillation.fused import fused_losses
from foveal.distillation.head import Head
from foveal.distillation.losses import Divergence, cross_entropy, forward_kl
from foveal.errors import FovealError

__all__ = ["Objective", "Told"]


@dataclass(frozen=True)
class Told:
    """What a teacher says about the answers.

    Attributes:
        hidden: (answers, width) its final hidden states at the rows that predict an answer, without gradient.
        head: turns them into logits.
    """

    hidden: Tensor
    head: Head


@dataclass(frozen=True)
class Objective:
    """What is computed of every answer token.

    Attributes:
        divergence: of the student from the teacher.
        temperature: of both logits in it.
        rows: answers whose logits exist at once. With more, logits are computed anew in the backward pass.
        fused: whether Liger's kernels do it, on a GPU (`rows` is theirs to choose then).
    """

    divergence: Divergence = forward_kl
    temperature: float = 1.0
    rows: int = 1024
    fused: bool = False

    def __call__(self, head: Head, hidden: Tensor, targets: Tensor, told: Told | None) -> Tensor:
        """The losses, (1 or 2, answers): the cross-entropy, and the divergence if there is a teacher.

        Args:
            head: turns the student's hidden states into logits.
            hidden: (answers, width) the student's final hidden states.
            targets: (answers,) the tokens to predict.
            told: what the teacher says.

        Raises:
            FovealError: the teacher has another vocabulary, or fused losses are not to be had.
        """
        if self.fused and len(hidden):
            return fused_losses(head, hidden, targets, told, self.divergence, self.temperature)

        def losses(rows: Tensor, wanted: Tensor, taught: Tensor) -> Tensor:
            logits = head(rows)
            supervised = cross_entropy(logits, wanted)
            if told is None:
                return torch.stack([supervised])  # no view: FSDP2 warns of those
            with torch.no_grad():
                teacher = told.head(taught)
            _check_vocabularies(logits, teacher)
            return torch.stack([supervised, self.divergence(logits, teacher, self.temperature)])

        taught = hidden.detach() if told is None else told.hidden  # without a teacher nobody reads it
        if len(hidden) <= self.rows:
            return losses(hidden, targets, taught)
        pieces = zip(*(values.split(self.rows) for values in (hidden, targets, taught)), strict=True)
        return torch.cat([checkpoint(losses, *piece, use_reentrant=False) for piece in pieces], dim=1)


def _check_vocabularies(student: Tensor, teacher: Tensor) -> None:
    if student.shape[-1] != teacher.shape[-1]:
        raise FovealError(
            f"the teacher predicts {teacher.shape[-1]} tokens, the student {student.shape[-1]}: choose a teacher with "
            "the student's vocabulary"
        )
