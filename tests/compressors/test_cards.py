"""What every built-in method says about itself."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

import foveal
from foveal.compressors.base import Compressor

NAMES = foveal.available()


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_filled_in(name: str) -> None:
    card = foveal.method_class(name).card
    assert card is not None
    assert card.name == name
    for item in fields(card):
        text = getattr(card, item.name)
        assert text == text.strip() != "", item.name
        assert item.name == "rule" or "\n" not in text, item.name
        assert "TODO" not in text, item.name
    assert card.paper == "baseline" or card.paper.startswith("arXiv "), card.paper
    assert card.stage in {"pre-LM", "in-LM"}


@pytest.mark.parametrize("name", NAMES)
def test_the_rule_has_three_lines(name: str) -> None:
    card = foveal.method_class(name).card
    assert card is not None
    lines = card.rule.split("\n")
    assert len(lines) == 3
    for line in lines:
        assert line == line.strip()
        assert 10 < len(line) <= 120
        assert line.endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_how_tokens_are_counted_and_whether_the_number_is_known(name: str) -> None:
    method = foveal.method_class(name)
    assert method.card is not None
    assert "keep" in method.card.tokens
    assert re.search(r"\b(yes|no)\b", method.card.servable)
    if method.finds_budget:
        assert "auto" in method.card.servable, "the number that an auto budget keeps is not known beforehand"


@pytest.mark.parametrize("name", NAMES)
def test_a_method_that_observes_the_layer_before_says_so(name: str) -> None:
    method = foveal.method_class(name)
    assert method.card is not None
    if method.observes() and method.first_layer():
        assert f"layer >= {method.first_layer()}" in method.card.needs


def test_no_two_cards_are_alike() -> None:
    cards = [foveal.method_class(name).card for name in NAMES]
    for item in ("title", "summary", "rule"):
        texts = [getattr(card, item) for card in cards]
        assert len(set(texts)) == len(texts), item


def test_every_method_documents_its_own_options() -> None:
    """Options are read from docstrings by people: one that is not named there does not exist for them."""
    shared = {item.name for item in fields(Compressor)}
    for name in NAMES:
        method = foveal.method_class(name)
        own = {item.name for item in fields(method) if item.init} - shared
        documentation = "\n".join(base.__doc__ or "" for base in method.__mro__)
        for option in own:
            assert f"{option}: " in documentation, f"{name}: {option}"
