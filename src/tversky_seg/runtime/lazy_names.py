"""Names that a package imports when they are first used, so that importing it is quick."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Make the `__getattr__` of a package whose names come from its modules.

        __getattr__ = lazy_names(__name__, {"losses": ["TverskyLoss"]})

    Args:
        package: Name of the package.
        modules: Names by the module, relative to the package, that holds them.

    Returns:
        Function from a name to its value; AttributeError for any other name.
    """
    module_of_name: dict[str, str] = {}
    for module, names in modules.items():
        module_of_name.update(dict.fromkeys(names, module))

    def import_name(name: str) -> Any:
        if name not in module_of_name:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f"{package}.{module_of_name[name]}")
        value = getattr(module, name)
        # The next look-up does not come here.
        setattr(sys.modules[package], name, value)
        return value

    return import_name
