"""docs/methods.md, written from the methods' own cards and docstrings.

python -m foveal.cli.methods_page docs/methods.md
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from foveal.cli.cards import by_stage, describe, option_help, prose
from foveal.compressors import Compressor

__all__ = ["page"]

_HEAD = """# The methods

Made by `make methods` from what the methods say about themselves; do not edit. `foveal list` and `foveal list NAME`
print the same.

**pre-LM** methods choose, or merge, between the vision tower and the decoder, so that no decoder layer ever sees the
other tokens. They cannot use what the decoder knows; most never see the question. Those that read the tower work
where every patch of the tower becomes one visual token: LLaVA and PaliGemma, where images are not split into tiles.
**in-LM** methods drop tokens at the entry of decoder layer K (`layer`, counted from 0), or at several layers. Layers
in front of it see all tokens, and pay for them. They work in every family of the [support matrix](support.md).

**What is counted.** `keep` is the number of visual tokens that is left of each image, merged and extra tokens included,
behind the last stage. `keep=64` is a count, `keep=0.25` a fraction of the image's tokens, `keep="auto"` the method's
own choice where it has one. An image is what the model reads as one; a clip counts as one image unless
`per_frame=True`. Equal `keep` is not equal cost: see *Tokens* in each section, with N visual tokens and D decoder
layers.

**Positions.** With `positions="original"` kept tokens keep their position ids, with gaps where others were. With
`positions="packed"` position ids count only the tokens that are left, as if the others had never been. Each section
gives the default. In models whose positions name the row and column of every patch (M-RoPE: Qwen2-VL and later) they
stay as they are.

**Composition.** Methods that act at different layers can be stacked; each chooses among the tokens that the one
before left:

```python
stages = [foveal.VisionZip(keep=64), foveal.FastV(keep=16, layer=2)]
with foveal.compress(model, stages) as run:
    model.generate(**inputs)
print([len(stage.kept[0]) for stage in run.stages])  # [64, 16]
```

A pre-LM method takes layer 0, so there can be one of them. `foveal eval --all-methods --keep 64 32` compares all
methods on the same questions.

**Servable** says whether the number kept is known before the image is seen, as engines with static shapes need.

**Options** that every method shares, where a section does not say otherwise:

"""


def page() -> str:
    """The whole page."""
    methods = [(method, describe(method)) for method in by_stage()]
    shared = option_help(Compressor)
    parts = [_HEAD, *(f"- `{name}`: {text}\n" for name, text in shared.items()), "\n", _table(methods)]
    stage = ""
    for method, described in methods:
        if described["stage"] != stage:
            stage = described["stage"]
            parts.append(f"\n## {stage}\n")
        parts.append(_section(method, described, set(shared)))
    return "".join(parts)


def _table(methods: list[tuple[type[Compressor], dict[str, Any]]]) -> str:
    lines = ["| method | stage | keeps | needs | paper |", "| --- | --- | --- | --- | --- |"]
    for method, card in methods:
        link = f"[`{card['name']}`](#{_anchor(method)})"
        cells = (link, card["stage"], card["summary"], card["needs"], _paper(card["paper"]))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _section(method: type[Compressor], card: dict[str, Any], shared: set[str]) -> str:
    rule = "\n".join(f"{number}. {line}" for number, line in enumerate(card["rule"].split("\n"), start=1))
    facts = {
        "Needs": card["needs"],
        "Tokens": card["tokens"],
        "Positions": card["positions"],
        "Weak spots": card["weak"],
        "Servable": card["servable"],
    }
    options = {name: default for name, default in card["options"].items() if name != "keep"}
    defaults = ", ".join(f"`{name}={default!r}`" for name, default in options.items())
    own = [f"- `{name}`: {card['option_help'][name]}" for name in options if name not in shared]
    call = f"`foveal.{method.__name__}(keep=64)`; on the command line `{card['name']}`"
    return "\n".join(
        [
            f"\n### {method.__name__}\n",
            f"{card['title']}, {_paper(card['paper'])}. {call}.\n",
            f"{rule}\n",
            *(f"{paragraph}\n" for paragraph in prose(method)),
            *(f"- **{title}**: {text}" for title, text in facts.items()),
            f"\nOptions beside `keep`: {defaults}." + ("\n" if own else ""),
            *own,
            "",
        ]
    )


def _anchor(method: type[Compressor]) -> str:
    return method.__name__.lower()


def _paper(paper: str) -> str:
    number = paper.removeprefix("arXiv ")
    return paper if number == paper else f"[{number}](https://arxiv.org/abs/{number})"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
