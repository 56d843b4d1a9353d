"""What `foveal list` and docs/methods.md say about a method, read off its class."""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, asdict, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal.compressors import Compressor

__all__ = ["by_stage", "describe", "option_help", "prose"]

_STAGES = ("pre-LM", "in-LM")
_POSITIONS = {
    "original": "kept tokens keep their position ids, with gaps",
    "packed": "re-packed: position ids count only the tokens that are left",
}


def by_stage() -> list[type[Compressor]]:
    """The built-in methods: those in front of the decoder, then those inside it, by name."""
    from foveal.compressors import available, method_class

    cards = {method: method.card for method in map(method_class, available()) if method.card}
    return sorted(cards, key=lambda method: (_STAGES.index(cards[method].stage), cards[method].name))


def describe(method: type[Compressor]) -> dict[str, Any]:
    """All there is to say about a method, ready for JSON: its card, its options and how it is called."""
    card = asdict(method.card) if method.card else {}
    options = {item.name: _default(item) for item in fields(method) if item.init}
    return card | {
        "positions": _POSITIONS[options["positions"]],
        "options": options,
        "option_help": {name: text for name, text in option_help(method).items() if name in options},
        "python": f"foveal.compress(model, foveal.{method.__name__}(keep=64))",
    }


def _default(item: Field[Any]) -> Any:
    return None if item.default is MISSING else item.default


def prose(method: type[Compressor]) -> list[str]:
    """The paragraphs of a class's docstring, without its sections such as Args."""
    text = re.split(r"^(?:Args|Attributes|Raises):$", _docstring(method), flags=re.MULTILINE)[0]
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]


def option_help(method: type[Compressor]) -> dict[str, str]:
    """Each option's text under Args, of the class itself or of the one that it comes from."""
    found: dict[str, str] = {}
    for base in reversed(method.__mro__):
        section = re.search(r"^Args:\n((?:    .*\n?|\n)*)", _docstring(base), flags=re.MULTILINE)
        for entry in re.split(r"^    (?=\w+: )", section[1] if section else "", flags=re.MULTILINE):
            name, _, text = entry.partition(":")
            if text:
                found[name] = " ".join(text.split())
    return found


def _docstring(of: type) -> str:
    """Without the indentation; empty where the class itself has none."""
    from inspect import cleandoc

    return cleandoc(of.__dict__.get("__doc__") or "")
