"""The model card of a trained checkpoint: what it is, how to load it, and what it was trained on, how and where."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from foveal.distillation.recipe import Recipe
from foveal.distillation.trace import trace

__all__ = ["TrainingFacts", "model_card"]


@dataclass(frozen=True)
class TrainingFacts:
    """What is known once a run has ended.

    Attributes:
        conversations: in the data.
        skipped: how many of them were bad and left out.
        steps: optimizer steps.
        per_step: what an optimizer step sees, over all processes, such as "128 conversations".
        seconds: of this run, from its last start on.
        losses: averages over the last tenth of the run: sft_loss, kd_loss, eval_loss where there are any.
        depth: number of decoder layers.
        provenance: see `foveal.evaluation.provenance`.
    """

    conversations: int
    skipped: int
    steps: int
    per_step: str
    seconds: float
    losses: dict[str, float]
    depth: int
    provenance: dict[str, Any] = field(default_factory=dict)


def model_card(name: str, recipe: Recipe, facts: TrainingFacts) -> str:
    """The card as Markdown with Hugging Face's front matter. Names files, but no folders of this machine.

    Args:
        name: of the checkpoint.
        recipe: what it was trained by.
        facts: how that went.
    """
    parts = [
        _front_matter(recipe),
        f"# {name}\n",
        _what(recipe),
        _use(name),
        _training(recipe, facts),
        _schedule(recipe, facts),
        _provenance(facts),
        "## Licence\n\nThe licence of the base model applies; that of the training data may, too.\n",
    ]
    return "\n".join(parts)


def _base(recipe: Recipe) -> tuple[str, bool]:
    """The base model's name, and whether it is one on the hub."""
    source = recipe.run.model
    if source is None:
        return "The small model bundled with Foveal", False
    on_hub = source.count("/") == 1 and not source.startswith((".", "/", "~")) and not Path(source).exists()
    return (source, True) if on_hub else (Path(source).resolve().name, False)


def _front_matter(recipe: Recipe) -> str:
    base, on_hub = _base(recipe)
    methods = recipe.config.methods
    meta: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    if on_hub:
        adapted = recipe.config.lora_rank is not None
        meta |= {"base_model": base, "base_model_relation": "adapter" if adapted else "finetune"}
    meta["tags"] = ["foveal", "epic", "visual-token-compression", *methods]
    if recipe.config.lora_rank is not None:
        meta["tags"].append("lora")
    return f"---\n{yaml.safe_dump(meta, sort_keys=False)}---\n"


def _what(recipe: Recipe) -> str:
    compressor = recipe.config.make_compressor()
    card = compressor.card
    assert card is not None  # EpicConfig knows methods by the name on their card
    where = "before the decoder" if card.stage == "pre-LM" else "inside the decoder"
    if "layer" in compressor.options():
        where = f"from decoder layer {compressor.layer} on"
    return (
        f"{_base(recipe)[0]}, trained with [EPIC](https://arxiv.org/abs/2510.00515) to stay accurate when most visual "
        f"tokens are dropped.\nIts config names the compression that it is meant for: {card.title}, "
        f"{_percent(recipe.config.keep)} of the visual tokens kept {where}.\n"
    )


def _use(name: str) -> str:
    return f"""## Use

With Foveal, compressed:

```python
import foveal

model, processor = foveal.load("{name}")  # foveal.detach(model) gives all tokens back
```

Without Foveal it is an ordinary checkpoint, which sees all visual tokens:

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}")
processor = AutoProcessor.from_pretrained("{name}")
```
"""


def _training(recipe: Recipe, facts: TrainingFacts) -> str:
    config, run = recipe.config, recipe.run
    left_out = f", {facts.skipped:,} of them bad and left out" if facts.skipped else ""
    data = "procedural scenes" if run.data == "scenes" else Path(run.data).name
    rows = {
        "data": f"{data}: {facts.conversations:,} conversations{left_out}",
        "steps": f"{facts.steps:,}, of {facts.per_step} each",
        "learns": _learns(recipe),
        "method": ", ".join(config.methods)
        + (f"; teacher {config.teacher_method}" if config.teacher_method else ""),
        "loss": _loss(recipe, facts),
        "optimizer": f"{_text(config.optim)}, learning rate {config.learning_rate:g} "
        f"({_text(config.lr_scheduler_type)}, warm-up {config.warmup_steps:g}), weight decay {config.weight_decay:g}",
        "precision": f"{run.dtype} weights" + (", bfloat16 products" if config.bf16 else ""),
        **{f"{name} at the end": f"{value:.4f}" for name, value in facts.losses.items()},
        "time": f"{facts.seconds:,.0f} s",
    }
    return "## Training\n\n| | |\n|---|---|\n" + "".join(
        f"| {key} | {value} |\n" for key, value in rows.items()
    )


def _learns(recipe: Recipe) -> str:
    config = recipe.config
    language = "language model"
    if config.lora_rank is not None:
        kind = "DoRA" if config.dora else "LoRA"
        language += f" ({kind} of rank {config.lora_rank}, merged; the adapters are in `adapter/`)"
    parts = [language] if config.train_language_model else []
    parts += [] if config.projector_learning_rate == 0 else ["projector"]
    return ", ".join([*parts, "vision tower"] if config.tower_learning_rate else parts)


def _loss(recipe: Recipe, facts: TrainingFacts) -> str:
    config = recipe.config
    if not any(moment.teacher for moment in trace(config, facts.depth)):
        return "cross-entropy of the answers; no teacher"
    start, end = config.weight(0), config.weight(1)
    weight = f"{start:g}" if start == end else f"{start:g} to {end:g}"
    teacher = "the model itself" if config.teacher_model is None else Path(config.teacher_model).name
    return (
        f"(1 - lambda) cross-entropy + lambda {config.divergence} from the teacher ({teacher}); lambda {weight}, "
        f"temperature {config.temperature:g}"
    )


def _schedule(recipe: Recipe, facts: TrainingFacts) -> str:
    """The course of the schedule, in numbers."""
    lines = [
        f"## Schedule {recipe.config.schedule}\n",
        "Fractions of visual tokens kept; a step's student is drawn from its range.\n",
        "| progress | from layer | student | teacher |",
        "|---|---|---|---|",
    ]
    for moment in trace(recipe.config, facts.depth, 5):
        layer = "none dropped" if moment.layer is None else str(moment.layer)
        teacher = "none" if moment.teacher is None else _range(moment.teacher)
        lines.append(f"| {moment.t:g} | {layer} | {_range(moment.student)} | {teacher} |")
    return "\n".join(lines) + "\n"


def _provenance(facts: TrainingFacts) -> str:
    known = facts.provenance
    lines = [f"- {name}: {value}" for name, value in known.get("versions", {}).items()]
    machine = known.get("hardware", {})
    lines.append(f"- hardware: {machine.get('gpu') or machine.get('cpu')}")
    lines += [f"- {name}: {known[name]}" for name in ("commit", "date", "seed") if name in known]
    return "## Provenance\n\n" + "\n".join(lines) + "\n"


def _range(ends: tuple[float, float]) -> str:
    low, high = map(_percent, ends)
    return low if low == high else f"{low} to {high}"


def _percent(keep: float) -> str:
    return f"{100 * keep:.0f} %"


def _text(value: Any) -> str:
    """An option's value, of an enumeration or plain."""
    return str(getattr(value, "value", value))
