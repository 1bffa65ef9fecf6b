"""How the folders of each dataset are organized: one module per layout, found by `find_layouts`."""

import pkgutil
from importlib import import_module

from bigan_jax.data.layouts.layout import Layout


def find_layouts() -> dict[str, Layout]:
    """Returns the `LAYOUT` of each module of this package that defines one, by layout name."""
    modules = [import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    layouts = [module.LAYOUT for module in modules if hasattr(module, "LAYOUT")]
    return {layout.name: layout for layout in layouts}


LAYOUTS = find_layouts()
