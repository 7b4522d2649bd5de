"""Imports what a package gives when it is first asked for.

torch and transformers take seconds to import. Help, a record, a recipe and an error about it do not wait for them.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def lazily(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        package: Its name.
        modules: The names that each of its modules gives, with spaces between them. A module of another package stands
            there by its full name.
    """
    places = {name: module for module, names in modules.items() for name in names.split()}

    def find(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = places[name]
        value: object = getattr(import_module(module if "." in module else f"{package}.{module}"), name)
        setattr(sys.modules[package], name, value)  # the next one finds it without us
        return value

    return find, lambda: sorted(places)
