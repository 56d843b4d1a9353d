"""The demo's experiment: measure a model, fine-tune a copy plainly and one with EPIC, measure those."""

from __future__ import annotations

from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from foveal.cli.train import fine_tune
from foveal.compressors import Compressor, get
from foveal.evaluation import Estimate, EvaluationResult, evaluate
from foveal.mini import SceneConversations, SceneQuestions

__all__ = [
    "KEEP",
    "QUICK",
    "RECIPES",
    "TITLES",
    "TOKENS",
    "Outcome",
    "Plan",
    "Study",
    "fine_tune_by",
    "measure",
    "questions_of",
]

KEEP = 16
TOKENS = 144
LAYER = 2

# Chosen on validation scenes (studies/epic_recipe.py): in so few steps the paper's slow rise of the compression leaves
# too little time at the target, so the student's range opens at once and closes in on it.
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {"schedule": "none"},
    "EPIC": {"schedule": "tcd", "most_removed_start": 0.9, "least_removed_end": 0.89},
}

TITLES = {
    ("none", TOKENS): f"all {TOKENS} tokens",
    ("dart", KEEP): f"DART, {KEEP}",
    ("fastv", KEEP): f"FastV, {KEEP}",
    ("random", KEEP): f"Random, {KEEP}",
}


@dataclass(frozen=True)
class Plan:
    """How much the demo does.

    Attributes:
        questions: held-out test questions per measurement, one an image.
        budgets: tokens kept in the curve, beside all and 16.
        steps: optimizer steps of each fine-tuning.
        batch_size: conversations per step.
        learning_rate: at its peak.
    """

    questions: int = 360
    budgets: tuple[int, ...] = (48, 32, 9)
    steps: int = 100
    batch_size: int = 32
    learning_rate: float = 5e-4


QUICK = Plan(questions=40, budgets=(), steps=3, batch_size=8)


@dataclass(frozen=True)
class Outcome:
    """One model's results, by method and tokens kept: `results["dart", 16]`; `("none", 144)` is uncompressed."""

    results: dict[tuple[str, int], EvaluationResult]
    train_seconds: float = 0.0

    def curve(self) -> dict[int, Estimate]:
        """Accuracy with DART by tokens kept, the uncompressed model at the end."""
        return {
            tokens: found.accuracy
            for (name, tokens), found in self.results.items()
            if name in ("dart", "none")
        }


@dataclass(frozen=True)
class Study:
    """All that the demo measured: the model as bundled, after plain fine-tuning and after EPIC."""

    plan: Plan
    before: Outcome
    plain: Outcome
    epic: Outcome

    @property
    def models(self) -> dict[str, Outcome]:
        """The three models by the name they have in tables."""
        return {"before": self.before, "plain": self.plain, "EPIC": self.epic}

    def change(self, late: Outcome, early: Outcome) -> Estimate:
        """Paired difference in accuracy with DART at 16 tokens."""
        return late.results["dart", KEEP].difference(early.results["dart", KEEP])

    def verdict(self) -> str:
        """One honest sentence on what is EPIC's own part of the gain."""
        total, more, own = (
            self.change(self.epic, self.before),
            self.change(self.plain, self.before),
            self.change(self.epic, self.plain),
        )
        sure = "" if own.low > 0 or own.high < 0 else ", which this many questions cannot tell from none"
        full = self.epic.results["none", TOKENS].difference(self.before.results["none", TOKENS])
        return (
            f"With {KEEP} of {TOKENS} tokens EPIC changed accuracy by {total.points()} points, plain fine-tuning of "
            f"equally many steps by {more.points()}. So {own.points()} points are not just more training{sure}. "
            f"With all tokens EPIC changed it by {full.points()}."
        )


def questions_of(plan: Plan, seed: int) -> Any:
    """The held-out questions, the same for every measurement."""
    return SceneQuestions("test", plan.questions, seed=seed)


def measure(
    model: Any, processor: Any, questions: Any, plan: Plan, seed: int
) -> dict[tuple[str, int], EvaluationResult]:
    """Every measurement of one model."""
    wanted = [("none", TOKENS), ("dart", KEEP), ("fastv", KEEP), ("random", KEEP)]
    wanted += [("dart", tokens) for tokens in plan.budgets]
    return {
        (name, tokens): evaluate(
            model,
            processor,
            questions,
            None if name == "none" else _method(name, tokens, seed),
            batch_size=40,
            max_new_tokens=8,
            seed=seed,
            label=f"   measuring {name} with {tokens} tokens",
        )
        for name, tokens in wanted
    }


def _method(name: str, tokens: int, seed: int) -> Compressor:
    options = {"seed": seed} if name == "random" else {}
    return get(name, keep=tokens, layer=LAYER, **options)


def fine_tune_by(pupil: Any, processor: Any, plan: Plan, *, recipe: str, seed: int, label: str) -> float:
    """Train `pupil` in place by one of RECIPES; returns the seconds it took."""
    with TemporaryDirectory() as folder:
        return fine_tune(
            pupil,
            processor,
            SceneConversations("train", plan.steps * plan.batch_size, seed=1023 - seed),
            label=label,
            folder=folder,
            method="dart",
            layer=LAYER,
            **RECIPES[recipe],
            max_steps=plan.steps,
            per_device_train_batch_size=plan.batch_size,
            learning_rate=plan.learning_rate,
            seed=seed,
        )
