"""A cheap look at what has been learnt: packed questions about held-out scenes, scored with the answer given.

A question counts as right when every token of its answer is the most likely one. Because packed questions do not see
each other, this equals greedy decoding of each question asked alone, but for ties and rounding.
"""

from __future__ import annotations

from collections import defaultdict

import torch

from foveal.mini.learner import Learner, make_batch
from foveal.mini.packing import Codec, answer_logits, tower_states
from foveal.mini.questions import TYPES, Question, ask_all
from foveal.mini.scenes import make_scene
from foveal.mini.stages import Lesson

__all__ = ["probe"]


@torch.no_grad()
def probe(
    learner: Learner, codec: Codec, scenes: int = 96, batch: int = 32, length: int = 512
) -> dict[str, float]:
    """Accuracy by question type, and "overall" as the mean of the types, on validation scenes."""
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, scenes, batch):
        for kind, answers in _score(learner, codec, range(start, min(start + batch, scenes)), length).items():
            right[kind] += answers
    rates = {kind: sum(right[kind]) / max(len(right[kind]), 1) for kind in TYPES}
    return {**rates, "overall": sum(rates.values()) / len(rates)}


def _score(learner: Learner, codec: Codec, indices: range, length: int) -> dict[str, list[bool]]:
    asked: list[list[Question]] = []
    lessons = []
    for index in indices:
        scene = make_scene("validation", index)
        asked.append(list(ask_all(scene, per_type=2)))
        lessons.append(
            Lesson(scene.render(), scene, [codec.segment([(q.question, q.answer)]) for q in asked[-1]])
        )
    device = next(learner.parameters()).device
    data = make_batch(lessons, codec.prefix, length).to(device)
    assert data.pack is not None
    logits, targets, (rows, columns) = answer_logits(
        learner.model, tower_states(learner.model, data.pixels), data.pack
    )
    owners = data.pack.segments[rows, columns]
    wrong = set(zip(*(part[logits.argmax(-1) != targets].tolist() for part in (rows, owners)), strict=True))
    shown = set(zip(rows.tolist(), owners.tolist(), strict=True))
    scores: dict[str, list[bool]] = defaultdict(list)
    for row, number in sorted(shown):
        scores[asked[row][number - 1].type].append((row, number) not in wrong)
    return scores
