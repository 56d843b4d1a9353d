"""Every public object is exported, typed and documented."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest

import foveal

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(foveal.__path__, "foveal.")
    if not info.name.endswith("__main__")
    # `make test-eval` has lmms-eval, and looks at these.
    and (find_spec("lmms_eval") or info.name not in ("foveal.suite.lmms", "foveal.suite.lmms_manifest"))
)


def exported(module: ModuleType) -> list[tuple[str, Any]]:
    return [(name, getattr(module, name)) for name in module.__all__]


@pytest.mark.parametrize("name", ["foveal", *MODULES])
def test_exports_are_sorted_real_and_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert inspect.getdoc(module), f"{name} has no docstring"
    assert hasattr(module, "__all__"), f"{name} has no __all__"
    # Constants, then classes, then functions, as ruff's RUF022 sorts them.
    assert module.__all__ == sorted(module.__all__, key=lambda word: (rank(word), word))
    for word, value in exported(module):
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name}.{word} has no docstring"


def rank(word: str) -> int:
    return 0 if word.isupper() else 1 if word[0].isupper() else 2


@pytest.mark.parametrize("name", MODULES)
def test_what_is_defined_and_not_private_is_exported(name: str) -> None:
    module = importlib.import_module(name)
    defined = {
        word
        for word, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == name
        and word[0] != "_"
    }
    assert defined <= set(module.__all__)


@pytest.mark.parametrize("name", MODULES)
def test_signatures_are_typed(name: str) -> None:
    for word, value in exported(importlib.import_module(name)):
        for label, function in functions_of(word, value):
            signature = inspect.signature(function)
            untyped = [
                parameter.name
                for parameter in signature.parameters.values()
                if parameter.annotation is inspect.Parameter.empty and parameter.name not in ("self", "cls")
            ]
            assert not untyped, f"{name}.{label}: no type for {untyped}"
            assert signature.return_annotation is not inspect.Signature.empty, (
                f"{name}.{label}: no return type"
            )


def functions_of(word: str, value: Any) -> list[tuple[str, Any]]:
    """A function itself, or what a class defines in its own body and names publicly."""
    if inspect.isfunction(value):
        return [(word, value)]
    if not inspect.isclass(value):
        return []
    own = {name: member for name, member in vars(value).items() if name[0] != "_" or written(value, name)}
    members = [
        (name, getattr(member, "__func__", getattr(member, "fget", member))) for name, member in own.items()
    ]
    return [(f"{word}.{name}", member) for name, member in members if inspect.isfunction(member)]


def written(value: type, name: str) -> bool:
    """Whether a special method stands in the source; those of dataclasses and protocols are generated."""
    own = getattr(vars(value)[name], "__module__", None) == value.__module__
    return name == "__init__" and own and not dataclasses.is_dataclass(value)


@pytest.mark.parametrize("name", MODULES)
def test_public_methods_are_documented(name: str) -> None:
    for word, value in exported(importlib.import_module(name)):
        if inspect.isclass(value):
            for label, function in functions_of(word, value):
                assert label.endswith("__init__") or inspect.getdoc(function), (
                    f"{name}.{label} has no docstring"
                )


def test_the_front_page_has_all_it_promises() -> None:
    promised = {
        "DART",
        "FastV",
        "FovealError",
        "Random",
        "attach",
        "available",
        "compress",
        "detach",
        "get",
        "load",
    }
    assert promised <= set(foveal.__all__)
    assert set(dir(foveal)) >= promised
    for name in promised:
        assert getattr(foveal, name) is getattr(foveal, name)
