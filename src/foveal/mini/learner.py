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
from foveal.mini.packing import IGNORE, PADDING, Codec, Pack, answer_logits, collate, tower_states
from foveal.mini.questions import CELLS_CN
from foveal.mini.scenes import CELLS, GRID, SIDE, cell_of_patch
from foveal.mini.stages import Lesson, Stage

__all__ = ["Batch", "Learner", "make_batch", "normalized"]

_SIZES = (len(CLASSES) + 1, len(COLORS) + 1, len(LETTERS) + 1)
_BACKGROUNDS = (0.2, 0.2, 0.02)
_PHRASES = (
    ([item.name for item in CLASSES], [item.chinese for item in CLASSES]),
    (list(COLORS), [chinese for _, chinese in COLORS.values()]),
    (CELLS, CELLS_CN),
)
_LOOKING_LAYER = 3
_ANSWERING_LAYER = 5


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
    for guide in getattr(module, "guides", ()):
        guide.hear(weights)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


class _Guide:
    """Shows two heads of a layer where to look.

    Args:
        heads: the heads, (first, last + 1).
        rows: which row of the batch each hint is for, (hints,).
        columns: which token, (hints,).
        targets: what its attention should fall on, bool (hints, length).
    """

    def __init__(self, heads: tuple[int, int], rows: Tensor, columns: Tensor, targets: Tensor) -> None:
        self.heads, self.rows, self.columns, self.targets = slice(*heads), rows, columns, targets
        self.loss = torch.zeros((), device=rows.device)

    def hear(self, weights: Tensor) -> None:
        """Note how little of the attention (batch, heads, rows, columns) falls on the targets."""
        mass = (weights[self.rows, self.heads, self.columns].float() * self.targets[:, None]).sum(-1)
        if mass.numel():
            self.loss = -(mass + 1e-4).log().mean()


def _named(ids: Tensor, phrases: Sequence[Sequence[tuple[int, ...]]]) -> Tensor:
    """Where a phrase ends, in whichever language: the thing's number, from 1; 0 elsewhere; like `ids`."""
    found = torch.zeros_like(ids)
    for language in phrases:
        for number, phrase in enumerate(language, 1):
            ends = torch.ones_like(ids, dtype=torch.bool)
            for back, token in enumerate(reversed(phrase)):
                ends &= functional.pad(ids, (back, 0), value=PADDING)[:, : ids.shape[1]] == token
            found[ends] = number
    return found


def _to_picture(pack: Pack, named: Tensor, patches: Tensor) -> _Guide:
    """From the end of a phrase in a question to the patches (batch, 144) that show what it names."""
    shown = patches[:, None, :] == named[..., None]
    asked = (named > 0) & (pack.labels == IGNORE) & shown.any(-1)
    rows, columns = torch.nonzero(asked, as_tuple=True)
    return _Guide((0, 2), rows, columns, _on_image(pack, shown[rows, columns]))


def _to_letter(pack: Pack) -> _Guide:
    """From the token before each letter of an answer to the patches that show the letter."""
    rows, columns, patch = pack.looks.unbind(-1)
    shown = patch[:, None] == torch.arange(GRID * GRID, device=patch.device)
    below = patch[:, None] + GRID == torch.arange(GRID * GRID, device=patch.device)
    return _Guide((2, 4), rows, columns, _on_image(pack, shown | below))


def _to_name(pack: Pack, named: Tensor, end: int) -> _Guide:
    """From every token that an answer's word must follow to the names in the question, where there are one or two."""
    told = functional.pad(pack.labels[:, 1:], (0, 1), value=IGNORE)
    rows, columns = torch.nonzero((told != IGNORE) & (told != end), as_tuple=True)
    same = pack.segments[rows] == pack.segments[rows, columns][:, None]
    before = torch.arange(pack.ids.shape[1], device=rows.device) < columns[:, None]
    targets = same & before & ((named > 0) & (pack.labels == IGNORE))[rows]
    few = (targets.sum(-1) > 0) & (targets.sum(-1) <= 2)
    return _Guide((0, 2), rows[few], columns[few], targets[few])


def _to_option(pack: Pack, letters: Tensor) -> _Guide:
    """From the token that must answer with a letter to the option that has it."""
    told = functional.pad(pack.labels[:, 1:], (0, 1), value=IGNORE)
    rows, columns = torch.nonzero(torch.isin(told, letters), as_tuple=True)
    ids, place = pack.ids[rows], torch.arange(pack.ids.shape[1], device=rows.device)
    within = (pack.segments[rows] == pack.segments[rows, columns][:, None]) & (place < columns[:, None])
    option = (torch.isin(ids, letters) & within).cumsum(-1)
    first = (within & (ids == told[rows, columns][:, None])).int().mul(place).argmax(-1)
    return _Guide((2, 4), rows, columns, within & (option == option.gather(-1, first[:, None])))


def _on_image(pack: Pack, patches: Tensor) -> Tensor:
    """Patches (hints, 144) as columns of the sequence (hints, length)."""
    start = int((pack.segments[0] == 0).sum()) - GRID * GRID
    return functional.pad(patches, (start, pack.ids.shape[1] - start - GRID * GRID))


class Learner(nn.Module):
    """The model and four training-only heads: what each patch shows (kind, disc, letter) and what the CLS token saw.

    The heads keep the tower honest while the decoder learns, and give the CLS token, and so its attention, a meaning.
    """

    letters: Tensor

    def __init__(self, model: LlavaForConditionalGeneration, codec: Codec) -> None:
        super().__init__()
        self.phrases = [
            [[tuple(codec.encode(text)) for text in texts] for texts in pair] for pair in _PHRASES
        ]
        letters = [token for letter in "ABCD" for token in codec.encode(letter)]
        self.register_buffer("letters", torch.tensor(letters), persistent=False)
        (self.end,) = codec.encode("</s>")
        width = model.model.vision_tower.config.hidden_size
        self.model = model
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size)) for size in _SIZES
        )
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
            guides = self._set_guides(batch, batch.pack) if guided else []
            logits, targets, _ = answer_logits(self.model, states, batch.pack)
            answers = functional.cross_entropy(logits, targets)
            losses["loss"] = losses["loss"] + answers
            losses["answers"] = answers.detach()
            if guided:
                hints = torch.stack([guide.loss for guide in guides]).sum()
                losses["loss"] = losses["loss"] + guided * hints
                losses["guide"] = hints.detach()
                self._clear_guides()
        return losses

    def _set_guides(self, batch: Batch, pack: Pack) -> list[_Guide]:
        """Looking things up is two steps, neither of which helps without the other: find the name in the question,
        and find what it names in the picture. Left to itself training stays at chance for thousands of steps.
        """
        layers = self.model.model.language_model.layers
        places = torch.from_numpy(cell_of_patch()).to(pack.ids.device).expand(len(pack.ids), -1) + 1
        objects, colors, cells = (_named(pack.ids, phrases) for phrases in self.phrases)
        looking = [
            _to_picture(pack, objects, batch.patches[0]),
            _to_picture(pack, colors, batch.patches[1]),
            _to_picture(pack, cells, places),
            _to_letter(pack),
        ]
        answering = [_to_name(pack, objects, self.end), _to_option(pack, self.letters)]
        layers[_LOOKING_LAYER].self_attn.guides = looking
        layers[_ANSWERING_LAYER].self_attn.guides = answering
        return [*looking, *answering]

    def _clear_guides(self) -> None:
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
            if known.any():
                total = total + functional.cross_entropy(logits[known], labels.flatten()[known], weight)
        return total
