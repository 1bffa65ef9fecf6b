"""The layout holds: a file imports from lower floors only, and public functions are documented."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bigan_jax"

# From the ground up. Parts of a folder may import each other; the models may not.
FLOORS = [
    ("errors",),
    (
        "abandoned",
        "augment",
        "bytes_item",
        "cluster",
        "caches",
        "memory",
        "convolutions",
        "health",
        "interrupts",
        "losses",
        "metrics",
        "pages",
        "paper_tables",
        "pickles",
        "png",
        "processes",
        "schedule",
        "tables",
        "verdicts",
        "versions",
        "workdir",
    ),
    (
        "controls",
        "data",
        "events",
        "history",
        "intervals",
        "joining",
        "layers",
        "locking",
        "pixels",
        "plots",
        "results",
        "scoring",
        "vgg16_weights",
    ),
    (
        "audit",
        "curves",
        "dcgan",
        "detector",
        "drawings",
        "layout",
        "pairing",
        "pixel_intervals",
        "panels",
        "progress",
        "report",
        "sweep_plan",
        "vgg16",
    ),
    ("checkpoint", "models", "parallel", "search", "standings"),
    ("build", "comparison_tables", "divergence"),
    ("comparison", "record", "scorer"),
    ("figures", "loading", "sweeping"),
    ("outcome", "prediction"),
    ("evaluation",),
    ("task",),
    ("epochs",),
    ("training",),
    ("seeds",),
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def part(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Names right below bigan_jax that the file imports, and models it names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "bigan_jax":
            yield from ((alias.name,) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bigan_jax."):
            yield tuple(node.module.split(".")[1:])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("bigan_jax."):
                    yield tuple(alias.name.split(".")[1:])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    for names in imported(path):
        below = LEVEL[names[0]] < LEVEL[part(path)]
        same_folder = names[0] == part(path) and part(path) in ("audit", "data")
        assert below or same_folder, f"{path.name} imports {'.'.join(names)}"


def test_every_file_has_its_floor():
    assert {part(path) for path in FILES} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_functions_are_documented_and_typed(path):
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    module = importlib.import_module(name.removesuffix(".__init__"))
    assert module.__doc__, f"{name} does not say what it is for"
    for attribute, thing in vars(module).items():
        public = not attribute.startswith("_") and getattr(thing, "__module__", "") == name
        if public and inspect.isfunction(thing):
            assert thing.__doc__, f"{name}.{attribute}"
            signature = inspect.signature(thing)
            untyped = [p for p in signature.parameters.values() if p.annotation is p.empty]
            assert not untyped, f"{name}.{attribute}: {untyped}"
