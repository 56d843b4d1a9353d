"""What papers call FLOPs, KV cache and prefill time, each under the paper's name, so that their tables can be compared.

`cost` says what a model does. Papers count otherwise, and seldom say how. What is here reproduces the numbers that
are quoted; where a rule was found by fitting, its docstring says so, and how far off it stays. All of them leave out
the vision tower, the projector, the text tower and the choosing, and none is a measurement.

LLaVA-1.5-7B with 576 visual and 62 text tokens, and 64 of them from layer 2 on, beside `cost`:

                          all tokens        64 kept      how
    cost, KV cache        334.5 MB          82.8 MB      what a DynamicCache holds
    cost, prefill         8.64 TFLOPs       2.10         with the logits of all rows
    EPIC, KV cache        367.2 MB          40.8         published 40.9
    EPIC, FLOPs           9.3 T             1.5          published, with six more budgets
    PruMerge, FLOPs       9.3 T             0.91         at 699 and 70 rows; published for about 40 visual tokens
    PruMerge, prefill     88.6 ms           15.4         published 15.3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foveal.efficiency.shape import LayerShape, ModelShape

__all__ = ["EPIC_ROWS", "Viewed", "epic_cache", "epic_flops", "epic_rows", "fastv_flops", "llm_viewer"]

EPIC_ROWS = 700.4  # of the uncompressed prompt, its 576 visual tokens included
_EPIC_VISUAL = 576


def epic_rows(visual: int) -> float:
    """Rows that EPIC's efficiency table (arXiv 2510.00515, 8,910 questions of POPE) takes `visual` tokens for.

    Found by fitting: the whole prompt, its text too, shrinks as its visual tokens do. 367.2 MB of cache are 700.4
    rows of a LLaVA-1.5-7B, and with these all eight points of the paper's curve of FLOPs come out (`epic_flops`).
    POPE's prompts have about 62 rows of text, not 124, and text is never dropped.
    """
    return EPIC_ROWS * visual / _EPIC_VISUAL


def epic_cache(shape: ModelShape, visual: int, number: int = 2) -> float:
    """Bytes of KV cache as EPIC counts them: `epic_rows` in every layer, 0.6375 MB a visual token.

    The layers in front of the compression are taken to hold as little as those behind it. 576 tokens are the published
    367.2 MB; 64 are 40.80 MB, where the paper has 40.9. No straight line through zero gives both: 40.9 is 78 whole
    rows, and 367.2 lies between 700 (367.0) and 701 (367.5).

    Args:
        shape: of the model.
        visual: tokens kept of an image.
        number: bytes of one.
    """
    return sum(layer.cached for layer in shape.layers) * number * epic_rows(visual)


def epic_flops(shape: ModelShape, visual: int, layer: int = 2) -> float:
    """FLOPs as EPIC counts them: all rows in front of `layer`, `epic_rows` from there on, no logits.

    Published for 576, 256, 128, 64, 36, 18, 9 and 2 tokens: 9.3, 4.4, 2.5, 1.5, 1.1, 0.8, 0.7 and 0.6 T, all of which
    come out. Unlike in `epic_cache`, the layers in front of the compression are counted in full.

    Args:
        shape: of the model.
        visual: tokens kept of an image.
        layer: from which on the others are dropped.
    """
    rows = [EPIC_ROWS] * layer + [epic_rows(visual)] * (len(shape.layers) - layer)
    return sum(_flops(each, count) for each, count in zip(shape.layers, rows, strict=True))


def fastv_flops(shape: ModelShape, rows: Sequence[int]) -> float:
    """FLOPs of an average layer as FastV (arXiv 2403.06764) counts them: 4 n d^2 + 2 n^2 d + 2 n d m.

    A product and its addition count as one, and the MLP as two matrices, where LLaMA's has three: less than half of
    what `cost` says. Published for LLaVA-1.5-13B are 154.6 B, and 84.6 B with half of 576 visual tokens dropped at
    layer 2, which are 612 and 324 rows: the 45 % of the abstract.

    Args:
        shape: of the model; d is its width, m the widest its MLP gets.
        rows: of a sample, by layer.
    """
    width, inner = shape.width, shape.inner
    return sum(4 * n * width**2 + 2 * n**2 * width + 2 * n * width * inner for n in rows) / len(rows)


@dataclass(frozen=True)
class Viewed:
    """What LLM-Viewer's roofline says of a prefill.

    Attributes:
        flops: of the language model.
        bytes: read and written.
        seconds: the sum over operations of what limits each.
    """

    flops: float
    bytes: float
    seconds: float


def llm_viewer(
    shape: ModelShape, rows: int, peak: float = 112e12, bandwidth: float = 900e9, number: int = 2
) -> Viewed:
    """A prefill by the roofline of LLM-Viewer (arXiv 2402.16363), on a V100 by default.

    Every operation is a kernel of its own that reads and writes all it touches, the matrix of attention scores too.

    PruMerge (arXiv 2403.15388) took its table from it, as its author says (42Shawn/LLaVA-PruMerge, issue 4), but not
    at which lengths. Found by fitting: 699 rows give the published 9.3 T and 88.6 ms, 70 rows the 0.91 T, and 15.4 ms
    where 15.3 are published. No prompt whose text is the same both times does: 576 visual tokens leave 123 rows of
    text, and 70 rows with the paper's 40 visual tokens leave 30.

    TRIM (arXiv 2409.10994) states -67 % time and -30 % memory at -79 % tokens, and no way of measuring. With 123 rows
    of text its 121 of 576 tokens are -66.0 % time and -32.3 % bytes here: near, and no proof.

    Args:
        shape: of the model; its layers are taken to be alike.
        rows: of the prompt.
        peak: FLOPs a second.
        bandwidth: bytes a second.
        number: bytes of one.
    """
    layer, width, inner = shape.layers[0], shape.width, shape.inner
    queries, keys = layer.heads * layer.head_width, layer.key_heads * layer.head_width
    scores, state, depth = layer.heads * rows**2, rows * width, len(shape.layers)
    linear = [(width, queries), (width, keys), (width, keys), (queries, width)]
    linear += [(width, inner), (width, inner), (inner, width)]
    # (how often, FLOPs, numbers read and written)
    work = [(depth, 2 * rows * a * b, a * b + rows * (a + b)) for a, b in linear]
    work += [(2 * depth, 2 * queries * rows**2, scores + 2 * rows * queries)]  # with keys, and with values
    work += [(depth, 5 * scores, 2 * scores)]  # soft-max
    work += [(2 * depth, 7 * state, 2 * state), (2 * depth, state, 2 * state)]  # norms, additions
    work += [(depth, 2 * state, 3 * state)]  # activation
    work += [(1, 2 * width * shape.vocabulary, (width + 1) * shape.vocabulary + width)]  # logits of one row
    return Viewed(
        flops=sum(times * flops for times, flops, _ in work),
        bytes=sum(times * numbers * number for times, _, numbers in work),
        seconds=sum(
            times * max(flops / peak, numbers * number / bandwidth) for times, flops, numbers in work
        ),
    )


def _flops(layer: LayerShape, rows: float) -> float:
    """Of a layer, as `LayerShape.flops` of rows that need not be whole."""
    return 2 * layer.matrices * rows + 4 * layer.heads * layer.head_width * rows**2
