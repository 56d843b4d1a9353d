"""How fast a load can be at best on a device: each part takes as long as its products, or as moving its bytes.

    time of a part = max(FLOPs / peak, bytes / bandwidth)

It is a lower bound, but for experts, of which the most is taken that rows can touch. Kernels reach 50 to 90 % of a
peak, and starting them, the host's code and preprocessing come on top. What moves, at least:

    a decoder layer      its weights once, of experts those that so many rows can touch; the keys and values that it
                         leaves in the cache; the rows of the residual stream, in and out
    a decode step        all layers' weights and the head's, and the cache as it is by then
    head, projector      their weights, and what they put out
    towers               their weights: their rows weigh little beside their products
    selection            at each stage, the rows in front of it and those behind it

A layer's inner activations are taken to stay in the processor. Attention counts half of the rectangle that
`Cost.layers` holds, since a kernel may skip what a causal mask hides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from foveal.efficiency.cost import Cost, Load, resolve
from foveal.efficiency.hardware import Hardware
from foveal.efficiency.shape import LayerShape, ModelShape

__all__ = ["Times", "roofline"]


@dataclass(frozen=True)
class Times:
    """Seconds that a load takes at least, by part, for the whole batch.

    Attributes:
        tower: the vision tower.
        text_tower: what reads the question beside it.
        projector: from the tower's width to the decoder's.
        selection: choosing tokens, and gathering those that stay; of methods without formula the gathering alone.
        layers: the prefill by decoder layer.
        head: the first token's logits.
        steps: the decode steps, one for each further token.
    """

    tower: float
    text_tower: float
    projector: float
    selection: float
    layers: tuple[float, ...]
    head: float
    steps: tuple[float, ...]

    @property
    def prefill(self) -> float:
        """The language model's prefill."""
        return sum(self.layers) + self.head

    @property
    def first_token(self) -> float:
        """Until the first token (TTFT)."""
        return self.tower + self.text_tower + self.projector + self.selection + self.prefill

    @property
    def next_token(self) -> float:
        """A decode step, the median; 0 if the answer has one token."""
        return median(self.steps) if self.steps else 0.0

    @property
    def answer(self) -> float:
        """The whole answer."""
        return self.first_token + sum(self.steps)


def roofline(cost: Cost, shape: ModelShape, load: Load, hardware: Hardware) -> Times:
    """Work out the least time that a load takes.

    Args:
        cost: of the load, plain or compressed.
        shape: of the model.
        load: that `cost` was worked out for.
        hardware: where it runs.
    """
    load = resolve(shape, load)

    def seconds(flops: float, moved: float) -> float:
        return max(flops / hardware.peak, moved / hardware.bandwidth)

    row = shape.width * load.bytes
    before = _rows_before(cost, load)
    gathered = load.batch * row * sum(a + b for a, b in zip(before, cost.rows, strict=True) if a != b)
    projected = cost.images * cost.visual[0] * row
    return Times(
        tower=seconds(cost.tower, cost.weights["tower"]),
        text_tower=seconds(cost.text_tower, cost.weights.get("text tower", 0)),
        projector=seconds(cost.projector, cost.weights["projector"] + projected),
        selection=seconds(cost.selection or 0, gathered),
        layers=tuple(
            seconds(
                flops - load.batch * layer.scores(rows, rows) / 2,
                load.bytes * _touched(layer, load.batch * rows) + cache + 2 * load.batch * rows * row,
            )
            for layer, flops, rows, cache in zip(
                shape.layers, cost.layers, cost.rows, cost.cache, strict=True
            )
        ),
        head=seconds(cost.head, _head_bytes(shape, load)),
        steps=tuple(
            seconds(flops, moved)
            for flops, moved in zip(cost.steps, _step_bytes(cost, shape, load), strict=True)
        ),
    )


def _rows_before(cost: Cost, load: Load) -> list[int]:
    """Rows of a sample in front of each layer, before tokens are dropped there."""
    return [load.text + load.images * load.tokens, *cost.rows[:-1]]


def _touched(layer: LayerShape, rows: int) -> int:
    """Numbers of a layer that so many rows read: each may be sent to experts of its own."""
    return layer.attention + min(rows * layer.mlp, layer.parameters - layer.attention)


def _head_bytes(shape: ModelShape, load: Load) -> int:
    return load.bytes * shape.vocabulary * (shape.width + load.batch)


def _step_bytes(cost: Cost, shape: ModelShape, load: Load) -> Sequence[float]:
    """Bytes that each decode step moves: weights, and the cache, which grows evenly."""
    touched = sum(_touched(layer, load.batch) for layer in shape.layers)
    through = 2 * load.batch * load.bytes * shape.width * len(shape.layers)
    fixed = load.bytes * touched + _head_bytes(shape, load) + through
    held, grown = sum(cost.cache), sum(cost.cache_at_end) - sum(cost.cache)
    return [fixed + held + grown * (step + 1) / len(cost.steps) for step in range(len(cost.steps))]
