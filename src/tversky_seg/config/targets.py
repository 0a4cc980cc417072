"""The classes and functions that a `_target_` may name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any

from hydra.utils import get_object

from tversky_seg.config.checks import ConfigError

ALLOWED_PACKAGES = ("tversky_seg", "torch.nn", "torch.optim", "monai.networks", "monai.losses")
KINDS: Mapping[str, str] = {
    "model": "torch.nn.Module",
    "loss": "torch.nn.Module",
    "optimizer": "torch.optim.Optimizer",
}
"""Group -> class that its objects must have, by name: torch takes seconds to import."""


def check_target(
    key: str, node: Mapping[str, Any], *, trust: Sequence[str] = (), kind: type | None = None
) -> Callable[..., Any]:
    """Look up the class or function that a node names by `_target_`, if it may be built.

    It must be defined in an allowed package. The beginning of its name is checked before anything
    is imported, and the module that defines the object afterwards, since an allowed module may
    import others (`torch.nn.modules.module.torch.hub.load`). It must be a class of the kind that
    the group holds; a function only where it is handed on uncalled (`_partial_: true`).

    Args:
        key: Dotted key of the node, such as `loss.losses[0]`.
        node: Settings with `_target_`.
        trust: Further packages whose classes may be built.
        kind: Base class of the object; None takes that of the group.

    Raises:
        ConfigError: Names the target and what was expected.
    """
    target = str(node["_target_"])
    allowed = (*ALLOWED_PACKAGES, *trust)
    if kind is None:
        group = re.split(r"[.\[]", key)[0]
        kind = get_object(KINDS[group]) if group in KINDS else None
    # Importing a module runs its code, so the name is checked before.
    candidate = None
    fault_of_import = ""
    if is_within(target, allowed):
        try:
            candidate = get_object(target)
        except (ImportError, AttributeError, ValueError) as fault:
            # Of a new module with a typing error, Hydra's cause tells the line.
            fault_of_import = f" cannot be imported ({fault.__cause__ or fault})"
    defining_module = getattr(candidate, "__module__", None) or ""
    if is_within(defining_module, allowed):
        if inspect.isclass(candidate):
            if issubclass(candidate, kind or object):
                return candidate
        # A schedule is a function; of a network or a loss the kind is known, and it is a class.
        elif isinstance(candidate, FunctionType | MethodType):
            is_handed_on = kind is None and bool(node.get("_partial_"))
            if is_handed_on:
                return candidate
            if kind is None:
                raise ConfigError(
                    f"{key}._target_: {target} is a function; add _partial_: true below it"
                )
    noun = "class or function" if kind is None else f"{kind.__name__} class"
    raise ConfigError(
        f"{key}._target_: {target}{fault_of_import}; expected a {noun} defined in one of "
        f"{', '.join(allowed)} (trust=[package] adds one)"
    )


def find_object(target: Any) -> Any:
    """Import the object of a dotted name; None where there is none."""
    try:
        return get_object(target)
    except (ImportError, AttributeError, ValueError):
        return None


def is_within(name: str, packages: Sequence[str]) -> bool:
    """Tell whether a dotted name is one of these packages or lies in one."""
    return any(name == package or name.startswith(package + ".") for package in packages)
