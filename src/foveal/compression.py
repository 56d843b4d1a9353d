"""compress, attach and detach: put a method on a model, and read what it did.

with foveal.compress(model, foveal.DART(keep=64, layer=2)) as run:
    model.generate(**inputs)
run.kept
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from foveal.compressors import Compressor, Selection, VisualLayout, get
from foveal.engine.families import find_parts
from foveal.engine.frame import Frame, StageResult
from foveal.engine.hooks import Hooks
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.text_tower import TextTower

__all__ = ["Run", "Stage", "attach", "attached", "compress", "detach", "install", "remove"]

# The hooks live as long as they are in the model; a strong value would keep its own key alive.
_attached: WeakKeyDictionary[nn.Module, ref[Hooks]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Stage:
    """What one stage kept in the last forward that held visual tokens (in chunked prefill, the last such chunk).

    Attributes:
        layer: 0-based decoder layer at whose entry tokens were dropped.
        kept: per sample, (kept,) int64 positions in the uncompressed sequence (earlier turns on the same cache
            included) of the visual tokens that stayed.
        kept_in_image: per image, (kept,) int64 indices among the image's own visual tokens, in raster order: the places
            of the tokens that stayed.
        scores: per image, (tokens,) the method's score of every token that reached the stage; None where the method has
            none.
        image_samples: the sample that each image belongs to.
        sources: per image, (kept, tokens) the weight of each of the image's own visual tokens in each kept one: one 1 a
            row where nothing was merged. None where it cannot be told (merged tiles of a split image, beams).
    """

    layer: int
    kept: list[Tensor]
    kept_in_image: list[Tensor]
    scores: list[Tensor] | None
    image_samples: list[int]
    sources: list[Tensor] | None

    @classmethod
    def of(cls, result: StageResult, before: Stage | None) -> Stage:
        """Read a stage's result, and that of the one before, off the device."""
        stream, selection, layout = result.stream, result.selection, result.layout
        scores = selection.scores
        pairs = zip(stream.rows, stream.numbers, strict=True)
        return cls(
            layer=result.layer,
            kept=[(rows[numbers >= 0] + result.past).cpu() for rows, numbers in pairs],
            kept_in_image=_places(selection, layout, before),
            scores=None
            if scores is None
            else [score[:n].cpu() for score, n in zip(scores, layout.lengths, strict=True)],
            image_samples=layout.sample.tolist(),
            sources=_sources(selection, layout, before),
        )


def _columns(selection: Selection, layout: VisualLayout) -> list[Tensor]:
    """Per image, (kept,) which of the tokens that reached the stage stayed."""
    pairs = zip(selection.kept, layout.valid, strict=True)
    return [(kept & valid).nonzero()[:, 0].cpu() for kept, valid in pairs]


def _places(selection: Selection, layout: VisualLayout, before: Stage | None) -> list[Tensor]:
    columns = _columns(selection, layout)
    if before is None:
        return columns
    return [places[kept] for places, kept in zip(before.kept_in_image, columns, strict=True)]


def _sources(selection: Selection, layout: VisualLayout, before: Stage | None) -> list[Tensor] | None:
    """Each kept token's weights over the tokens of its image: those of this stage, times those of the stage before."""
    if not selection.traced or (before is not None and before.sources is None):
        return None
    told = selection.mix if selection.sources is None else selection.sources
    found = []
    for image, kept in enumerate(_columns(selection, layout)):
        length = layout.lengths[image]
        weights = torch.eye(length)[kept] if told is None else told[image, : len(kept), :length].float().cpu()
        found.append(weights if before is None or before.sources is None else weights @ before.sources[image])
    return found


class Run:
    """Compressors at work on a model; reports on the last forward of this thread that held visual tokens."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    @property
    def compressors(self) -> tuple[Compressor, ...]:
        """The methods and their options, by layer."""
        return self._hooks.compressors

    @property
    def stages(self) -> list[Stage]:
        """What each stage kept.

        Raises:
            FovealError: no forward with visual tokens has run yet.
        """
        stages: list[Stage] = []
        for result in self._last_frame().stages:
            stages.append(Stage.of(result, stages[-1] if stages else None))
        return stages

    @property
    def kept(self) -> list[Tensor]:
        """Per sample, positions in the uncompressed sequence of the visual tokens alive after the last stage."""
        return self.stages[-1].kept

    @property
    def tokens_by_layer(self) -> list[float]:
        """Visual tokens of an image that each decoder layer sees, averaged over the images of the last forward."""
        frame = self._last_frame()
        seen = [frame.whole.lengths] * len(self._hooks.parts.layers)
        for result in frame.stages:
            seen[result.layer :] = [result.stream.lengths] * (len(seen) - result.layer)
        return [sum(lengths) / len(lengths) for lengths in seen]

    @property
    def visual_mask(self) -> Tensor | None:
        """(batch, rows) bool naming the visual tokens where input_ids cannot.

        It holds for every forward of that many rows: set it anew, or to None, for a turn that has others.
        """
        return self._hooks.visual_mask

    @visual_mask.setter
    def visual_mask(self, mask: Tensor | None) -> None:
        self._hooks.visual_mask = mask

    @property
    def questions(self) -> list[str] | None:
        """Per sample, the text that a method such as TRIM compares with the image; None to read it off the prompt."""
        return self._hooks.questions

    @questions.setter
    def questions(self, questions: list[str] | None) -> None:
        self._hooks.questions = questions

    def _last_frame(self) -> Frame:
        frame = self._hooks.last_frame
        if frame is None or not frame.stages:
            raise FovealError(
                "nothing was compressed yet: run a forward or generate with an image inside the block"
            )
        return frame

    def detach(self) -> None:
        """Restore the model; harmless when done already."""
        remove(self._hooks)


def attach(
    model: nn.Module,
    method: Compressor | str | Sequence[Compressor],
    *,
    visual_mask: Tensor | None = None,
    text_tower: TextTower | None = None,
    **options: Any,
) -> Run:
    """Compress the model's visual tokens until `detach` is called on the result.

    Args:
        model: a transformers vision-language model, one wrapped by PEFT, DDP, FSDP or torch.compile, or a bare language
            model called with inputs_embeds.
        method: a compressor; the name of one with its `options`: `attach(model, "dart", keep=64)`; or several, each
            at its own layer: later stages choose among the tokens that earlier ones left.
        visual_mask: (batch, rows) bool naming the visual tokens where input_ids cannot.
        text_tower: what understands questions, for methods that compare them with the image (TRIM, CDPruner); by
            default `foveal.TextTower.beside(model)`, loaded anew each time: make it once, where you come here often.
        **options: keep=, layer= and the method's own, for a method given by name.

    Raises:
        FovealError: a bad option, methods that do not go together, a model without visual tokens or of a family that is
            not supported, or a model that is compressed already.
    """
    if isinstance(method, str):
        method, options = get(method, **options), {}
    several = [method] if isinstance(method, Compressor) else method
    if not isinstance(several, Sequence) or not all(isinstance(item, Compressor) for item in several):
        raise FovealError(
            f"{method!r} is no method: pass one such as foveal.DART(keep=64), its name with options, or a list of "
            "methods"
        )
    if options:
        raise FovealError(
            f"options {sorted(options)} belong to a method given by name: set them on {method!r} itself"
        )
    parts = find_parts(model)
    if parts.decoder in _attached:
        raise FovealError(
            "this model is compressed already: leave the block, or call foveal.detach(model), first; for several "
            "stages at once pass a list of methods"
        )
    hooks = Hooks(parts, several, visual_mask, text_tower)
    install(hooks)
    return Run(hooks)


def install(hooks: Hooks) -> None:
    """Put hooks in a model that has none yet, and note that it has some."""
    hooks.install()
    _attached[hooks.parts.decoder] = ref(hooks)


def detach(model: nn.Module) -> None:
    """Restore a model that `attach` or `load` compressed; harmless on any other model."""
    hooks = _hooks_of(find_parts(model).decoder)
    if hooks is not None:
        remove(hooks)


def attached(model: nn.Module) -> tuple[Compressor, ...]:
    """The compressors at work on `model`, by layer; none if it is as it was."""
    hooks = _hooks_of(find_parts(model).decoder)
    return () if hooks is None else hooks.compressors


def _hooks_of(decoder: nn.Module) -> Hooks | None:
    return _attached[decoder]() if decoder in _attached else None


def remove(hooks: Hooks) -> None:
    """Take hooks out of their model; harmless when done already."""
    hooks.remove()
    if _hooks_of(hooks.parts.decoder) is hooks:
        del _attached[hooks.parts.decoder]


@contextmanager
def compress(
    model: nn.Module,
    method: Compressor | str | Sequence[Compressor],
    *,
    visual_mask: Tensor | None = None,
    text_tower: TextTower | None = None,
    **options: Any,
) -> Iterator[Run]:
    """Compress the model's visual tokens inside a `with` block; arguments and errors as for `attach`.

    Leaving the block restores the model completely, also after an exception.
    """
    run = attach(model, method, visual_mask=visual_mask, text_tower=text_tower, **options)
    try:
        yield run
    finally:
        run.detach()
