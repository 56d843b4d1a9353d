"""The model with the small heads that teach its tower, and the loss of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from foveal.mini.architecture import MEAN, STD
from foveal.mini.atlas import CLASSES, COLORS, LETTERS
from foveal.mini.attention import use_plain_attention
from foveal.mini.easy_vqa import SHAPES
from foveal.mini.hints import ANSWERING_LAYER, LOOKING_LAYER, Guide, Hints
from foveal.mini.packing import IGNORE, Codec, Pack, answer_logits, collate, tower_states
from foveal.mini.scenes import GRID, PATCH, SIDE
from foveal.mini.stages import Lesson, Stage

__all__ = ["Batch", "Learner", "make_batch", "normalized"]

_SIZES = (len(CLASSES) + 1, len(COLORS) + 1, len(LETTERS) + 1, len(SHAPES) + 1)
_BACKGROUNDS = (0.2, 0.2, 0.02, 0.2)


@dataclass(frozen=True)
class Batch:
    """One step's share of a process.

    Attributes:
        pixels: normalised images, (batch, 3, 96, 96).
        patches: what each patch shows in four ways (kind, disc, letter, shape), -100 where unknown, (4, batch, 144).
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
    patches = np.full((4, len(lessons), GRID * GRID), IGNORE, np.int64)
    present = np.zeros((len(lessons), len(CLASSES)), np.float32)
    for row, item in enumerate(lessons):
        if item.scene is not None:
            labels = item.scene.patch_labels()
            patches[:3, row] = labels.kind, labels.disc, labels.letter
            present[row, [thing.kind for thing in item.scene.objects]] = 1
        elif item.shape is not None:
            patches[3, row] = _shape_labels(item.image, item.shape)
    pack = collate(prefix, [item.segments for item in lessons], length) if length else None
    pixels = normalized([item.image for item in lessons])
    return Batch(pixels, torch.from_numpy(patches), torch.from_numpy(present), pack)


def _shape_labels(image: Image.Image, shape: str) -> NDArray[np.int64]:
    """The patches that easy-VQA's one shape covers a fifth of, named by the shape; the corner shows the background."""
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.int16)
    inside = np.abs(pixels - pixels[0, 0]).sum(-1) > 60
    covered = inside.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3)) > 0.2
    return np.where(covered, SHAPES.index(shape) + 1, 0).reshape(-1)


class Learner(nn.Module):
    """The model and training-only heads: what each patch shows (kind, disc, letter, shape) and what the CLS token saw.

    The heads keep the tower honest while the decoder learns, and give the CLS token, and so its attention, a meaning.
    """

    def __init__(self, model: LlavaForConditionalGeneration, codec: Codec) -> None:
        super().__init__()
        self.hints = Hints(codec)
        width = model.model.vision_tower.config.hidden_size
        self.model = model
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size)) for size in _SIZES
        )
        self.summary = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(CLASSES)))
        use_plain_attention(model)

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
            guides = self._hint(batch, batch.pack) if guided else []
            logits, targets, _ = answer_logits(self.model, states, batch.pack)
            answers = functional.cross_entropy(logits, targets)
            losses["loss"] = losses["loss"] + answers
            losses["answers"] = answers.detach()
            if guided:
                missed = torch.stack([guide.loss for guide in guides]).sum()
                losses["loss"] = losses["loss"] + guided * missed
                losses["guide"] = missed.detach()
                self._unhint()
        return losses

    def _hint(self, batch: Batch, pack: Pack) -> list[Guide]:
        looking, answering = self.hints.guides(pack, batch.patches)
        layers = self.model.model.language_model.layers
        layers[LOOKING_LAYER].self_attn.guides = looking
        layers[ANSWERING_LAYER].self_attn.guides = answering
        return [*looking, *answering]

    def _unhint(self) -> None:
        for layer in self.model.model.language_model.layers:
            layer.self_attn.guides = ()

    def _patch_loss(self, states: Tensor, batch: Batch) -> Tensor:
        total = functional.binary_cross_entropy_with_logits(self.summary(states[:, 0]).float(), batch.present)
        for head, labels, size, background in zip(
            self.heads, batch.patches, _SIZES, _BACKGROUNDS, strict=True
        ):
            weight = torch.ones(size, device=states.device)
            weight[0] = background
            logits = head(states[:, 1:]).float().flatten(0, 1)
            known = labels.flatten() != IGNORE
            # A head with nothing to learn here takes part all the same: data-parallel training waits for its gradient.
            total = total + logits.sum() * 0
            if known.any():
                total = total + functional.cross_entropy(logits[known], labels.flatten()[known], weight)
        return total
