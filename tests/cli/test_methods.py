"""`foveal list`, and the page that is made of the same cards."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

import foveal
from foveal.cli.cards import by_stage, describe, option_help, prose
from foveal.cli.methods_page import page

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"
NAMES = foveal.available()


def card_of(name: str) -> foveal.MethodCard:
    card = foveal.method_class(name).card
    assert card is not None
    return card


def words(text: str) -> str:
    """Without line breaks and alignment."""
    return " ".join(text.split())


def test_list_shows_every_method_those_before_the_decoder_first(run: Any) -> None:
    ran = run("list")
    assert ran.code == 0
    lines = {line.split()[0]: line for line in ran.out.splitlines() if line.split()[:1]}
    listed = [name for name in lines if name in NAMES]
    assert listed == sorted(NAMES, key=lambda name: (card_of(name).stage == "in-LM", name))
    for name in NAMES:
        card = card_of(name)
        assert card.stage in lines[name]
        assert lines[name].rstrip().endswith(card.paper.removeprefix("arXiv "))
        assert card.summary[:25] in lines[name]
        assert card.needs[:25] in lines[name]


def test_list_is_readable_at_100_columns(run: Any) -> None:
    lines = run("list", columns=100).out.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 4 * len(NAMES)
    for name in NAMES:  # none of these is cut or wrapped
        line = next(line for line in lines if line.split()[:1] == [name])
        assert line.rstrip().endswith(card_of(name).paper.removeprefix("arXiv "))


@pytest.mark.parametrize("name", NAMES)
def test_one_method_in_full(run: Any, name: str) -> None:
    ran = run("list", name)
    method, card = foveal.method_class(name), card_of(name)
    assert ran.code == 0
    shown = words(ran.out)
    for number, line in enumerate(card.rule.split("\n"), start=1):
        assert f"{number}. {line}" in shown
    for text in (card.title, card.paper, card.stage, card.summary, card.needs, card.tokens, card.weak):
        assert text in shown
    assert card.servable in shown
    assert ("re-packed" in shown) == (method(keep=1.0).positions == "packed")
    assert f"foveal.compress(model, foveal.{method.__name__}(keep=64))" in shown
    for item in fields(method):
        assert (f"{item.name}={item.default!r}" in shown) == (item.init and item.name != "keep")


@pytest.mark.parametrize("name", NAMES)
def test_the_line_for_python_works(name: str) -> None:
    call = describe(foveal.method_class(name))["python"]
    assert eval(call, {"foveal": Recorded(), "model": None}) == foveal.get(name, keep=64)


class Recorded:
    """Stands for the package; `compress` gives the method back."""

    def __getattr__(self, name: str) -> Any:
        return (lambda _, method: method) if name == "compress" else getattr(foveal, name)


def test_json_has_all_of_it(run: Any) -> None:
    found = json.loads(run("list", "--json").out)
    assert sorted(item["name"] for item in found) == list(NAMES)
    card_fields = {item.name for item in fields(foveal.MethodCard)}
    for item in found:
        assert card_fields | {"positions", "options", "option_help", "python"} == set(item)
        assert set(item["option_help"]) == set(item["options"])
    dart = next(item for item in found if item["name"] == "dart")
    assert (dart["options"]["layer"], dart["options"]["keep"]) == (2, None)
    tome = json.loads(run("list", "tome", "--json").out)
    assert [item["name"] for item in tome] == ["tome"]
    assert "layer" not in tome[0]["options"]


def test_an_unknown_method(run: Any) -> None:
    ran = run("list", "dort")
    assert (ran.code, ran.out) == (2, "")
    assert "unknown method 'dort'" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_options_are_read_off_the_docstrings() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Mine(foveal.DART):
        """Keeps
        much.

        Even more: here.

        Args:
            image_pivots: one:
                two lines.
            mine: my own, see `keep`.

        Raises:
            FovealError: never.
        """

        mine: int = 3

    found = option_help(Mine)
    assert found["mine"] == "my own, see `keep`."
    assert found["image_pivots"] == "one: two lines."
    assert found["text_pivots"] == option_help(foveal.DART)["text_pivots"]
    assert found["keep"].startswith("visual tokens kept per image")
    assert "FovealError" not in found
    assert prose(Mine) == ["Keeps much.", "Even more: here."]


def test_the_page_is_up_to_date() -> None:
    assert DOCS.read_text("utf-8") == page(), "docs/methods.md is stale: run `make methods`"


def test_the_page_says_what_the_cards_say() -> None:
    text = page()
    for method in by_stage():
        assert method.card is not None
        _, _, section = text.partition(f"\n### {method.__name__}\n")
        section = section.partition("\n### ")[0]
        for part in method.card.rule.split("\n"):
            assert f". {part}\n" in section
        for part in (method.card.needs, method.card.tokens, method.card.weak, method.card.servable):
            assert part in section
        assert f"](#{method.__name__.lower()})" in text
    assert (
        text.index("## pre-LM") < text.index("### DivPrune") < text.index("## in-LM") < text.index("### DART")
    )


def test_the_page_composes_methods_that_go_together() -> None:
    from foveal.mini import SceneQuestions

    model, processor = foveal.load()
    stages = eval(page().partition("stages = ")[2].partition("\n")[0], {"foveal": foveal})
    sample = SceneQuestions("test", 10)[0]
    inputs = processor(text="<image> what is it?", images=sample["image"], return_tensors="pt")
    with foveal.compress(model, stages) as run:
        model(**inputs)
    assert f"# {[len(stage.kept[0]) for stage in run.stages]}" in page()
