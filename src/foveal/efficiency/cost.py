"""What a prompt costs, in closed form: FLOPs, KV cache, weights and activations, from a model's shape alone.

A matrix of n numbers costs 2 n FLOPs for every row. Attention of q rows to k keys costs 4 q k (heads * head width): the
full rectangle; kernels that skip what a causal mask hides do about half of that.

Counted is what `torch.utils.flop_counter.FlopCounterMode` counts: matrix products (mm, addmm, bmm, baddbmm,
convolution, scaled dot-product attention), and all FLOPs here equal it exactly. On a CPU it has to be told of the
kernel that attention takes there; eager attention needs no such help, and counts the same. Distances (`cdist`, in
SparseVLM), which it does not know, count as the products of all pairs of points, whatever their kernel does. Norms,
soft-max, rotary embedding, sorting, gathering and sums, ToMe's averages among them, are no products: below 1 %.

A compressed LLaVA leaves its tower early (`engine/early_exit.py`), as transformers 5.23 and newer allow.

One number is a bound: SparseVLM's raters are taken to be all words of the prompt, as a GPU takes them. Where they can
be counted without waiting, on a CPU, only those with weight are read.

With N visual tokens and T text tokens of a sample, n kept from layer K on, a decoder of D layers does

    prefill = K f(T + N) + (D - K) f(T + n) + 2 width vocabulary        f(r) = 2 (matrices of a layer) r + attention

    KV cache = (K (T + N) + (D - K) (T + n)) * 2 * key heads * head width * bytes a number

Samples are taken to be alike, in text and in number and size of images; a ragged batch computes as many rows as its
longest sample has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, isqrt

from foveal.compressors import Compressor, TowerCompressor
from foveal.compressors.sizes import StageSizes
from foveal.compressors.tome import ToMe
from foveal.efficiency.shape import LayerShape, ModelShape, TowerShape
from foveal.errors import FovealError

__all__ = ["Cost", "Load", "cost", "resolve"]


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a model is asked.

    Attributes:
        batch: samples at once.
        text: text tokens of a sample's prompt, the template's included.
        answer: tokens that are generated.
        images: of a sample; every tile is one where text stands between them (Idefics3, SmolVLM).
        visual: visual tokens of an image, or its rows and columns of them; None for what the config says.
        tiles: pictures that an image is split into; None for as many as its tokens fill.
        question: tokens that a text tower reads, of methods that have one.
        bytes: of a number, in weights, activations and cache.
    """

    batch: int = 1
    text: int = 60
    answer: int = 20
    images: int = 1
    visual: int | tuple[int, int] | None = None
    tiles: int | None = None
    question: int = 20
    bytes: int = 2

    def __post_init__(self) -> None:
        for name in ("batch", "text", "answer", "images", "tiles", "question", "bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise FovealError(f"{name}={value} must be at least 1")
        sides = () if self.visual is None else (self.visual,) if isinstance(self.visual, int) else self.visual
        if min(sides, default=1) < 1:
            raise FovealError(f"visual={self.visual} must be at least one visual token")

    @property
    def tokens(self) -> int:
        """Visual tokens of an image, once `resolve` has found them."""
        assert self.visual is not None
        return self.visual if isinstance(self.visual, int) else self.visual[0] * self.visual[1]


@dataclass(frozen=True)
class Cost:
    """What a load costs a model under some methods. FLOPs and bytes are those of the whole batch.

    Attributes:
        tower: FLOPs of the vision tower.
        text_tower: of the text tower that reads the question, and of the projection of patches into its space.
        projector: FLOPs.
        selection: FLOPs of choosing and merging; None where a method does not say.
        layers: FLOPs of the prefill by decoder layer.
        head: FLOPs of the logits of each sample's last row.
        rows: of a sample, by decoder layer.
        visual: visual tokens of an image, by decoder layer.
        cache: bytes of keys and values behind the prefill, by layer.
        steps: FLOPs of each decode step.
        cache_at_end: bytes of keys and values behind the last step, by layer.
        weights: bytes by part.
        activations: bytes of what is alive at the prefill's largest moment, besides weights and cache; in attention
            kernels that keep no matrix of scores.
        peak: the same with the cache as it is filled by then.
        images: in the batch.
    """

    tower: int
    text_tower: int
    projector: int
    selection: int | None
    layers: tuple[int, ...]
    head: int
    rows: tuple[int, ...]
    visual: tuple[int, ...]
    cache: tuple[int, ...]
    steps: tuple[int, ...]
    cache_at_end: tuple[int, ...]
    weights: dict[str, int]
    activations: int
    peak: int
    images: int

    @property
    def prefill(self) -> int:
        """FLOPs of the language model's prefill."""
        return sum(self.layers) + self.head

    @property
    def first_token(self) -> int:
        """FLOPs until the first token: everything but the decode steps."""
        return self.tower + self.text_tower + self.projector + (self.selection or 0) + self.prefill

    @property
    def total(self) -> int:
        """FLOPs of the whole answer."""
        return self.first_token + sum(self.steps)

    @property
    def average_visual(self) -> float:
        """Visual tokens of an image, averaged over the decoder's layers."""
        return sum(self.visual) / len(self.visual)

    @property
    def memory(self) -> int:
        """Bytes of weights, and of the larger of the prefill's peak and the cache at the end."""
        return sum(self.weights.values()) + max(self.peak, sum(self.cache_at_end))


def cost(
    shape: ModelShape, methods: Compressor | Sequence[Compressor] | None = None, load: Load | None = None
) -> Cost:
    """Work out what a load costs.

    Args:
        shape: of the model.
        methods: one, several at their own layers, or None for the plain model.
        load: what it is asked; one image and 60 text tokens by default.

    Raises:
        FovealError: the number of visual tokens is unknown, a method or option does not fit the model, or the image
            decides how many tokens stay (keep="auto").
    """
    methods = () if methods is None else (methods,) if isinstance(methods, Compressor) else tuple(methods)
    load = resolve(shape, load or Load())
    visual = load.tokens
    stages = sorted(
        (stage for method in methods for stage in method.stages(len(shape.layers))), key=_layer_of
    )
    before = next((stage for stage in stages if isinstance(stage, TowerCompressor)), None)
    if before is not None:
        _check(shape, before)
    seen = _visual_by_layer(stages, visual, len(shape.layers))
    rows = tuple(load.text + load.images * count for count in seen)
    cache = _cache(shape, load, rows, 0)
    activations, filled = _largest(shape, load, before, rows, cache)
    images = load.batch * load.images
    steps = [_step(shape, load, rows, step) for step in range(load.answer - 1)]
    return Cost(
        tower=_tower(shape, load, before, bool(methods)),
        text_tower=_text_tower(shape, load, visual) if before is not None and before.needs_text else 0,
        projector=2 * shape.projector * images * _projected(shape, load, before, seen[0]),
        selection=_selection(shape, load, methods, stages, seen),
        layers=tuple(load.batch * layer.flops(r, r) for layer, r in zip(shape.layers, rows, strict=True)),
        head=2 * load.batch * shape.width * shape.vocabulary,
        rows=rows,
        visual=seen,
        cache=cache,
        steps=tuple(steps),
        cache_at_end=_cache(shape, load, rows, load.answer - 1),
        weights=_weights(shape, load, before),
        activations=activations,
        peak=activations + filled,
        images=images,
    )


def resolve(shape: ModelShape, load: Load) -> Load:
    """The load with its number of visual tokens and tiles.

    Raises:
        FovealError: the model takes pictures of any size, and nobody said how many tokens one has.
    """
    if load.visual is None:
        if shape.tile_tokens is None:
            raise FovealError(
                f"{shape.name} takes images of any size: say how many visual tokens one has (visual=, --visual), or "
                "its rows and columns of them"
            )
        load = replace(load, visual=shape.tile_tokens * (load.tiles or 1))
    filled = 1 if shape.tile_tokens is None else ceil(load.tokens / shape.tile_tokens)
    return replace(load, tiles=load.tiles or filled)


def _check(shape: ModelShape, method: TowerCompressor) -> None:
    """Refuse what the engine would."""
    name, tower = type(method).__name__, shape.tower
    if not shape.patchwise or shape.tile_tokens != (tower.image_size or 0) ** 2:
        raise FovealError(
            f"{name} needs a visual token for every patch of the tower, and nothing else, which this {shape.name} has "
            "not: use DivPrune, or a method inside the decoder"
        )
    if method.wants_class_token() and not tower.class_tokens:
        raise FovealError(
            f"{name} ranks patches by the class token (CLS), which the tower of this {shape.name} has not: pass "
            'query="mean" where the method has it, or use DivPrune'
        )


def _grid(visual: int | tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of an image's visual tokens: as square as possible where only their number is known."""
    if not isinstance(visual, int):
        return visual
    rows = next(rows for rows in range(isqrt(visual), 0, -1) if visual % rows == 0)
    return rows, visual // rows


def _layer_of(stage: Compressor) -> int:
    return stage.layer


def _visual_by_layer(stages: Sequence[Compressor], visual: int, depth: int) -> tuple[int, ...]:
    """Visual tokens of an image that each decoder layer sees."""
    seen = [visual] * depth
    for stage in stages:
        if stage.layer >= depth:
            raise FovealError(f"layer={stage.layer} is beyond the model's {depth} layers")
        (left,) = stage.left((seen[stage.layer],), (visual,))
        seen[stage.layer :] = [left] * (depth - stage.layer)
    return tuple(seen)


# ---------------------------------------------------------------------------------------------- before the decoder


def _tower(shape: ModelShape, load: Load, method: TowerCompressor | None, compressed: bool) -> int:
    """FLOPs of the tower."""
    tower, visual = shape.tower, load.tokens
    assert load.tiles is not None
    assert load.visual is not None
    pictures = load.batch * load.images * load.tiles
    patches = _patches(tower, visual, method)
    depth = len(tower.layers)
    if compressed and shape.patchwise:  # the engine leaves the tower behind the last block that is looked at
        behind = 0 if method is None else method.observed_layer or 0
        depth = min(depth, tower.features + behind)
    lengths = (
        _merged(method, patches, tower.features) if isinstance(method, ToMe) else [patches] * (depth + 1)
    )
    total = 2 * pictures * (tower.embedding * patches + tower.pools * visual * patches * tower.width)
    for index, layer in enumerate(tower.layers[:depth]):
        attended, onwards = (lengths[place] + tower.class_tokens for place in (index, index + 1))
        total += 2 * pictures * (layer.attention * attended + layer.mlp * onwards)
        sequences = _sequences(shape, load.visual, index, attended)
        # Pictures that are one sequence hide each other by a mask.
        total += pictures * sum(
            layer.scores(rows, rows * (pictures if tower.joined else 1)) for rows in sequences
        )
    return total + pictures * _pooled(tower, lengths[-1] + tower.class_tokens)


def _pooled(tower: TowerShape, rows: int) -> int:
    """FLOPs of the head behind the tower's blocks: keys and values of all rows, and one query."""
    if tower.head is None:
        return 0
    keys = 2 * tower.head.inputs // 3
    return 2 * keys * rows + 2 * (tower.head.matrices - keys) + tower.head.scores(1, rows)


def _patches(tower: TowerShape, visual: int, method: TowerCompressor | None) -> int:
    """Of a picture."""
    if tower.image_size is None:
        return int(visual * tower.merge**2)
    side = tower.image_size
    rows, columns = (side, side) if method is None else method.resized((side, side))
    return rows * columns


def _projected(shape: ModelShape, load: Load, method: TowerCompressor | None, kept: int) -> int:
    """Rows of an image that the projector is given."""
    assert load.tiles is not None
    if method is not None and not method.projected:
        return kept
    return load.tokens if shape.tile_tokens is None else load.tiles * shape.tile_tokens


def _merged(method: ToMe, patches: int, blocks: int) -> list[int]:
    """Patches in front of each block of the tower, and behind the last."""
    lengths = [patches]
    for removed in method.removals(patches, blocks):
        lengths.append(lengths[-1] - removed)
    return lengths


def _sequences(shape: ModelShape, visual: int | tuple[int, int], block: int, rows: int) -> list[int]:
    """Rows that attend to each other in a block of the tower: those of a picture, or of each of its windows."""
    windows = shape.tower.windows
    if windows is None or block in windows[1]:
        return [rows]
    size = windows[0]
    merged = int(shape.tower.merge**2)
    sides = [[min(size, side - start) for start in range(0, side, size)] for side in _grid(visual)]
    return [height * width * merged for height in sides[0] for width in sides[1]]


def _text_tower(shape: ModelShape, load: Load, visual: int) -> int:
    """FLOPs of reading every sample's question, and of bringing patches into the space it shares with them."""
    clip = shape.clip
    if clip is None:
        raise FovealError(
            f"no CLIP text model is known beside the vision tower of this {shape.name}, which the method needs"
        )
    read = clip.depth * clip.layer.flops(load.question, load.question) + 2 * clip.width * clip.shared
    return load.batch * (read + load.images * visual * 2 * shape.tower.width * clip.shared)


# ----------------------------------------------------------------------------------------------------- selection


def _selection(
    shape: ModelShape,
    load: Load,
    methods: Sequence[Compressor],
    stages: Sequence[Compressor],
    seen: Sequence[int],
) -> int | None:
    """FLOPs of choosing and merging; None if a method does not tell."""
    visual, total = load.tokens, 0
    for method in methods:  # embeddings are read behind what drops tokens at layer 0
        total += method.reading_flops(_sizes(shape, load, stages, method, seen[0], seen[0]))
    reaching = visual
    for stage in stages:
        sizes = _sizes(shape, load, stages, stage, reaching, seen[stage.layer])
        chosen = stage.flops(sizes)
        if chosen is None:
            return None
        if stage.own_layer:  # queries, keys and values of its layer, once more
            chosen += 2 * shape.layers[stage.layer].inputs * sizes.sequences * sizes.keys
        total, reaching = total + chosen, seen[stage.layer]
    return total


def _sizes(
    shape: ModelShape, load: Load, stages: Sequence[Compressor], stage: Compressor, reaching: int, kept: int
) -> StageSizes:
    tower, images = shape.tower, load.batch * load.images
    in_tower = isinstance(stage, TowerCompressor)
    layer = tower.layers[0] if in_tower else shape.layers[max(stage.layer - (not stage.own_layer), 0)]
    deepened = bool(stages) and stages[0].layer < shape.deepstack
    return StageSizes(
        images=images,
        whole=load.tokens,
        tokens=reaching,
        kept=kept,
        text=load.text,
        sequences=images if in_tower else load.batch,
        keys=reaching + tower.class_tokens if in_tower else load.text + load.images * reaching,
        heads=layer.heads,
        head_width=layer.head_width,
        width=tower.width if in_tower else shape.width,
        projected=shape.width,
        shared=0 if shape.clip is None else shape.clip.shared,
        blocks=tower.features,
        streams=1 + shape.deepstack * deepened,
    )


# -------------------------------------------------------------------------------------------------------- decoder


def _step(shape: ModelShape, load: Load, rows: Sequence[int], step: int) -> int:
    """FLOPs of the decode step that reads token `step` of the answer, from 0."""
    layers = sum(
        layer.flops(1, _held(layer, r + step) + 1) for layer, r in zip(shape.layers, rows, strict=True)
    )
    return load.batch * (layers + 2 * shape.width * shape.vocabulary)


def _held(layer: LayerShape, keys: int) -> int:
    """Keys that a cache keeps of so many."""
    return keys if layer.window is None else min(keys, layer.window - 1)


def _cache(shape: ModelShape, load: Load, rows: Sequence[int], new: int) -> tuple[int, ...]:
    """Bytes by layer, behind `new` decode steps."""
    return tuple(
        load.batch * load.bytes * layer.cached * _held(layer, r + new)
        for layer, r in zip(shape.layers, rows, strict=True)
    )


def _weights(shape: ModelShape, load: Load, method: TowerCompressor | None) -> dict[str, int]:
    parts = dict(shape.parameters)
    if method is not None and method.needs_text and shape.clip is not None:
        parts["text tower"] = shape.clip.parameters
    return {name: count * load.bytes for name, count in parts.items()}


def _largest(
    shape: ModelShape, load: Load, method: TowerCompressor | None, rows: Sequence[int], cache: Sequence[int]
) -> tuple[int, int]:
    """Bytes of activations and of the cache at the prefill's largest moment.

    In the MLP of a layer its two branches and their product are alive, what they are made from, the residual stream
    in front of the attention and behind it, and all through the decoder the embeddings of all rows, the image's
    features as the projector made them and as one tensor, and the tower's last two outputs. In the tower, three times
    the MLP's width and six times that of the stream. That is how LLaVA is written, and others much alike.
    """
    tower, images = shape.tower, load.batch * load.images
    assert load.tiles is not None
    patches = images * load.tiles * (_patches(tower, load.tokens, method) + tower.class_tokens)
    embeddings = load.batch * (load.text + load.images * load.tokens) * shape.width
    held = embeddings + 2 * images * load.tokens * shape.width + 2 * patches * tower.width
    moments = [(load.bytes * (embeddings + patches * (6 * tower.width + 3 * tower.inner)), 0)]
    for index, row in enumerate(rows):
        working = load.batch * row * (3 * shape.width + 3 * shape.inner)
        moments.append((load.bytes * (held + working), sum(cache[: index + 1])))
    return max(moments, key=sum)
