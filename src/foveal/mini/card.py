"""The model card, written from the measured results so that no number in it is typed by hand."""

from __future__ import annotations

from typing import Any

__all__ = ["card"]

_INTRODUCTION = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
language: [en, zh]
---

# Foveal mini

A LLaVA of {parameters} million parameters, trained from nothing on procedural scenes of emoji and on easy-VQA. It
exists so that compression of visual tokens can be tried, tested and taught anywhere in seconds. It knows 42 kinds of
emoji and nothing else of the world.

- Vision: CLIP tower, 96 px, patches of 8 px, so 144 visual tokens and a CLS token; 5 layers of 128; the decoder reads
  the last layer but one. The matching text tower is in `clip/`, whose vision weights are this model's, exactly.
- Decoder: Llama, 8 layers of 160, 5 heads, tied embeddings; a vocabulary of its own of 586 tokens.
- Stored in float16, loaded in float32.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor
import foveal.mini

path = foveal.mini.weights_path()
model, processor = AutoModelForImageTextToText.from_pretrained(path), AutoProcessor.from_pretrained(path)
sample = foveal.mini.SceneQuestions("test", 10)[0]
inputs = processor(
    text=f"USER: <image>\\n{{sample['question']}} ASSISTANT:", images=sample["image"], return_tensors="pt"
)
print(processor.batch_decode(model.generate(**inputs, max_new_tokens=8), skip_special_tokens=True))
```
"""

_LIMITS = """
## Limits

- Words on signs are capital letters of one font; held-out words are read letter by letter, but not other fonts.
- Objects, words and discs keep to a grid of three by three cells.
- It never learnt to compare a word in the question with the one on the sign (`verify/text` is at chance).
- `verify/count` can mostly be answered without looking: one of a kind is the usual number. Its blank column says so.
- It is a model to measure compression with. Nothing here says how well a large model withstands compression.

## Licence

The weights are under this project's licence, Apache 2.0. The pictures they were trained on are Noto Emoji (Apache 2.0;
see `../data/LICENSE-ART.md`) and easy-VQA (MIT).
"""


def card(results: dict[str, Any]) -> str:
    """The card in Markdown, from what `foveal.mini.evaluate` measured."""
    parts = [
        _INTRODUCTION.format(parameters=results["provenance"]["million_parameters"]),
        "\n## Accuracy, uncompressed\n\nHeld-out scenes, one question per image, greedy; 95 % Wilson intervals.\n",
        "*Blank* is the same questions about a grey picture.\n\n",
        _table(results["scenes"], results["scenes_blanked"]),
        "\neasy-VQA, its own test split, one question per image:\n\n",
        _table(results["easy_vqa"], results["easy_vqa_blanked"]),
        _provenance(results),
        _LIMITS,
    ]
    return "".join(parts)


def _table(seen: dict[str, Any], blank: dict[str, Any]) -> str:
    rows = ["| questions | n | accuracy | 95 % interval | blank |", "|---|---|---|---|---|"]
    for name, rate in seen.items():
        interval = f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f}"
        dim = 100 * blank[name]["value"]
        rows.append(f"| {name} | {rate['count']} | {100 * rate['value']:.1f} | {interval} | {dim:.1f} |")
    return "\n".join(rows) + "\n"


def _provenance(results: dict[str, Any]) -> str:
    facts = results["provenance"]
    versions = facts["versions"]
    lines = [
        "\n## Provenance\n",
        f"- Measured with `{facts['command']}` ({facts['split']}); Python {versions['python']},",
        f"  torch {versions['torch']}, transformers {versions['transformers']}, {facts['dtype']}.",
    ]
    training = results.get("training")
    if training is not None:
        lines += [
            f"- Trained with `{training['command']}`, seed {training['seed']}, on {training['hardware']}.",
            "\n| stage | steps | images a step | minutes |\n|---|---|---|---|",
            *(
                f"| {entry['stage']} | {entry['step']} | {entry['batch']} | {entry['seconds'] / 60:.1f} |"
                for entry in training["stages"]
            ),
        ]
        lines += ["", training["note"]] if training["note"] else []
    return "\n".join(lines) + "\n"
