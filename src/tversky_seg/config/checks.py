"""Checks of plain settings: keys and types that a signature takes, and the nearest right key."""

from __future__ import annotations

import difflib
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tversky_seg.runtime.one_line import printable_line

YAML_NAMES: Mapping[type, str] = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
}
"""The words for a type that a reader of YAML knows."""

MOST_CANDIDATES = 12
"""More candidates than this are listed by their first part alone: `loss`, not `loss.alpha`."""


class ConfigError(ValueError):
    """A setting that cannot be used; one line: `<key>: <what was found>; <what was expected>`."""

    def __init__(self, message: str) -> None:
        super().__init__(printable_line(message))


class UnknownKey(ConfigError):
    """A key that is no argument of its object.

    Attributes:
        key: The dotted key.
    """

    def __init__(self, key: str, hint: str) -> None:
        super().__init__(f"{key}: no such key; {hint}")
        self.key = key


def check_arguments(key: str, node: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """Refuse arguments that a class or function does not take, or of another type than annotated.

    Args:
        key: Dotted key of the settings, such as `loss`.
        node: Arguments by name. Names with a leading underscore are Hydra's own and are skipped.
        function: Class or function that takes the arguments.

    Raises:
        UnknownKey: Names the key and the nearest right one.
        ConfigError: Names the key and the expected type.
    """
    parameters = inspect.signature(function).parameters
    # A function with **keywords takes any name, so none can be called misspelt.
    kinds = [parameter.kind for parameter in parameters.values()]
    takes_any_name = inspect.Parameter.VAR_KEYWORD in kinds
    annotations = _annotations(function)
    for name, value in node.items():
        if name.startswith("_"):
            continue
        if name not in parameters and not takes_any_name:
            hint = nearest(f"{key}.{name}", [f"{key}.{parameter}" for parameter in parameters])
            raise UnknownKey(f"{key}.{name}", hint)
        check_type(f"{key}.{name}", value, annotations.get(name, Any))


def check_type(key: str, value: Any, annotation: Any) -> None:
    """Refuse a value that does not fit a type annotation.

    Raises:
        ConfigError: Names the key, the value and the expected types.
    """
    if not _fits(value, annotation):
        expected = " or ".join(_type_names(annotation))
        raise ConfigError(f"{key}: {json.dumps(value, default=str)}; expected {expected}")


def nearest(key: str, known_keys: Iterable[str]) -> str:
    """Name the known key most similar to `key`, or list the known keys when none is similar."""
    # `loss._target_` is a key of every file, but nobody means it.
    candidates = sorted({name.removesuffix("._target_") for name in known_keys})
    matches = difflib.get_close_matches(key, candidates, n=1, cutoff=0.5)
    if matches:
        return f"did you mean {matches[0]}?"
    if len(candidates) > MOST_CANDIDATES:
        candidates = sorted({name.split(".")[0] for name in candidates})
    return f"expected one of {', '.join(candidates)}"


def nodes_with_target(node: Any, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """List the dicts that describe an object by `_target_`, each with its dotted key."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield prefix, node
        for name, value in node.items():
            yield from nodes_with_target(value, f"{prefix}.{name}".lstrip("."))
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from nodes_with_target(value, f"{prefix}[{position}]")


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """Read annotations by argument; none if they cannot be resolved, as in some torch classes."""
    try:
        # The annotations of a class are those of its attributes, not of its arguments.
        if inspect.isclass(function):
            return typing.get_type_hints(function.__init__)
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        return {}


def _fits(value: Any, annotation: Any) -> bool:
    """Tell whether a value read from YAML fits an annotation or a member of a union."""
    if not _is_union(annotation):
        return _fits_member(value, annotation)
    return any(_fits_member(value, member) for member in typing.get_args(annotation))


def _fits_member(value: Any, annotation: Any) -> bool:
    # The origin of `list[int]` is list; what a list holds is left to its object to check.
    kind = typing.get_origin(annotation) or annotation
    if kind is typing.Literal:
        return value in typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is Any or not inspect.isclass(kind):
        return True  # also a type variable
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        # YAML's true is an int for Python, but never a number for a reader.
        numbers = int | float if kind is float else int
        return isinstance(value, numbers) and not isinstance(value, bool)
    if kind in (str, Path):
        return isinstance(value, str)
    if _is_list(kind):
        return value is None or isinstance(value, list)  # null is an empty list
    if issubclass(dict, kind):
        return value is None or isinstance(value, dict)
    # Any other class is an object of ours or of torch, which YAML describes by its name.
    return isinstance(value, dict) and "_target_" in value


def _type_names(annotation: Any) -> list[str]:
    """Name the types of an annotation in YAML's words."""
    if _is_union(annotation):
        names: list[str] = []
        for member in typing.get_args(annotation):
            names += [name for name in _type_names(member) if name not in names]
        return names
    kind = typing.get_origin(annotation) or annotation
    if kind is typing.Literal:
        return [str(value) for value in typing.get_args(annotation)]
    if kind in YAML_NAMES:
        return [YAML_NAMES[kind]]
    if annotation is None or annotation is type(None):
        return ["null"]
    if _is_list(kind):
        return ["a list"]
    if inspect.isclass(kind) and issubclass(dict, kind):
        return ["{key: value}"]
    return ["an object (_target_)"]


def _is_list(kind: Any) -> bool:
    """Tell whether YAML writes this type as a list: list, Sequence, tuple."""
    return kind is tuple or (inspect.isclass(kind) and issubclass(list, kind))


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)
