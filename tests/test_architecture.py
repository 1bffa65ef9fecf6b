"""Modules and public functions have docstrings and annotations. import-linter checks imports."""

import importlib
import inspect
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bigan_jax"
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_functions_are_documented_and_typed(path):
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    module = importlib.import_module(name.removesuffix(".__init__"))
    assert module.__doc__, f"{name} has no docstring"
    assert "TODO" not in module.__doc__
    for attribute, value in vars(module).items():
        public = not attribute.startswith("_") and getattr(value, "__module__", "") == name
        if public and inspect.isfunction(value):
            assert value.__doc__, f"{name}.{attribute} has no docstring"
            parameters = inspect.signature(value).parameters.values()
            untyped = [p.name for p in parameters if p.annotation is p.empty]
            assert not untyped, f"{name}.{attribute} has parameters without annotation: {untyped}"
