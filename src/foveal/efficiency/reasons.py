"""Why a gain is smaller than FLOPs promise: a sentence for each reason that holds, with its numbers and its limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from foveal.compressors import Compressor
from foveal.efficiency.hardware import GIB
from foveal.efficiency.returns import Case, Point, products_alone

__all__ = ["REASONS", "Reason", "Setting", "reasons"]

_KERNELS = 15  # of a decoder layer, run eagerly
_HELD_BACK = 0.9  # of the speed-up that products alone allow


@dataclass(frozen=True)
class Setting:
    """A method at a budget, beside the plain model.

    Attributes:
        case: where.
        method: the method.
        plain: the plain model.
        compressed: under the method.
    """

    case: Case
    method: Compressor
    plain: Point
    compressed: Point

    @classmethod
    def of(cls, case: Case, method: Compressor) -> Setting:
        """Work both out."""
        return cls(case, method, case.at(None), case.at(method))


@dataclass(frozen=True)
class Reason:
    """Something that holds a gain back.

    Attributes:
        name: of the reason.
        sentence: what it is, with numbers.
        limit: how many times better it can get at most, whatever else is done; None where no such number belongs.
    """

    name: str
    sentence: str
    limit: float | None = None


def reasons(setting: Setting) -> list[Reason]:
    """All that hold."""
    found = (reason(setting) for reason in REASONS.values())
    return [reason for reason in found if reason is not None]


def _bandwidth(setting: Setting) -> Reason | None:
    """The compressed prefill waits for the weights, which have to be read however few rows there are."""
    case, batch = setting.case, setting.case.load.batch
    gained = setting.plain.times.prefill / setting.compressed.times.prefill
    promised = products_alone(case, setting.method)
    if gained >= _HELD_BACK * promised:
        return None
    weights = setting.plain.cost.weights["language model"] / 1e9
    sentence = (
        f"at batch {batch} the prefill is bound by bandwidth: {_number(weights)} GB of weights are read however few "
        f"tokens there are, so it gets {_factor(gained)} faster at most, not the {_factor(promised)} of its FLOPs"
    )
    return Reason("bandwidth", sentence, gained)


def _tower(setting: Setting) -> Reason | None:
    """What is in front of the decoder dominates the time to first token (Amdahl's law)."""
    whole, times = setting.plain.times.first_token, setting.compressed.times
    outside = times.tower + times.projector
    limit = whole / outside
    if limit >= 3:
        return None
    sentence = (
        f"tower and projector are {100 * outside / whole:.0f} % of the plain time to first token and stay: it gets "
        f"{_factor(limit)} faster at most"
    )
    return Reason("tower", sentence, limit)


def _answer(setting: Setting) -> Reason | None:
    """Decoding dominates the answer's time, and reads the weights at every step."""
    plain, steps = setting.plain.times, sum(setting.compressed.times.steps)
    share = sum(plain.steps) / plain.answer
    if share < 0.5:
        return None
    limit = plain.answer / steps
    sentence = (
        f"decoding {setting.case.load.answer} tokens is {100 * share:.0f} % of the answer's time: end to end it gets "
        f"{_factor(limit)} faster at most"
    )
    return Reason("answer", sentence, limit)


def _keep(setting: Setting) -> Reason | None:
    """Hardly anything is dropped."""
    left, visual = setting.compressed.visual, setting.case.visual
    if left < 0.75 * visual:
        return None
    return Reason("keep", f"{left} of {visual} visual tokens stay: there is little to gain")


def _layer(setting: Setting) -> Reason | None:
    """Tokens are dropped late."""
    seen, visual = setting.compressed.cost.visual, setting.case.visual
    first = next((place for place, count in enumerate(seen) if count < visual), len(seen))
    if 3 * first < len(seen) or first == len(seen):
        return None
    limit = len(seen) / first
    sentence = (
        f"{first} of {len(seen)} layers see all tokens: the prefill gets {_factor(limit)} faster at most; drop tokens "
        "at an earlier layer"
    )
    return Reason("layer", sentence, limit)


def _text(setting: Setting) -> Reason | None:
    """Most rows are text, which is never dropped."""
    load, visual = setting.case.load, setting.case.visual * setting.case.load.images
    rows = load.text + visual
    if visual > rows / 2:
        return None
    limit = rows / load.text
    sentence = f"{load.text} of {rows} rows are text: the prefill gets about {_factor(limit)} faster at most"
    return Reason("text", sentence, limit)


def _selection(setting: Setting) -> Reason | None:
    """Choosing tokens costs a good part of what it saves, or more."""
    times = setting.compressed.times
    added = times.selection + times.text_tower
    saved = setting.plain.times.prefill - times.prefill
    if added < 0.1 * saved or saved <= 0:
        return None
    name = "choosing tokens" if times.text_tower == 0 else "choosing tokens, with a text tower,"
    if added >= saved:
        return Reason(
            "selection", f"{name} costs more time than it saves: {_ms(added)} for {_ms(saved)}", 1.0
        )
    share = 100 * added / saved
    return Reason("selection", f"{name} takes {_ms(added)}, {share:.0f} % of the time that it saves")


def _memory(setting: Setting) -> Reason | None:
    """Weights are nearly all of the memory."""
    plain = setting.plain.cost
    weights, least = sum(plain.weights.values()), setting.compressed.cost.memory
    if least < 0.9 * plain.memory:
        return None
    sentence = (
        f"weights are {100 * weights / plain.memory:.0f} % of the {_number(plain.memory / GIB)} GiB of memory: it "
        f"falls by {100 * (1 - least / plain.memory):.2g} %"
    )
    return Reason("memory", sentence, plain.memory / least)


def _launch(setting: Setting) -> Reason | None:
    """A layer is over before its kernels could be started one by one."""
    times, device = setting.compressed.times, setting.case.hardware
    each, start = times.layers[-1], _KERNELS * device.launch
    if each >= start:
        return None
    sentence = (
        f"a layer of the compressed prefill takes {_ms(each)} at best, and starting its {_KERNELS} kernels or so one "
        f"by one about {_ms(start)}: expect less than these times promise unless it is compiled or batched"
    )
    return Reason("launch", sentence)


REASONS: dict[str, Callable[[Setting], Reason | None]] = {
    "bandwidth": _bandwidth,
    "tower": _tower,
    "answer": _answer,
    "keep": _keep,
    "layer": _layer,
    "text": _text,
    "selection": _selection,
    "memory": _memory,
    "launch": _launch,
}


def _factor(value: float) -> str:
    return f"{value:.2f}x" if value < 2 else f"{value:.1f}x"


def _ms(seconds: float) -> str:
    return f"{_number(1000 * seconds)} ms"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
