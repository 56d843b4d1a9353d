"""Compare compressed models of any family with the masked oracle, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

import foveal
from support import families
from support.families import FIRST_TEXT, FamilyCase, Sample
from support.oracle import dropped_columns, hidden_columns

TOLERANCE = 1e-10
STEPS = 8

Inputs = dict[str, Tensor]
Hidden = list[tuple[int, Tensor]]


def hidden_by(run: foveal.Run, visual: Tensor) -> Hidden:
    """What the oracle hides: of each stage, (layer, (batch, rows) bool)."""
    return [(stage.layer, dropped_columns(visual, stage.kept)) for stage in run.stages]


def longer(hidden: Hidden, rows: int) -> Hidden:
    """The same for a sequence that goes on to `rows`."""
    return [(layer, pad(columns, (0, rows - columns.shape[1]))) for layer, columns in hidden]


def oracle(model: Any, inputs: Inputs, hidden: Hidden) -> Tensor:
    """Logits of the unmodified model without cache, whose deeper layers do not see the hidden columns."""
    with hidden_columns(model.get_decoder().layers, hidden):
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits


def generate(model: Any, inputs: Inputs, **options: Any) -> tuple[Any, Tensor]:
    """What generate returns, and (batch, steps, vocabulary) logits in full precision.

    Generate itself rounds the logits it returns to float32; a hook on the model would be compiled with it.
    """
    steps: list[Tensor] = []
    update = model._update_model_kwargs_for_generation

    def note(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(outputs.logits[:, -1])
        return update(outputs, *args, **kwargs)

    options = {"do_sample": False, "max_new_tokens": STEPS, "return_dict_in_generate": True, **options}
    model._update_model_kwargs_for_generation = note
    try:
        out = model.generate(**inputs, **options)
    finally:
        del model._update_model_kwargs_for_generation
    return out, torch.stack(steps, dim=1)


def compare_prefill(family: str, model: Any, inputs: Inputs, run: foveal.Run) -> float:
    """A forward of a compressed model against the oracle, which ends `run`; returns the largest difference."""
    logits = model(**inputs).logits
    hidden = hidden_by(run, families.visual(family, inputs))
    run.detach()
    dropped = hidden[-1][1]
    assert not logits[dropped].any()
    alive = inputs["attention_mask"].bool() & ~dropped
    return float((logits - oracle(model, inputs, hidden))[alive].abs().max())


def compare_decode(
    family: str,
    model: Any,
    inputs: Inputs,
    hidden: Hidden,
    tokens: Tensor,
    steps: Tensor,
    greedy: bool = True,
) -> float:
    """Logits of generate's steps against the oracle on the whole sequence; returns the largest difference."""
    whole = families.extended(family, inputs, tokens)
    count = steps.shape[1]
    reference = oracle(model, whole, longer(hidden, tokens.shape[1]))[:, -count - 1 : -1]
    if greedy:
        chosen = reference[..., FIRST_TEXT:].argmax(-1) + FIRST_TEXT
        assert torch.equal(tokens[:, -count:], chosen)
    return float((steps - reference).abs().max())


def along_beam(out: Any, steps: Tensor, row: int) -> tuple[Tensor, int]:
    """(steps, vocabulary) logits of the beams that became sequence `row`, and the sample it started from."""
    ancestors = out.beam_indices[row][out.beam_indices[row] >= 0]
    return steps[ancestors, torch.arange(len(ancestors))], int(ancestors[0])


def compare_alone(
    case: FamilyCase,
    model: Any,
    sample: Sample,
    tokens: Tensor,
    steps: Tensor,
    stages: list[foveal.Stage],
    row: int,
) -> float:
    """Compare one generated sequence with the oracle on its sample alone, without padding."""
    inputs = case.collate([sample])
    count, prompt = len(steps), len(sample.ids)
    padding = len(tokens) - count - prompt
    visual = families.visual(case.name, inputs)
    hidden = [(stage.layer, dropped_columns(visual, [stage.kept[row] - padding])) for stage in stages]
    return compare_decode(case.name, model, inputs, hidden, tokens[None, padding:], steps[None], greedy=False)
