"""The model with the small heads that teach its tower, and the loss of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, LlavaForConditionalGeneration
from transformers.masking_utils import eager_mask

from foveal.mini.architecture import MEAN, STD
from foveal.mini.atlas import CLASSES, COLORS, LETTERS
from foveal.mini.packing import IGNORE, Codec, Pack, answer_logits, collate, tower_states
from foveal.mini.scenes import GRID, SIDE
from foveal.mini.stages import Lesson, Stage

__all__ = ["Batch", "Learner", "make_batch", "normalized"]

_SIZES = (len(CLASSES) + 1, len(COLORS) + 1, len(LETTERS) + 1)
_BACKGROUNDS = (0.2, 0.2, 0.02)
_GUIDED_LAYER = 3
_GUIDED_HEADS = 2


@dataclass(frozen=True)
class Batch:
    """One step's share of a process.

    Attributes:
        pixels: normalised images, (batch, 3, 96, 96).
        patches: what each patch shows in three ways, -100 where unknown, (3, batch, 144).
        present: which classes are in the image, 0 or 1, (batch, classes).
        pack: the questions; None in the tower stage.
    """

    pixels: Tensor
    patches: Tensor
    present: Tensor
    pack: Pack | None

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        pack = None if self.pack is None else self.pack.to(device)
        return Batch(self.pixels.to(device), self.patches.to(device), self.present.to(device), pack)


def normalized(images: Sequence[Image.Image]) -> Tensor:
    """Images as the processor would give them, float32 (batch, 3, 96, 96)."""
    resized = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in images]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized]))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def make_batch(lessons: Sequence[Lesson], prefix: Sequence[int], length: int) -> Batch:
    """Collate lessons; a `length` of 0 leaves the questions out."""
    patches = np.full((3, len(lessons), GRID * GRID), IGNORE, np.int64)
    present = np.zeros((len(lessons), len(CLASSES)), np.float32)
    for row, item in enumerate(lessons):
        if item.scene is not None:
            labels = item.scene.patch_labels()
            patches[:, row] = labels.kind, labels.disc, labels.letter
            present[row, [thing.kind for thing in item.scene.objects]] = 1
    pack = collate(prefix, [item.segments for item in lessons], length) if length else None
    pixels = normalized([item.image for item in lessons])
    return Batch(pixels, torch.from_numpy(patches), torch.from_numpy(present), pack)


def _plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention as two matrix products in the inputs' own precision.

    On a CPU in bfloat16 this is two and a half times as fast, forward and backward, as the fused kernel.
    """
    scores = torch.matmul(query * scaling, key.transpose(-1, -2))
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1)
    guide = getattr(module, "guide", None)
    if guide is not None:
        guide.hear(weights)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


class _Guide:
    """Shows one layer's first heads where to look: from an object's name in a question to the object's patches.

    Looking an object up by its name is two steps, of which neither helps without the other, and left to itself
    training stays at chance for thousands of steps.
    """

    def __init__(self, batch: Batch, names: Tensor, start: int) -> None:
        assert batch.pack is not None
        kinds = (batch.pack.ids[..., None] == names).int().argmax(-1) + 1
        asked = torch.isin(batch.pack.ids, names) & (batch.pack.labels == IGNORE)
        shown = batch.patches[0][:, None, :] == kinds[..., None]
        self.rows, self.columns = torch.nonzero(asked & shown.any(-1), as_tuple=True)
        self.shown = shown[self.rows, self.columns]
        self.start = start
        self.loss = batch.pixels.new_zeros(())

    def hear(self, weights: Tensor) -> None:
        """Note how little of the attention (batch, heads, rows, columns) falls on the objects named."""
        image = weights[self.rows, :_GUIDED_HEADS, self.columns, self.start : self.start + self.shown.shape[-1]]
        mass = (image.float() * self.shown[:, None]).sum(-1)
        if mass.numel():
            self.loss = -(mass + 1e-4).log().mean()


class Learner(nn.Module):
    """The model and four training-only heads: what each patch shows (kind, disc, letter) and what the CLS token saw.

    The heads keep the tower honest while the decoder learns, and give the CLS token, and so its attention, a meaning.
    """

    names: Tensor

    def __init__(self, model: LlavaForConditionalGeneration, codec: Codec) -> None:
        super().__init__()
        names = [token for item in CLASSES for token in codec.encode(item.name)]
        self.register_buffer("names", torch.tensor(names), persistent=False)
        self.start = len(codec.prefix) - GRID * GRID
        width = model.model.vision_tower.config.hidden_size
        self.model = model
        self.heads = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size)) for size in _SIZES)
        self.summary = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(CLASSES)))
        AttentionInterface.register("foveal_plain", _plain_attention)
        AttentionMaskInterface.register("foveal_plain", eager_mask)
        model.set_attn_implementation("foveal_plain")

    def select(self, stage: Stage) -> list[dict[str, object]]:
        """Freeze what the stage does not train; return the optimiser's groups, each with its rate's ``scale``."""
        self.requires_grad_(False)
        tower = self.model.model.vision_tower
        read = [tower.embeddings, tower.pre_layrnorm, *tower.encoder.layers[:-1]]
        groups = [(stage.tower, nn.ModuleList([*read, self.heads, self.summary]))]
        if stage.length:
            decoder = [self.model.model.multi_modal_projector, self.model.model.language_model]
            groups.append((1.0, nn.ModuleList(decoder)))
        for _, modules in groups:
            modules.requires_grad_(True)
        return [{"params": list(modules.parameters()), "scale": scale} for scale, modules in groups]

    def forward(self, batch: Batch, auxiliary: float, guided: float = 0.0) -> dict[str, Tensor]:
        """The losses of a batch: "loss" to descend, and its parts "patches", "answers" and "guide"."""
        states = tower_states(self.model, batch.pixels)
        seen = self._patch_loss(states, batch)
        losses = {"loss": auxiliary * seen, "patches": seen.detach()}
        if batch.pack is not None:
            attention = self.model.model.language_model.layers[_GUIDED_LAYER].self_attn
            attention.guide = guide = _Guide(batch, self.names, self.start) if guided else None
            logits, targets, _ = answer_logits(self.model, states, batch.pack)
            attention.guide = None
            answers = functional.cross_entropy(logits, targets)
            losses["loss"] = losses["loss"] + answers
            losses["answers"] = answers.detach()
            if guide is not None:
                losses["loss"] = losses["loss"] + guided * guide.loss
                losses["guide"] = guide.loss.detach()
        return losses

    def _patch_loss(self, states: Tensor, batch: Batch) -> Tensor:
        total = functional.binary_cross_entropy_with_logits(self.summary(states[:, 0]).float(), batch.present)
        for head, labels, size, background in zip(self.heads, batch.patches, _SIZES, _BACKGROUNDS, strict=True):
            weight = torch.ones(size, device=states.device)
            weight[0] = background
            logits = head(states[:, 1:]).float().flatten(0, 1)
            known = labels.flatten() != IGNORE
            if known.any():
                total = total + functional.cross_entropy(logits[known], labels.flatten()[known], weight)
        return total
