"""The CLIP pair: a text tower trained against the finished vision tower.

All of the vision tower that the decoder reads is frozen; its last layer, its final norm, the projections and the
text tower learn two things. An image's CLS embedding lies nearest its own caption; and the patches of an object,
taken where LLaVA takes them (the last layer but one) and put through the final norm and the projection, lie nearest
the texts that name it, which is how a text-guided method such as TRIM compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPModel, PreTrainedTokenizerFast

from foveal.mini.draw import Draw
from foveal.mini.learner import normalized
from foveal.mini.questions import caption
from foveal.mini.scenes import Scene, SceneObject, make_scene
from foveal.mini.stages import Stage

__all__ = ["Contrast", "ContrastBatch", "contrast_batch", "patch_similarity"]

_NAMING = (
    "{}",
    "{}?",
    "where is the {}?",
    "is there a {} in the image?",
    "what color is the disc behind the {}?",
    "how many {} pictures are there?",
    "a picture of a {}",
)
_SHARPNESS = 20.0


@dataclass(frozen=True)
class ContrastBatch:
    """Images and what is said about them.

    Attributes:
        pixels: normalised images, (batch, 3, 96, 96).
        captions: token ids, (batch, tokens), and their attention mask.
        naming: token ids of a text naming one object of each image, (batch, tokens), and their attention mask.
        where: the patches that show that object, float 0 or 1, (batch, 144).
    """

    pixels: Tensor
    captions: tuple[Tensor, Tensor]
    naming: tuple[Tensor, Tensor]
    where: Tensor

    def to(self, device: torch.device) -> ContrastBatch:
        """The same on a device."""
        captions, naming = ((ids.to(device), mask.to(device)) for ids, mask in (self.captions, self.naming))
        return ContrastBatch(self.pixels.to(device), captions, naming, self.where.to(device))


def contrast_batch(
    tokenizer: PreTrainedTokenizerFast, stage: Stage, seed: int, indices: Sequence[int]
) -> ContrastBatch:
    """Samples `indices` of the stage, fixed by (seed, stage, index)."""
    scenes, captions, naming, where = [], [], [], []
    for index in indices:
        draw = Draw(f"lesson/{seed}/{stage.name}/{index}")
        scene = make_scene("train", seed * 2**34 + 15 * 2**30 + index)
        item = draw.one(scene.objects)
        scenes.append(scene)
        captions.append(_caption(scene, draw))
        naming.append(draw.one(_NAMING).format(item.name))
        where.append(_where(scene, item))
    pixels = normalized([scene.render() for scene in scenes])
    return ContrastBatch(pixels, _tokens(tokenizer, captions), _tokens(tokenizer, naming), torch.stack(where))


def _caption(scene: Scene, draw: Draw) -> str:
    if draw.chance(0.5):
        return caption(scene, "sentence")[1]
    names = [item.name for item in scene.objects]
    return "a picture of " + ", ".join(draw.several(names, len(names)))


def _where(scene: Scene, item: SceneObject) -> Tensor:
    return torch.from_numpy(scene.patch_labels().kind == item.kind + 1).float()


def _tokens(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> tuple[Tensor, Tensor]:
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]


def patch_similarity(clip: CLIPModel, states: Tensor, text: Tensor) -> Tensor:
    """Cosine of every patch with its image's text, as TRIM takes it.

    Args:
        clip: the pair of towers.
        states: the vision tower's last hidden states but one, CLS left out, (batch, 144, 128).
        text: normalised text embeddings, (batch, 128).

    Returns:
        (batch, 144).
    """
    patches = clip.visual_projection(clip.vision_model.post_layernorm(states)).float()
    return torch.einsum("bpd,bd->bp", functional.normalize(patches, dim=-1), text)


class Contrast(nn.Module):
    """The pair of towers and the loss that teaches it."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip

    def select(self, stage: Stage) -> list[dict[str, object]]:
        """Freeze what the decoder reads; return the optimiser's one group."""
        self.requires_grad_(True)
        vision = self.clip.vision_model
        nn.ModuleList([vision.embeddings, vision.pre_layrnorm, *vision.encoder.layers[:-1]]).requires_grad_(
            False
        )
        return [{"params": [part for part in self.parameters() if part.requires_grad], "scale": 1.0}]

    def forward(self, batch: ContrastBatch, auxiliary: float, guided: float = 0.0) -> dict[str, Tensor]:
        """The losses of a batch: "loss" to descend, and its parts "captions" and "patches"."""
        output = self.clip.vision_model(batch.pixels, output_hidden_states=True)
        image = functional.normalize(self.clip.visual_projection(output.pooler_output), dim=-1).float()
        logits = self.clip.logit_scale.exp().clamp(max=100) * image @ self._text(batch.captions).T
        target = torch.arange(len(logits), device=logits.device)
        captions = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        patches = self._patches(batch, output.hidden_states[-2][:, 1:])
        return {
            "loss": captions + auxiliary * patches,
            "captions": captions.detach(),
            "patches": patches.detach(),
        }

    def _text(self, tokens: tuple[Tensor, Tensor]) -> Tensor:
        pooled = self.clip.text_model(input_ids=tokens[0], attention_mask=tokens[1]).pooler_output
        return functional.normalize(self.clip.text_projection(pooled), dim=-1).float()

    def _patches(self, batch: ContrastBatch, states: Tensor) -> Tensor:
        """Of the 144 patches, the text must pick those of the object it names, in equal shares."""
        cosine = patch_similarity(self.clip, states, self._text(batch.naming))
        share = batch.where / batch.where.sum(-1, keepdim=True)
        return functional.cross_entropy(_SHARPNESS * cosine, share)
