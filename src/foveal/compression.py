"""compress, attach and detach: put a method on a model, and read what it did.

with foveal.compress(model, foveal.DART(keep=64, layer=2)) as run:
    model.generate(**inputs)
run.kept
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn

from foveal.compressors import Compressor, get
from foveal.engine.families import find_parts
from foveal.engine.frame import StageResult
from foveal.engine.hooks import Hooks
from foveal.errors import FovealError

__all__ = ["Run", "Stage", "attach", "attached", "compress", "detach"]

# The hooks live as long as they are in the model; a strong value would keep its own key alive.
_attached: WeakKeyDictionary[nn.Module, ref[Hooks]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Stage:
    """What one stage kept in the last forward that held visual tokens (in chunked prefill, the last such chunk).

    Attributes:
        layer: 0-based decoder layer at whose entry tokens were dropped.
        kept: per sample, (kept,) int64 positions in the uncompressed sequence (earlier turns on the same cache
            included) of the visual tokens that stayed.
        kept_in_image: per image, (kept,) int64 indices among the image's own visual tokens, in raster order.
        scores: per image, (tokens,) the method's score of every token; None where the method has none.
        image_samples: the sample that each image belongs to.
    """

    layer: int
    kept: list[Tensor]
    kept_in_image: list[Tensor]
    scores: list[Tensor] | None
    image_samples: list[int]

    @classmethod
    def of(cls, result: StageResult) -> Stage:
        """Read a stage's result off the device."""
        stream, selection, layout = result.stream, result.selection, result.layout
        scores = selection.scores
        pairs = zip(stream.rows, stream.numbers, strict=True)
        return cls(
            layer=result.layer,
            kept=[(rows[numbers >= 0] + result.past).cpu() for rows, numbers in pairs],
            kept_in_image=[
                (kept & valid).nonzero()[:, 0].cpu()
                for kept, valid in zip(selection.kept, layout.valid, strict=True)
            ],
            scores=None
            if scores is None
            else [score[:n].cpu() for score, n in zip(scores, layout.lengths, strict=True)],
            image_samples=layout.sample.tolist(),
        )


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
        frame = self._hooks.last_frame
        if frame is None or not frame.stages:
            raise FovealError(
                "nothing was compressed yet: run a forward or generate with an image inside the block"
            )
        return [Stage.of(result) for result in frame.stages]

    @property
    def kept(self) -> list[Tensor]:
        """Per sample, positions in the uncompressed sequence of the visual tokens alive after the last stage."""
        return self.stages[-1].kept

    @property
    def visual_mask(self) -> Tensor | None:
        """(batch, rows) bool naming the visual tokens where input_ids cannot.

        It holds for every forward of that many rows: set it anew, or to None, for a turn that has others.
        """
        return self._hooks.visual_mask

    @visual_mask.setter
    def visual_mask(self, mask: Tensor | None) -> None:
        self._hooks.visual_mask = mask

    def detach(self) -> None:
        """Restore the model; harmless when done already."""
        _remove(self._hooks)


def attach(
    model: nn.Module,
    method: Compressor | str | Sequence[Compressor],
    *,
    visual_mask: Tensor | None = None,
    **options: Any,
) -> Run:
    """Compress the model's visual tokens until `detach` is called on the result.

    Args:
        model: a transformers vision-language model, one wrapped by PEFT, DDP, FSDP or torch.compile, or a bare language
            model called with inputs_embeds.
        method: a compressor; the name of one with its `options`: `attach(model, "dart", keep=64)`; or several, each
            at its own layer: later stages choose among the tokens that earlier ones left.
        visual_mask: (batch, rows) bool naming the visual tokens where input_ids cannot.
        **options: keep=, layer= and the method's own, for a method given by name.

    Raises:
        FovealError: a bad option, methods that do not go together, a model without visual tokens or of a family that is
            not supported, or a model that is compressed already.
    """
    if isinstance(method, str):
        method = get(method, **options)
    elif options:
        raise FovealError(
            f"options {sorted(options)} belong to a method given by name: set them on {method!r} itself"
        )
    parts = find_parts(model)
    if parts.decoder in _attached:
        raise FovealError(
            "this model is compressed already: leave the block, or call foveal.detach(model), first; for several "
            "stages at once pass a list of methods"
        )
    hooks = Hooks(parts, (method,) if isinstance(method, Compressor) else method, visual_mask)
    hooks.install()
    _attached[parts.decoder] = ref(hooks)
    return Run(hooks)


def detach(model: nn.Module) -> None:
    """Restore a model that `attach` or `load` compressed; harmless on any other model."""
    hooks = _hooks_of(find_parts(model).decoder)
    if hooks is not None:
        _remove(hooks)


def attached(model: nn.Module) -> tuple[Compressor, ...]:
    """The compressors at work on `model`, by layer; none if it is as it was."""
    hooks = _hooks_of(find_parts(model).decoder)
    return () if hooks is None else hooks.compressors


def _hooks_of(decoder: nn.Module) -> Hooks | None:
    return _attached[decoder]() if decoder in _attached else None


def _remove(hooks: Hooks) -> None:
    hooks.remove()
    if _hooks_of(hooks.parts.decoder) is hooks:
        del _attached[hooks.parts.decoder]


@contextmanager
def compress(
    model: nn.Module,
    method: Compressor | str | Sequence[Compressor],
    *,
    visual_mask: Tensor | None = None,
    **options: Any,
) -> Iterator[Run]:
    """Compress the model's visual tokens inside a `with` block; arguments and errors as for `attach`.

    Leaving the block restores the model completely, also after an exception.
    """
    run = attach(model, method, visual_mask=visual_mask, **options)
    try:
        yield run
    finally:
        run.detach()
