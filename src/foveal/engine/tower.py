"""The pre-LM stage: choose and merge visual tokens between the vision tower and the decoder.

The projector is given the tokens that were kept, and what it makes of them is put back where it belongs among as many
rows as the model expects, so that the model and its processor notice nothing. The rows of dropped tokens are NaN: they
travel with the features through whatever a family does to them (tiles, beams, chunks), and the stage at layer 0 drops
every row that is marked so, before anything is computed from it. Features that are taken out of a model inside the
block (`image_hidden_states`, `get_image_features`) hold the marks, too: they are of use inside it only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from foveal.compressors.base import TowerCompressor
from foveal.compressors.context import AttentionInputs, Selection, TokenContext, TowerContext
from foveal.compressors.selection import kept_slots, on_device
from foveal.engine.attributes import replaced
from foveal.engine.families import Parts
from foveal.engine.precision import undisturbed
from foveal.engine.probe import observe_attention
from foveal.engine.rows import mixed
from foveal.engine.tower_merging import Merger, MergingBlocks
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.text_tower import TextTower

__all__ = ["TowerStage", "marked"]

_CLASS_TOKEN = (
    "{name} needs patches only: the class token is passed on, too (vision_feature_select_strategy='full')"
)


@dataclass
class _Seen:
    """What was noted of the tower while it ran on some images."""

    class_token: Tensor | None = None
    attention: AttentionInputs | None = None


_seen: ContextVar[_Seen | None] = ContextVar("foveal_tower", default=None)
_ids: ContextVar[Tensor | None] = ContextVar("foveal_question", default=None)
_chosen: ContextVar[Selection | None] = ContextVar("foveal_chosen", default=None)


class TowerStage:
    """A pre-LM method on one model.

    Args:
        parts: the model's modules.
        compressor: the method.
        text_tower: see `Hooks`.

    Raises:
        FovealError: the family, or its tower, lacks what the method needs.
    """

    def __init__(self, parts: Parts, compressor: TowerCompressor, text_tower: TextTower | None) -> None:
        _check(parts, compressor)
        self.parts = parts
        self.compressor = compressor
        self.questions: list[str] | None = None
        self.text_tower = text_tower if compressor.needs_text else None
        if compressor.needs_text and text_tower is None:
            from foveal.text_tower import TextTower

            self.text_tower = TextTower.beside(parts.top)
        config: Any = parts.tower.config
        self._patch = int(config.patch_size)
        side = int(config.image_size) // self._patch
        self._grid = (side, side)
        self._merging: MergingBlocks | None = None
        if compressor.merges_in_tower:
            blocks = list(parts.tower_layers)[: self._feature_layer + 1]
            self._merging = MergingBlocks(
                blocks, cast(Merger, compressor), side * side, parts.has_class_token
            )

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Put the stage in place; everything is put back exactly on exit."""
        parts, compressor = self.parts, self.compressor
        layers: Any = parts.tower_layers
        top: Any = parts.top
        _forget()
        with ExitStack() as undo:
            undo.callback(_forget)
            base: Any = parts.base
            encoding = self._encoding(base.get_image_features)
            undo.enter_context(replaced(base, "get_image_features", encoding))
            undo.enter_context(replaced(parts.projector, "forward", self._choosing(parts.projector.forward)))
            handles = [
                parts.tower.register_forward_pre_hook(self._before_tower, with_kwargs=True),
                parts.tower.register_forward_hook(self._after_tower),
            ]
            for handle in handles:
                undo.callback(handle.remove)
            if self.observed_layer is not None:
                undo.enter_context(observe_attention(layers[self.observed_layer].self_attn, _note_attention))
            if self._merging is not None:
                undo.enter_context(self._merging.installed())
            if compressor.needs_text:
                undo.enter_context(replaced(top, "generate", _asking(top.generate)))
            yield

    def ask(self, ids: Tensor | None) -> None:
        """Note the prompt (batch, rows) whose images come next."""
        if ids is not None:
            _ids.set(ids)

    @property
    def observed_layer(self) -> int | None:
        """The tower layer whose attention the method looks at."""
        behind = self.compressor.observed_layer
        if behind is None:
            return None
        return min(self._feature_layer + behind, len(self.parts.tower_layers) - 1)

    @property
    def _feature_layer(self) -> int:
        """The tower layer whose output the projector is given."""
        layer = _feature_layers(self.parts)[-1]
        return layer - 1 if layer > 0 else len(self.parts.tower_layers) + layer

    # ------------------------------------------------------------------ around the tower

    def _encoding(self, function: Callable[..., Any]) -> Callable[..., Any]:
        configured = getattr(self.parts.top.config, "vision_feature_layer", None)

        @wraps(function)  # generate reads the signature
        def encoding(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("vision_feature_layer", configured) not in (None, configured):
                raise FovealError(
                    f"{type(self.compressor).__name__} looks at the tower around config.vision_feature_layer: set it "
                    "there, not in the call"
                )
            return function(*args, **kwargs)

        return encoding

    def _before_tower(self, _tower: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        _seen.set(_Seen())
        if self._merging is not None:
            self._merging.start()
        rows, columns = self.compressor.resized(self._grid)
        if (rows, columns) == self._grid:
            return None
        pixels: Tensor = args[0] if args else kwargs["pixel_values"]
        size = (rows * self._patch, columns * self._patch)
        wide = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
        small = nn.functional.interpolate(wide, size, mode="bilinear", align_corners=False, antialias=True)
        kwargs = {**kwargs, "pixel_values": small.to(pixels.dtype), "interpolate_pos_encoding": True}
        return (), kwargs

    def _after_tower(self, _tower: nn.Module, _args: Any, output: Any) -> None:
        seen = _seen.get()
        if seen is not None and self.compressor.wants_class_token():
            tokens = [output.hidden_states[layer][:, 0] for layer in _feature_layers(self.parts)]
            seen.class_token = torch.cat(tokens, dim=-1)

    # ------------------------------------------------------------------ around the projector

    def _choosing(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(forward)
        def choosing(features: Tensor) -> Tensor:
            seen = _seen.get() or _Seen()
            _seen.set(None)
            patches = None if self._merging is None else self._merging.patches()[0]
            expected = self._grid[0] * self._grid[1] if patches is None else patches.shape[1]
            if features.shape[1] > expected:
                raise FovealError(_CLASS_TOKEN.format(name=type(self.compressor).__name__))
            made = forward(features) if self.compressor.projected else None
            with undisturbed(features.device):
                context = self._context(features, made, seen)
                selection = self.compressor.choose(context)
            _chosen.set(selection)
            whole = features if made is None else made
            if selection.counts == (context.tokens,) * len(whole) and selection.mix is None:
                return forward(features) if made is None else made
            rows = _kept_rows(whole, seen.class_token, selection)
            return _spread(forward(rows) if made is None else rows, selection)

        return choosing

    def _context(self, features: Tensor, made: Tensor | None, seen: _Seen) -> TowerContext:
        image_embeds = text_embeds = None
        if self.text_tower is not None:
            image_embeds = self.text_tower.project(features)
            text_embeds = self._text_embeds(len(features))
        slots, members = (None, None) if self._merging is None else self._merging.patches()
        return TowerContext(
            features=(features if made is None else made).detach(),
            grid=self._grid,
            class_token=seen.class_token,
            attention=seen.attention,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            slots=slots,
            members=members,
        )

    def _text_embeds(self, images: int) -> Tensor:
        """(images, shared) the question about each image."""
        assert self.text_tower is not None
        ids = _ids.get()
        if ids is None:
            raise FovealError(
                f"{type(self.compressor).__name__} reads the question, but no input_ids came with the image"
            )
        if self.questions is None or len(ids) > 1:
            ids = ids.cpu()  # text is read on the host
        questions = self.questions or self.text_tower.questions(ids)
        if len(questions) != len(ids):
            raise FovealError(
                f"run.questions has {len(questions)} texts for {len(ids)} samples: pass one each"
            )
        embeds = self.text_tower.embed(questions)
        return embeds.index_select(0, on_device(self._samples(ids, images), embeds.device))

    def _samples(self, ids: Tensor, images: int) -> list[int]:
        """Which sample each of the images belongs to."""
        if len(ids) == 1:
            return [0] * images
        tokens = ids.eq(self.parts.placeholders["image"]).sum(dim=1)
        counts = (tokens // (self._grid[0] * self._grid[1])).tolist()
        if sum(counts) != images:
            raise FovealError(
                f"{type(self.compressor).__name__} cannot tell which sample each image belongs to: the prompts name "
                f"{sum(counts)} images, but {images} are given (with those of earlier turns, pass one sample at a time)"
            )
        return [sample for sample, count in enumerate(counts) for _ in range(count)]


def marked(context: TokenContext) -> Selection:
    """What was chosen before the decoder: the visual rows at layer 0 that are not NaN.

    Raises:
        FovealError: the features were not computed by the model in this block.
    """
    chosen = _chosen.get()
    kept = ~context.layout.gather(context.hidden[..., :1])[..., 0].isnan() & context.layout.valid
    # The second wait for the device of an image prefill: the features may be those of another call.
    if chosen is not None and torch.equal(kept, chosen.kept.to(kept.device)):
        sources = chosen.mix if chosen.sources is None else chosen.sources
        return replace(chosen, kept=kept, mix=None, sources=sources)
    if chosen is None or (torch.equal(kept, context.layout.valid) and not bool(chosen.kept.all())):
        raise FovealError(
            "a pre-LM method chooses while the model encodes images, but this forward was given embeddings: pass "
            "pixel_values inside the block"
        )
    # Beams or chunks: which image is which is not known here.
    return Selection(kept=kept, traced=chosen.mix is None and chosen.sources is None)


def _kept_rows(features: Tensor, class_token: Tensor | None, selection: Selection) -> Tensor:
    """(images, kept, width) what stands in the kept slots, in order."""
    if selection.mix is None:
        most = int(selection.kept.shape[1]) if selection.counts is None else max(selection.counts)
        if features.shape[1] < selection.kept.shape[1]:
            return features  # the tower has merged, or saw a smaller image
        slots = kept_slots(selection.kept, most)
        return features.gather(1, slots[..., None].expand(-1, -1, features.shape[2]))
    if selection.mix.shape[2] > features.shape[1]:
        assert class_token is not None
        features = torch.cat([features, class_token[:, None]], dim=1)
    return mixed(selection.mix, features)


def _spread(rows: Tensor, selection: Selection) -> Tensor:
    """(images, kept, width) -> (images, tokens, width) with NaN in the slots that were dropped."""
    slots = kept_slots(selection.kept, rows.shape[1])[..., None].expand(rows.shape)
    dropped = rows.new_full((*selection.kept.shape, rows.shape[2]), torch.nan)
    return dropped.scatter(1, slots, rows).masked_fill(~selection.kept[..., None], torch.nan)


def _forget() -> None:
    """Nothing of an earlier block may be taken for this one's, nor be kept alive by it."""
    for noted in (_seen, _ids, _chosen):
        noted.set(None)


def _note_attention(attention: AttentionInputs) -> None:
    seen = _seen.get()
    if seen is not None:
        seen.attention = replace(attention, causal=False)


def _asking(generate: Callable[..., Any]) -> Callable[..., Any]:
    """Generate encodes images before it calls the model."""

    @wraps(generate)
    def asking(*args: Any, **kwargs: Any) -> Any:
        ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        if ids is not None:
            _ids.set(ids)
        return generate(*args, **kwargs)

    return asking


def _feature_layers(parts: Parts) -> list[int]:
    """Indices among the tower's hidden states that the projector is given; the last by default."""
    layers = getattr(parts.top.config, "vision_feature_layer", -1)
    return list(layers) if isinstance(layers, list | tuple) else [layers]


def _check(parts: Parts, compressor: TowerCompressor) -> None:
    name = type(compressor).__name__
    config: Any = parts.top.config
    if not parts.placeholders:
        raise FovealError(f"{name} chooses behind a vision tower, which {type(parts.top).__name__} has not")
    if not parts.family.patchwise:
        raise FovealError(
            f"{name} needs a visual token for every patch of the tower: in {config.model_type} models patches "
            "are merged, or images split into tiles; use DivPrune, or a method inside the decoder"
        )
    if compressor.wants_class_token() and not parts.has_class_token:
        raise FovealError(
            f'{name} ranks patches by the class token (CLS), which this tower has not: pass query="mean" where the '
            "method has it, or use DivPrune"
        )
    strategy = getattr(config, "vision_feature_select_strategy", None)
    if strategy == "full" and parts.has_class_token:
        raise FovealError(_CLASS_TOKEN.format(name=name))
    if strategy == "default" and not parts.has_class_token:
        raise FovealError(
            f"{name} needs all patches: this tower has no class token, and vision_feature_select_strategy='default' "
            "cuts away its first patch instead; use DivPrune, or a method inside the decoder"
        )
    if {0, -len(parts.tower_layers) - 1} & set(_feature_layers(parts)):
        raise FovealError(
            f"{name} chooses behind a layer of the tower: vision_feature_layer={config.vision_feature_layer} is before "
            "the first"
        )
    if compressor.merges_in_tower and len(_feature_layers(parts)) > 1:
        raise FovealError(
            f"{name} merges tokens from block to block: this model joins the features of several blocks "
            f"(vision_feature_layer={config.vision_feature_layer}), which then have different numbers of tokens"
        )
