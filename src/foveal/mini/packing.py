"""Many questions about one image in one sequence, each as if it had been asked alone.

A sequence is the prefix (``<s> USER:`` and the 144 image tokens) followed by segments. A 4-D mask lets a segment
see the prefix and itself, and its positions go on from the prefix as if nothing stood between: every segment's
hidden states are exactly those of prefix + segment alone. One image thus serves some twenty questions for little
more than the price of one. A segment may be a conversation of several turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from foveal.mini.scenes import GRID
from foveal.mini.tokenizer import IMAGE_TOKEN

__all__ = ["IGNORE", "PADDING", "Codec", "Pack", "Segment", "answer_logits", "collate", "tower_states"]

IGNORE = -100
PADDING = -1


@dataclass(frozen=True)
class Segment:
    """Token ids after the prefix, and the same with everything but the answers replaced by -100.

    `looks` holds (token, patch) pairs: while predicting what follows this token, look at this patch and the one below.
    """

    ids: list[int]
    labels: list[int]
    looks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Pack:
    """A batch of packed sequences: int64 tensors (batch, length), but for `looks`.

    Attributes:
        ids: token ids.
        labels: token ids of the answers at their own places, -100 elsewhere.
        positions: position ids, which begin again after the prefix for each segment.
        segments: 0 for the prefix, 1, 2, ... for the segments, -1 for padding.
        looks: the segments' looks as (row, column, patch), (looks, 3).
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    segments: Tensor
    looks: Tensor

    def mask(self, dtype: torch.dtype) -> Tensor:
        """The additive attention mask, (batch, 1, length, length): 0 where a row may look, -inf elsewhere."""
        length = self.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        rows, columns = self.segments[:, :, None], self.segments[:, None, :]
        allowed = causal.to(rows.device) & ((columns == 0) | (columns == rows))
        return torch.zeros(allowed.shape, dtype=dtype, device=rows.device).masked_fill_(~allowed, -torch.inf)[
            :, None
        ]

    def to(self, device: torch.device) -> Pack:
        """The same on a device."""
        return Pack(
            *(part.to(device) for part in (self.ids, self.labels, self.positions, self.segments, self.looks))
        )


class Codec:
    """Turns questions and answers into segments, remembering the pieces it has seen."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        image = tokenizer.get_vocab()[IMAGE_TOKEN]
        self.prefix = [*self.encode("<s> USER:"), *([image] * (GRID * GRID))]

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of text, without anything added."""
        if text not in self._known:
            self._known[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._known[text]

    def segment(self, turns: Sequence[tuple[str, str]], letters: Sequence[int] = ()) -> Segment:
        """A segment of one or more (question, answer) turns, in the chat template's format.

        `letters` are the upper patches of the letters that a single turn's answer spells.
        """
        ids: list[int] = []
        labels: list[int] = []
        for number, (question, answer) in enumerate(turns):
            asked = [
                *(self.encode("USER:") if number else ()),
                *self.encode(question),
                *self.encode("ASSISTANT:"),
            ]
            told = self.encode(f"{answer}</s>")
            ids += [*asked, *told]
            labels += [*([IGNORE] * len(asked)), *told]
        first = len(asked) - 1
        return Segment(ids, labels, tuple((first + number, patch) for number, patch in enumerate(letters)))

    def item(self, cue: str, told: Sequence[int]) -> Segment:
        """A cue and what must follow it at once, with nothing of the chat format between."""
        asked = self.encode(cue)
        return Segment([*asked, *told], [*([IGNORE] * len(asked)), *told])


def collate(prefix: Sequence[int], samples: Sequence[Sequence[Segment]], length: int) -> Pack:
    """Pack each sample's segments behind the prefix, leaving out those that no longer fit in `length` tokens."""
    rows, looks = [], []
    for number, segments in enumerate(samples):
        *row, looked = _row(prefix, segments, length)
        rows.append(row)
        looks += [(number, *look) for look in looked]
    ids, labels, positions, owners = (torch.tensor(part) for part in zip(*rows, strict=True))
    return Pack(ids, labels, positions, owners, torch.tensor(looks, dtype=torch.long).reshape(-1, 3))


def _row(prefix: Sequence[int], segments: Sequence[Segment], length: int) -> tuple[list[Any], ...]:
    looks: list[tuple[int, int]] = []
    start = len(prefix)
    ids, labels, positions, owners = list(prefix), [IGNORE] * start, list(range(start)), [0] * start
    for number, segment in enumerate(segments, 1):
        size = len(segment.ids)
        if len(ids) + size > length:
            continue
        looks += [(len(ids) + token, patch) for token, patch in segment.looks]
        ids += segment.ids
        labels += segment.labels
        positions += range(start, start + size)
        owners += [number] * size
    spare = length - len(ids)
    rest = [IGNORE] * spare, [0] * spare, [PADDING] * spare
    return ids + [0] * spare, labels + rest[0], positions + rest[1], owners + rest[2], looks


def tower_states(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """The tower's hidden states that the decoder is fed from, CLS first: (batch, 145, 128)."""
    output = model.model.vision_tower(pixels, output_hidden_states=True)
    states: Tensor = output.hidden_states[model.config.vision_feature_layer]
    return states


def answer_logits(
    model: LlavaForConditionalGeneration, states: Tensor, pack: Pack
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Logits of the answer tokens only.

    Args:
        model: the model.
        states: what `tower_states` returned, one row for each row of the pack.
        pack: the packed questions.

    Returns:
        logits (answers, vocabulary), their targets (answers,), and the (row, column) each was predicted from.
    """
    features = model.model.multi_modal_projector(states[:, 1:])
    words = model.get_input_embeddings()(pack.ids)
    image = pack.ids == model.config.image_token_id
    embeds = words.masked_scatter(image[..., None], features.to(words.dtype))
    # The mask must have the dtype the attention runs in, which autocast may lower.
    hidden = model.model.language_model(
        inputs_embeds=embeds,
        attention_mask=pack.mask(_attention_dtype(embeds)),
        position_ids=pack.positions,
        use_cache=False,
    ).last_hidden_state
    targets = functional.pad(pack.labels[:, 1:], (0, 1), value=IGNORE)
    rows, columns = torch.nonzero(targets != IGNORE, as_tuple=True)
    logits: Tensor = model.lm_head(hidden[rows, columns])
    return logits.float(), targets[rows, columns], (rows, columns)


def _attention_dtype(embeds: Tensor) -> torch.dtype:
    kind = embeds.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else embeds.dtype
