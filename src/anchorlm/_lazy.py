"""Imports what a package gives when it is first asked for.

torch and transformers take seconds to import. Help, a record, a recipe and an error about it do not wait for them.
"""

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module


def lazily(
    package: str, modules: Mapping[str, str], moved: Mapping[str, str] | None = None
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        package: Its name.
        modules: The names that each of its modules gives, with spaces between them. A module of another package stands
            there by its full name.
        moved: Names that it gave once, by the package that gives them today. `Old=New` where the name is another one.
            They work for one more release, with a warning.
    """
    places = {name: module for module, names in modules.items() for name in names.split()}
    left = {
        old: (module, new or old)
        for module, names in (moved or {}).items()
        for old, _, new in (name.partition("=") for name in names.split())
    }

    def find(name: str) -> object:
        if name in left:
            module, new = left[name]
            warnings.warn(
                f"{package}.{name} is {module}.{new} now; the old name goes with the next release.",
                DeprecationWarning,
                stacklevel=2,
            )
            return getattr(import_module(module), new)
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = places[name]
        value: object = getattr(import_module(module if "." in module else f"{package}.{module}"), name)
        setattr(sys.modules[package], name, value)  # the next one finds it without us
        return value

    return find, lambda: sorted(places)
