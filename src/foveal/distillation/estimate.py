"""What a training run needs, from the model's shape alone: parameters, memory, steps, FLOPs and hours.

Memory of one process, in bytes, is

    weights + gradients + optimizer                    (shared out over several processes by ZeRO-3 or FSDP2)
    + casts                                            (weights in the precision of products)
    + max(batch * kept + logits, batch * layers)       (activations)

at the schedule's most demanding step. `kept` is what the forward leaves behind for the backward pass of a conversation:
the inside of every decoder layer, or only its input where activations are computed anew (checkpointing). `logits` are
there at its end only, for as many answers as are in memory at once. `layers` is the peak behind that, when the backward
pass has come to some layer: what is still kept, and that layer's inside and gradients. Layers below the compression see
all rows, those above it the student's; the teacher's rows leave nothing behind.

FLOPs are `foveal.efficiency.cost`'s; the backward pass counts twice its forward, once if the weights are frozen (LoRA),
and once more with checkpointing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import ceil
from statistics import mean

from torch import nn

from foveal.compressors import Compressor
from foveal.distillation.adapters import adapted_layers
from foveal.distillation.config import EpicConfig
from foveal.distillation.lockstep import can_share
from foveal.distillation.recipe import Recipe
from foveal.distillation.trace import plans
from foveal.distillation.trainable import freeze
from foveal.efficiency.configs import USUAL_SIDE, empty_model, read_config
from foveal.efficiency.cost import Load, cost
from foveal.efficiency.hardware import GIB, HARDWARE, Hardware
from foveal.efficiency.shape import ModelShape, model_shape
from foveal.engine.families import Parts, find_parts

__all__ = ["DEVICES", "MFU", "Estimate", "Memory", "Part", "estimate"]

MFU = 0.3
"""Share of a device's peak that training is assumed to reach, recomputation counted as work."""
_RESERVED = 1.0 * GIB  # the driver's context and the libraries' workspaces
_FRAGMENTED = 1.08  # what the allocator holds beyond what is used
_SAMPLED = 200  # steps of the schedule that are looked at


DEVICES = tuple(HARDWARE[name] for name in ("rtx4090", "a100", "h100", "h200"))
"""What a dry run tells about."""

Pair = tuple[Compressor, Compressor | None]


@dataclass(frozen=True)
class Part:
    """A part of the model.

    Attributes:
        parameters: how many it has.
        trained: how many learn, adapters included.
    """

    parameters: int
    trained: int


@dataclass(frozen=True)
class Memory:
    """Bytes in one process.

    Attributes:
        weights, gradients, optimizer: of this process's share.
        casts: weights in the precision of products, or layers gathered from other processes.
        kept: of one conversation of `max_length` tokens, at the end of the forward.
        layers: of the same, at the peak behind that.
        logits: of the answers that are in memory at once, and their head's gradient.
        average: activations of the recipe's batch of such conversations, mean over the schedule.
    """

    weights: float
    gradients: float
    optimizer: float
    casts: float
    kept: float
    layers: float
    logits: float
    average: float

    def activations(self, batch: int) -> float:
        """Of a batch of so many of the longest conversations, at the schedule's most demanding step."""
        return max(batch * self.kept + self.logits, batch * self.layers)

    def total(self, batch: int) -> float:
        """Everything."""
        return self.weights + self.gradients + self.optimizer + self.casts + self.activations(batch)

    def fits(self, batch: int, device: Hardware) -> bool:
        """Whether a device has room for that, its reserve included."""
        return self.total(batch) * _FRAGMENTED + _RESERVED <= device.memory * GIB

    def largest_batch(self, device: Hardware) -> int:
        """The most conversations per micro-batch that fit; 0 if not even one does."""
        room = (device.memory * GIB - _RESERVED) / _FRAGMENTED - (self.total(0) - self.logits)
        return max(0, int(min((room - self.logits) / self.kept, room / self.layers)))


@dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Attributes:
        parts: tower, projector and language model.
        memory: of one process.
        processes: how many share the work.
        batch_size: conversations per micro-batch and process.
        per_step: conversations per optimizer step.
        steps: optimizer steps; None if neither the data nor max_steps say.
        flops: per optimizer step, over all processes.
        assumed: the numbers that were taken for granted.
    """

    parts: dict[str, Part]
    memory: Memory
    processes: int
    batch_size: int
    per_step: int
    steps: int | None
    flops: float
    assumed: dict[str, int]

    def hours(self, device: Hardware) -> float | None:
        """Time on as many of these as there are processes, at `MFU`."""
        if self.steps is None:
            return None
        return self.steps * self.flops / (self.processes * device.peak * MFU) / 3600


def estimate(recipe: Recipe, conversations: int | None = None) -> Estimate:
    """Work out what a recipe needs; no weights are read.

    Args:
        recipe: what to do.
        conversations: in the data; None if unknown.

    Raises:
        FovealError: the model's config cannot be read, or the options do not fit it.
    """
    run, config = recipe.run, recipe.config
    model = empty_model(read_config(run.model))
    shape = _Shape.of(model, recipe)
    processes = run.processes or config.world_size
    batch = config.per_device_train_batch_size
    if config.tokens_per_batch is not None:
        batch = max(1, config.tokens_per_batch // config.max_length)
    accumulation = run.accumulation(batch, processes) or config.gradient_accumulation_steps
    per_step = batch * processes * accumulation
    steps = config.max_steps if config.max_steps > 0 else None
    if steps is None and conversations is not None:
        steps = ceil(ceil(conversations / per_step) * config.num_train_epochs)
    draw = random.Random(config.seed)
    sampled = [config.make_pair(plan, draw) for _, plan in plans(config, shape.depth, _SAMPLED)]
    return Estimate(
        parts=shape.parts,
        memory=_memory(shape, config, sampled, processes, batch),
        processes=processes,
        batch_size=batch,
        per_step=per_step,
        steps=steps,
        flops=per_step * mean(_flops(shape, config, pair) for pair in sampled),
        assumed={
            "visual_tokens": shape.visual,
            "text_tokens": shape.text,
            "answer_tokens": shape.text // 2,
            "max_length": config.max_length,
        },
    )


@dataclass(frozen=True)
class _Shape:
    """The sizes that the formulas need; bytes a number of weights, of what learns, of products."""

    model: ModelShape
    parts: dict[str, Part]
    layer: int  # parameters of a decoder layer, all experts included
    visual: int
    text: int
    longest: int
    weight_bytes: int
    learnt_bytes: int
    product_bytes: int
    adapted: bool
    dropout: bool

    @classmethod
    def of(cls, model: nn.Module, recipe: Recipe) -> _Shape:
        config, run = recipe.config, recipe.run
        parts = find_parts(model)
        mixed = config.bf16 or config.fp16
        weight = 4 if run.dtype == "float32" else 2
        shape = model_shape(model)
        visual = run.visual_tokens or shape.tile_tokens or USUAL_SIDE**2
        return cls(
            model=shape,
            parts=_count(model, parts, config),
            layer=_size(parts.layers) // len(parts.layers),
            visual=visual,
            text=run.text_tokens,
            longest=max(config.max_length, visual + 1),
            weight_bytes=weight,
            learnt_bytes=4 if config.lora_rank is not None and mixed else weight,
            product_bytes=2 if mixed else weight,
            adapted=config.lora_rank is not None,
            dropout=config.lora_dropout > 0,
        )

    @property
    def depth(self) -> int:
        return len(self.model.layers)

    @property
    def width(self) -> int:
        return self.model.width

    @property
    def vocabulary(self) -> int:
        return self.model.vocabulary

    def load(self, rows: int) -> Load:
        """A conversation of so many tokens with one image."""
        return Load(text=rows - self.visual, visual=self.visual, answer=1)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _count(model: nn.Module, parts: Parts, config: EpicConfig) -> dict[str, Part]:
    freeze(model, config)
    projector = {id(p): p for module in parts.projectors for p in module.parameters()}
    tower = {id(p): p for p in parts.tower.parameters() if id(p) not in projector}
    language = {id(p): p for p in model.parameters() if id(p) not in projector and id(p) not in tower}
    found = {"tower": tower, "projector": projector, "language model": language}
    counted = {
        name: Part(
            sum(p.numel() for p in group.values()), sum(p.numel() for p in group.values() if p.requires_grad)
        )
        for name, group in found.items()
    }
    if config.lora_rank is not None:
        rank = config.lora_rank
        layers = adapted_layers(model, config.lora_targets).values()
        added = sum(rank * (x.in_features + x.out_features) + config.dora * x.out_features for x in layers)
        counted["language model"] = Part(counted["language model"].parameters + added, added)
    return counted


def _memory(shape: _Shape, config: EpicConfig, sampled: list[Pair], processes: int, batch: int) -> Memory:
    total = sum(part.parameters for part in shape.parts.values())
    trained = sum(part.trained for part in shape.parts.values())
    adapters = trained if shape.adapted else 0
    weights: float = total * shape.weight_bytes + adapters * (shape.learnt_bytes - shape.weight_bytes)
    if config.teacher_model is not None:
        weights += total * shape.weight_bytes
    casts = 0.0
    if processes > 1:
        casts = shape.product_bytes * (2 * shape.layer + shape.vocabulary * shape.width)
    elif shape.product_bytes < shape.learnt_bytes:
        casts = trained * shape.product_bytes
    peaks = [_activations(shape, config, student) for student, _ in sampled]
    learnt_head = config.train_language_model and not shape.adapted
    head = (
        learnt_head * shape.product_bytes * shape.vocabulary * shape.width
    )  # its gradient, before it is added
    answers = min(config.logit_rows, batch * (shape.longest - shape.visual) // 2)
    logits = float(answers * shape.vocabulary * _logit_bytes(shape, config, sampled) + head)
    return Memory(
        weights=weights / processes,
        gradients=trained * shape.learnt_bytes / processes,
        optimizer=trained
        * _optimizer_bytes(str(getattr(config.optim, "value", config.optim)), shape)
        / processes,
        casts=casts,
        kept=max(kept for kept, _ in peaks),
        layers=max(layers for _, layers in peaks),
        logits=logits,
        average=mean(max(batch * kept + logits, batch * layers) for kept, layers in peaks),
    )


def _optimizer_bytes(name: str, shape: _Shape) -> int:
    """Bytes of state for every number that learns."""
    states = 1 if "lion" in name else 2
    if "adafactor" in name or "sgd" in name:
        return 0
    if "8bit" in name:
        return states
    return 1 if "4bit" in name else states * shape.learnt_bytes


def _activations(shape: _Shape, config: EpicConfig, student: Compressor) -> tuple[float, float]:
    """Bytes of the longest conversation: at the end of the forward, and at the peak of the backward behind that."""
    inside = _inside(shape)
    each = _residual(shape) * shape.width if config.gradient_checkpointing else inside
    anew = inside if config.gradient_checkpointing else 0.0
    gradients = 3 * shape.product_bytes * shape.model.inner + 2 * _residual(shape) * shape.width
    kept = float(shape.longest * _residual(shape) * shape.width)  # embeddings, images among them
    peaks = []
    for count in cost(shape.model, student, shape.load(shape.longest)).rows:
        kept += count * each
        peaks.append(kept + count * (anew + gradients))
    return kept, max(peaks)


def _residual(shape: _Shape) -> int:
    """Bytes a number of hidden states between layers: under autocast they have the weights' precision."""
    return shape.weight_bytes


def _inside(shape: _Shape) -> float:
    """Bytes a row that a decoder layer keeps for its backward pass."""
    size, width, inner = shape.product_bytes, shape.width, shape.model.inner
    layer = shape.model.layers[0]
    heads, shared_heads = layer.heads * layer.head_width, layer.key_heads * layer.head_width
    # Norms keep their input in float32; attention its queries, keys, values and output; the MLP both its branches.
    common = 8 * width + size * (2 * heads + 2 * shared_heads + 3 * inner)
    if shape.adapted:
        # What learns are adapters: each linear layer's keeps an input of its own, with the mask of its dropout.
        return common + (size + shape.dropout) * (5 * width + heads + inner)
    # Inputs of q, k, v, gate and up are cast one by one, or shared; norms keep what they multiply with their weight.
    inputs = 5 if size < shape.weight_bytes else 2
    return common + 2 * shape.weight_bytes * width + size * (inputs * width + inner)


def _logit_bytes(shape: _Shape, config: EpicConfig, sampled: list[Pair]) -> int:
    """Bytes a number of the logits at the losses' peak: in both precisions, as log-probabilities, with gradients."""
    if all(teacher is None for _, teacher in sampled):
        return 12
    return 24 + 2 * shape.product_bytes + (12 if config.divergence == "jsd" else 0)


def _flops(shape: _Shape, config: EpicConfig, pair: Pair) -> float:
    """Of one conversation of usual length."""
    (student, teacher), load = pair, shape.load(shape.visual + shape.text)
    learnt = cost(shape.model, student, load)
    head = 2.0 * shape.width * shape.vocabulary * (shape.text // 2)
    times = 1 + (1 if shape.adapted else 2) + (1 if config.gradient_checkpointing else 0)
    work = times * sum(learnt.layers) + 3 * head + 3 * learnt.projector
    work += learnt.tower * (3 if config.tower_learning_rate else 1)
    if teacher is None:
        return work
    taught = cost(shape.model, teacher, load)
    if config.teacher_model is None and can_share(student, teacher):
        return work + head + sum(taught.layers[student.layer :])
    return work + head + taught.tower + taught.projector + sum(taught.layers)
