"""The losses by Liger's kernels (arXiv 2410.10989): head and loss in one, so that not even a chunk of logits stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveal.distillation.head import Head
from foveal.distillation.losses import Divergence, forward_kl, jensen_shannon, reverse_kl
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.distillation.objective import Told

__all__ = ["fused_losses"]

# Which member of Liger's family of divergences is which.
_BETA: dict[Divergence, float] = {forward_kl: 0.0, jensen_shannon: 0.5, reverse_kl: 1.0}


def fused_losses(
    head: Head, hidden: Tensor, targets: Tensor, told: Told | None, divergence: Divergence, temperature: float
) -> Tensor:
    """What `Objective` returns, with the mean over all answers in place of each answer's own loss.

    Raises:
        FovealError: Liger is not installed, or a head or divergence that its kernels do not know.
    """
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
        from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD
    except ImportError as error:
        raise FovealError(
            "fused losses need Liger: pip install liger-kernel, or leave fused_losses off"
        ) from error
    if divergence not in _BETA:
        raise FovealError("fused losses know the forward and the reverse KL and JSD: leave fused_losses off")
    losses = [LigerFusedLinearCrossEntropyLoss()(head.matrix, hidden, targets)]
    if told is not None:
        kernel = LigerFusedLinearJSD(_BETA[divergence], temperature=temperature)
        divided = kernel(hidden, head.matrix, told.hidden, told.head.matrix.detach(), None)
        losses.append(divided * temperature**2)
    return torch.stack(losses)[:, None].expand(-1, len(hidden))
