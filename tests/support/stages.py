"""The oracle for methods that merge, re-pack positions, or choose before the decoder.

It takes from a compressed run only what each stage decided (which tokens stay, and the weights of merges) and carries
that out on the unmodified model with plain loops: nothing is dropped, dropped columns are closed, merged values are
written over the rows, and every layer behind is given rotary tables of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

import foveal
from foveal.engine import tower
from support.oracle import dropped_columns, hidden_columns


@dataclass
class Merge:
    """Rows `kept` of a sample become sums of its rows `reaching`, by `weights` (kept, reaching)."""

    sample: int
    kept: Tensor
    reaching: Tensor
    weights: Tensor


@dataclass
class Decision:
    """What one stage did.

    Attributes:
        layer: where.
        dropped: (batch, rows) bool, all visual tokens dropped so far.
        packed: whether positions are counted anew from here.
        merges: one an image.
    """

    layer: int
    dropped: Tensor
    packed: bool
    merges: list[Merge] = field(default_factory=list)


def image_rows(visual: Tensor, stage: foveal.Stage, lengths: list[int]) -> list[Tensor]:
    """The rows of each image, given how many visual tokens each has."""
    rows = [sample.nonzero()[:, 0] for sample in visual]
    found = []
    for sample, length in zip(stage.image_samples, lengths, strict=True):
        found.append(rows[sample][:length])
        rows[sample] = rows[sample][length:]
    return found


def decisions(run: foveal.Run, visual: Tensor) -> list[Decision]:
    """What every stage of the last forward decided."""
    results = run._hooks.last_frame.stages  # type: ignore[union-attr]
    packed = {stage.layer: stage.positions == "packed" for stage in run._hooks._at.values()}
    lengths = list(results[0].whole.lengths)
    found: list[Decision] = []
    reaching = image_rows(visual, run.stages[0], lengths)
    everything = reaching
    for stage, result in zip(run.stages, results, strict=True):
        decision = Decision(stage.layer, dropped_columns(visual, stage.kept), packed[stage.layer])
        kept = [rows[places] for rows, places in zip(everything, stage.kept_in_image, strict=True)]
        if result.selection.mix is not None:
            for image, sample in enumerate(stage.image_samples):
                weights = result.selection.mix[image, : len(kept[image]), : len(reaching[image])]
                decision.merges.append(Merge(sample, kept[image], reaching[image], weights))
        found.append(decision)
        reaching = kept
    return found


@contextmanager
def decided(model: Any, real: Tensor, found: list[Decision]) -> Iterator[None]:
    """Carry the decisions out on the unmodified model.

    Args:
        model: a vision-language model, called without a cache.
        real: (batch, rows) attention mask; rows behind those of the decisions are real text.
        found: the decisions, by layer.
    """
    layers = model.get_decoder().layers
    rows = real.shape[1]
    hidden = [
        (decision.layer, pad(decision.dropped, (0, rows - decision.dropped.shape[1]))) for decision in found
    ]
    with ExitStack() as undo:
        undo.enter_context(hidden_columns(layers, hidden))
        for decision, (_, dropped) in zip(found, hidden, strict=True):
            merge = partial(_merge, decision.merges)
            handles = [layers[decision.layer].register_forward_pre_hook(merge, with_kwargs=True)]
            if decision.packed and dropped.any():
                alive = real.bool() & ~dropped
                for index in range(decision.layer, len(layers)):
                    pack = partial(_pack, model.get_decoder(), index, real.bool(), alive)
                    handles.append(layers[index].register_forward_pre_hook(pack, with_kwargs=True))
            for handle in handles:
                undo.callback(handle.remove)
        add = partial(_merge_features, found)
        undo.callback(model.get_decoder().register_forward_pre_hook(add, with_kwargs=True).remove)
        yield


def _merge_features(found: list[Decision], _decoder: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """DeepStack adds a token's features to where the token is now."""
    features = kwargs.get("deepstack_visual_embeds")
    if features is None:
        return None
    visual = kwargs["visual_pos_masks"]
    behind = []
    for layer, embeds in enumerate(features):
        whole = embeds.new_zeros(*visual.shape, embeds.shape[-1]).masked_scatter(visual[..., None], embeds)
        for decision in found:
            if decision.layer <= layer:
                (whole,), _ = _merge(decision.merges, None, (whole,), {})
        behind.append(whole[visual])
    return args, {**kwargs, "deepstack_visual_embeds": behind}


def _merge(merges: list[Merge], _layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    hidden = args[0]
    lines = list(hidden.unbind(0))
    for merge in merges:
        line = lines[merge.sample]
        values = [
            sum(
                weight * line[row]
                for weight, row in zip(weights.to(line.dtype), merge.reaching, strict=True)
                if weight
            )
            for weights in merge.weights
        ]
        new = list(line.unbind(0))
        for row, value in zip(merge.kept.tolist(), values, strict=True):
            new[row] = value if isinstance(value, Tensor) else torch.zeros_like(line[0])
        lines[merge.sample] = torch.stack(new)
    return (torch.stack(lines), *args[1:]), kwargs


def _pack(
    decoder: Any, index: int, real: Tensor, alive: Tensor, _layer: Any, args: Any, kwargs: dict[str, Any]
) -> Any:
    """Count positions over the rows that are alive, from the first real row's on."""
    if getattr(decoder.config, "rope_parameters", {}).get("mrope_section"):
        return None  # these positions name places of the image
    positions = kwargs["position_ids"].expand(alive.shape).clone()
    for sample, living in enumerate(alive):
        first = positions[sample, real[sample].nonzero()[0, 0]]
        positions[sample, living] = first + torch.arange(int(living.sum()))
    kind = getattr(decoder.config, "layer_types", None)
    typed = isinstance(getattr(decoder.rotary_emb, "layer_types", None), (list, set, tuple))
    tables = decoder.rotary_emb(args[0], positions, *([kind[index]] if typed and kind else []))
    return args, {**kwargs, "position_embeddings": tables}


@dataclass
class Towers:
    """What went into the projector while a compressed model ran, and what was made of it."""

    features: list[Tensor] = field(default_factory=list)
    class_tokens: list[Tensor | None] = field(default_factory=list)
    selections: list[foveal.Selection] = field(default_factory=list)


@contextmanager
def watched(model: Any) -> Iterator[Towers]:
    """Note what the projector of a compressed model is called with."""
    seen = Towers()
    base = model.base_model
    if not hasattr(base, "multi_modal_projector"):
        yield seen
        return

    def before(_module: Any, args: Any) -> None:
        seen.features.append(args[0])

    def after(_module: Any, _args: Any, _output: Any) -> None:
        seen.selections.append(tower._chosen.get())  # type: ignore[arg-type]

    def note_class(_module: Any, _args: Any, output: Any) -> None:
        layer = getattr(model.config, "vision_feature_layer", None)
        hidden = None if layer is None else output.hidden_states
        seen.class_tokens.append(None if hidden is None else hidden[layer][:, 0])

    handles = [
        base.multi_modal_projector.register_forward_pre_hook(before),
        base.multi_modal_projector.register_forward_hook(after),
        base.vision_tower.register_forward_hook(note_class),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def projecting(model: Any, seen: Towers, projected: bool) -> Iterator[None]:
    """The unmodified model, whose projector makes what a pre-LM method decided; zeros stand where it dropped."""
    projector = model.base_model.multi_modal_projector
    original = projector.forward
    turn = iter(zip(seen.features, seen.class_tokens, seen.selections, strict=True))

    def forward(_features: Tensor) -> Tensor:
        features, class_token, selection = next(turn)
        if projected:
            features = original(features)
        lines = []
        for image, kept in enumerate(selection.kept):
            slots = kept.nonzero()[:, 0].tolist()
            rows = _rows(
                features[image], None if class_token is None else class_token[image], selection, image, slots
            )
            made = rows if projected else original(rows[None])[0]
            line = [made.new_zeros(made.shape[1]) for _ in kept]
            for slot, row in zip(slots, made, strict=True):
                line[slot] = row
            lines.append(torch.stack(line))
        return torch.stack(lines)

    projector.forward = forward
    try:
        yield
    finally:
        del projector.forward


def _rows(
    features: Tensor, class_token: Tensor | None, selection: foveal.Selection, image: int, slots: list[int]
) -> Tensor:
    """What stands in the slots of one image, in order."""
    if selection.mix is None:
        return features if len(features) < selection.kept.shape[1] else features[slots]
    tokens = [*features]
    if selection.mix.shape[2] > len(features):
        assert class_token is not None
        tokens.append(class_token)
    none = torch.zeros_like(tokens[0])
    return torch.stack(
        [
            sum((weight * token for weight, token in zip(weights, tokens, strict=True) if weight), none)
            for weights in selection.mix[image, : len(slots)].to(features.dtype)
        ]
    )
