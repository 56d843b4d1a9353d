"""The sizes that cost formulas need, read off a model's structure; its weights may be absent (the meta device).

A matrix of n numbers costs 2 n FLOPs for every row that it is multiplied with, whatever the layer is called. So a
layer's shape is how many numbers its matrices have, and how wide its attention is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn
from transformers import DynamicCache

from foveal.efficiency.configs import empty_clip, empty_model, read_config
from foveal.engine.families import Parts, find_parts
from foveal.errors import FovealError

__all__ = ["ClipShape", "LayerShape", "ModelShape", "TowerShape", "model_shape"]


@dataclass(frozen=True)
class LayerShape:
    """A transformer layer.

    Attributes:
        attention: numbers of the matrices around the attention that every row meets.
        inputs: those of them that make queries, keys and values.
        mlp: numbers of the other matrices that every row meets (of experts, those that a row is sent to).
        parameters: all its numbers: norms, biases and all experts, too.
        heads: query heads.
        key_heads: key and value heads.
        head_width: of one head.
        window: keys that a cache keeps; None for all.
    """

    attention: int
    inputs: int
    mlp: int
    parameters: int
    heads: int
    key_heads: int
    head_width: int
    window: int | None = None

    @property
    def matrices(self) -> int:
        """Numbers that every row is multiplied with."""
        return self.attention + self.mlp

    def flops(self, rows: int, keys: int) -> int:
        """Of `rows` rows of one sequence that attend to `keys` keys; attention counts as a full rectangle."""
        return 2 * self.matrices * rows + self.scores(rows, keys)

    def scores(self, rows: int, keys: int) -> int:
        """Of the products of queries with keys, and of probabilities with values."""
        return 4 * self.heads * self.head_width * rows * keys

    @property
    def cached(self) -> int:
        """Numbers that a cache keeps of every row."""
        return 2 * self.key_heads * self.head_width


@dataclass(frozen=True)
class TowerShape:
    """A vision tower.

    Attributes:
        embedding: numbers of the patch embedding.
        layers: its blocks.
        features: how many of the blocks the projector's input needs.
        width: of a feature, which may join the outputs of several blocks.
        inner: the widest that a row gets in a block.
        class_tokens: rows beside the patches.
        image_size: patches of a side of a picture or tile; None where pictures have any size.
        merge: patches of a side that become one visual token.
        windows: visual tokens of a side of an attention window, and the blocks that attend everywhere; None without.
        joined: whether all pictures of a batch are one sequence, masked.
        pools: whether a matrix product makes visual tokens of patches.
        head: what sums up a picture behind the blocks, asking all its rows one question (SigLIP); None without.
    """

    embedding: int
    layers: tuple[LayerShape, ...]
    features: int
    width: int
    inner: int
    class_tokens: int
    image_size: int | None
    merge: float
    windows: tuple[int, frozenset[int]] | None
    joined: bool
    pools: bool
    head: LayerShape | None


@dataclass(frozen=True)
class ClipShape:
    """What reads the question beside a CLIP tower.

    Attributes:
        layer: one of its blocks.
        depth: how many there are.
        shared: width of the space that it shares with the tower.
        width: of its rows.
        parameters: all of it, the projections of text and tower into that space included.
    """

    layer: LayerShape
    depth: int
    shared: int
    width: int
    parameters: int


@dataclass(frozen=True)
class ModelShape:
    """A vision-language model.

    Attributes:
        name: the class of model.
        tower: its vision tower.
        projector: numbers of the projectors' matrices, met by every visual token that they are given.
        layers: the decoder's.
        width: the decoder's hidden size.
        inner: the widest its MLP gets.
        vocabulary: rows of the language-model head.
        deepstack: features that are added again behind the decoder's first layers.
        patchwise: whether every patch becomes one visual token.
        tile_tokens: visual tokens of one picture or tile; None where pictures have any size.
        parameters: of the tower, the projector and the language model, by these names.
        clip: what reads the question beside the tower; None where no such pair is known.
    """

    name: str
    tower: TowerShape
    projector: int
    layers: tuple[LayerShape, ...]
    width: int
    inner: int
    vocabulary: int
    deepstack: int
    patchwise: bool
    tile_tokens: int | None
    parameters: dict[str, int]
    clip: ClipShape | None


def model_shape(source: str | nn.Module | None) -> ModelShape:
    """Read a model's shape; no weights are needed.

    Args:
        source: a directory, a hub name, or a model; None for the bundled one.

    Raises:
        FovealError: the config cannot be read, the model is of a family that is not supported, or its weights are
            quantised, whose bytes nothing here counts.
    """
    model = source if isinstance(source, nn.Module) else empty_model(read_config(source))
    parts = find_parts(model)
    if not parts.placeholders:
        raise FovealError(f"{type(model).__name__} has no image token: pass a vision-language model")
    config: Any = parts.top.config
    if getattr(config, "quantization_config", None) is not None:
        raise FovealError(
            f"the weights of this {type(parts.top).__name__} are quantised, which cost formulas do not know: pass the "
            "model that it was made from"
        )
    text: Any = parts.decoder.config
    tower, parameters = _tower(parts), _parameters(parts)
    return ModelShape(
        name=type(parts.top).__name__,
        tower=tower,
        projector=sum(_matrices(module) for module in parts.projectors),
        layers=tuple(
            replace(_layer(layer, text), window=getattr(held, "sliding_window", None))
            for layer, held in zip(parts.layers, DynamicCache(config=text).layers, strict=True)
        ),
        width=text.hidden_size,
        inner=max(_inner(layer) for layer in parts.layers),
        vocabulary=text.vocab_size,
        deepstack=parts.deepstack,
        patchwise=parts.family.patchwise,
        tile_tokens=_tile_tokens(config, tower),
        parameters=parameters,
        clip=_clip(parts),
    )


def _matrices(module: nn.Module, without: tuple[nn.Module, ...] = ()) -> int:
    """Numbers of the matrices that every row is multiplied with; embeddings are looked up."""
    skipped = {id(part) for other in without for part in other.modules()}
    count = 0
    for part in module.modules():
        if isinstance(part, nn.Embedding) or id(part) in skipped:
            continue
        share = _active_share(part, module)
        own = sum(
            p.numel()
            for name, p in part.named_parameters(recurse=False)
            if p.ndim > 1 and "embed" not in name and "token" not in name
        )
        count += int(own * share)
    return count


def _active_share(part: nn.Module, layer: nn.Module) -> float:
    """The share of a module's numbers that one row meets: of experts, those it is sent to."""
    experts = getattr(part, "num_experts", None)
    stacked = any(p.ndim == 3 for p in part.parameters(recurse=False))
    if not experts or not stacked:
        return 1.0
    config = getattr(part, "config", None)
    chosen = [getattr(config, "top_k_experts", None), *(getattr(m, "top_k", None) for m in layer.modules())]
    return float(next(filter(None, chosen), experts) / experts)


def _numbers(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


_ATTENTION = ("self_attn", "attn", "attention")


def _layer(layer: nn.Module, config: Any) -> LayerShape:
    """The shape of a transformer block of the tower or the decoder."""
    attention = next(getattr(layer, name) for name in _ATTENTION if hasattr(layer, name))
    around, whole = _matrices(attention), _matrices(layer)
    head_width = getattr(attention, "head_dim", None) or config.hidden_size // config.num_attention_heads
    fused = getattr(attention, "qkv", None)
    if fused is not None:
        query = key = fused.out_features // 3
        inputs = _matrices(fused)
    else:
        names = ("q_proj", "k_proj", "v_proj")
        made = [_linear(getattr(attention, name)) for name in names if getattr(attention, name, None)]
        query, key = made[0].out_features, made[1].out_features
        inputs = sum(_matrices(linear) for linear in made)
    return LayerShape(
        attention=around,
        inputs=inputs,
        mlp=whole - around,
        parameters=_numbers(layer),
        heads=query // head_width,
        key_heads=key // head_width,
        head_width=head_width,
    )


def _linear(module: Any) -> nn.Linear:
    """The linear layer itself, where a family clips around it."""
    return cast(nn.Linear, getattr(module, "linear", module))


def _inner(layer: nn.Module) -> int:
    """The widest that a row gets inside the layer's MLP."""
    return max((p.shape[-2] for p in layer.parameters() if p.ndim > 1), default=0)


def _blocks(tower: nn.Module) -> nn.ModuleList:
    """The tower's transformer blocks."""
    for module in tower.modules():
        if isinstance(module, nn.ModuleList) and any(hasattr(module[0], name) for name in _ATTENTION):
            return module
    raise FovealError(f"{type(tower).__name__} has no transformer blocks that could be counted")


def _tower(parts: Parts) -> TowerShape:
    tower, top = parts.tower, parts.top.config
    config: Any = tower.config
    blocks = _blocks(tower)
    layers = tuple(_layer(block, config) for block in blocks)
    outside = (blocks, *parts.projectors, *(m for name, m in tower.named_children() if name == "head"))
    tokens = getattr(tower, "embeddings", None)
    special = parts.has_class_token or getattr(tokens, "cls_token", None) is not None
    size: Any = getattr(config, "image_size", None)
    patch: Any = config.patch_size
    patch = patch[0] if isinstance(patch, list | tuple) else patch
    size = size[0] if isinstance(size, list | tuple) else size
    merge = _merge(top, config)
    window = getattr(config, "window_size", None)
    everywhere = frozenset(getattr(config, "fullatt_block_indexes", ()) or ())
    anywhere = size is None or hasattr(config, "spatial_merge_size") or config.model_type == "pixtral"
    return TowerShape(
        embedding=_matrices(tower, outside),
        layers=layers,
        features=_features(top, len(layers)),
        width=getattr(config, "embed_dim", config.hidden_size) * len(_feature_layers(top)),
        inner=max(_inner(block) for block in blocks),
        class_tokens=int(special),
        image_size=None if anywhere else int(size) // int(patch),
        merge=merge,
        windows=(int(window // patch // merge), everywhere) if window and everywhere else None,
        joined=config.model_type == "pixtral",
        pools=config.model_type == "gemma4_vision",
        head=_head(tower),
    )


def _head(tower: nn.Module) -> LayerShape | None:
    """The pooling head of a SigLIP tower. Nobody reads what it makes."""
    head: Any = getattr(tower, "head", None)
    attention = getattr(head, "attention", None)
    if not isinstance(attention, nn.MultiheadAttention):
        return None
    return LayerShape(
        attention=_matrices(attention),
        inputs=3 * attention.embed_dim**2,
        mlp=_matrices(head.mlp),
        parameters=_numbers(head),
        heads=attention.num_heads,
        key_heads=attention.num_heads,
        head_width=attention.head_dim,
    )


def _feature_layers(config: Any) -> list[int]:
    """Indices among the tower's hidden states that the projector is given; the last by default."""
    layers = getattr(config, "vision_feature_layer", None)
    return list(layers) if isinstance(layers, list | tuple) else [-1 if layers is None else layers]


def _features(config: Any, depth: int) -> int:
    """How many blocks it takes to make what the projector is given."""
    return max(index if index >= 0 else depth + 1 + index for index in _feature_layers(config))


def _merge(config: Any, vision: Any) -> float:
    """Patches of a side that become one visual token."""
    for owner in (vision, config):
        for name in ("spatial_merge_size", "pooling_kernel_size"):
            if getattr(owner, name, None):
                return float(getattr(owner, name))
    if getattr(config, "downsample_ratio", None):
        return 1 / float(config.downsample_ratio)
    return float(getattr(config, "scale_factor", None) or 1)


def _tile_tokens(config: Any, tower: TowerShape) -> int | None:
    if getattr(config, "mm_tokens_per_image", None):
        return int(config.mm_tokens_per_image)
    if tower.image_size is None:
        return None
    if tower.merge > 1:
        return int((tower.image_size / tower.merge) ** 2)
    strategy = getattr(config, "vision_feature_select_strategy", None)
    rows = tower.image_size**2 + (0 if strategy is None else tower.class_tokens)
    return rows - (strategy == "default")  # the first is cut away, class token or not


def _parameters(parts: Parts) -> dict[str, int]:
    """How many parameters each part has."""
    projector = {id(p): p for module in parts.projectors for p in module.parameters()}
    tower = {id(p): p for p in parts.tower.parameters() if id(p) not in projector}
    language = {id(p): p for p in parts.top.parameters() if id(p) not in projector and id(p) not in tower}
    groups = {"tower": tower, "projector": projector, "language model": language}
    return {name: sum(p.numel() for p in group.values()) for name, group in groups.items()}


def _clip(parts: Parts) -> ClipShape | None:
    """The text tower that `TextTower.beside` would find."""
    model = empty_clip(parts)
    if model is None:
        return None
    config = model.config
    needed = (model.text_model, model.text_projection, model.visual_projection)
    return ClipShape(
        layer=_layer(model.text_model.encoder.layers[0], config.text_config),
        depth=config.text_config.num_hidden_layers,
        shared=config.projection_dim,
        width=config.text_config.hidden_size,
        parameters=sum(map(_numbers, needed)),
    )
