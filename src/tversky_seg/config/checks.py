"""What plain settings may say: keys and types that a signature takes, the nearest right key, what tells runs apart."""

from __future__ import annotations

import difflib
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line: `<key>: <what was found>; <what was expected>`."""


def check_arguments(key: str, node: Mapping[str, Any], found: Callable[..., Any]) -> None:
    """Refuse arguments that a class or function does not take, or whose type is none of its annotation's.

    Args:
        key: Where the settings stand, as `loss`.
        node: The settings: arguments by name, and Hydra's own words, which begin with an underscore.
        found: The class or function.

    Raises:
        ConfigError: naming the key and, for a misspelt one, the nearest right key.
    """
    parameters = inspect.signature(found).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    hints = _hints(found)
    for name, value in node.items():
        if name.startswith("_"):
            continue
        if name not in parameters and not takes_any:
            hint = nearest(f"{key}.{name}", [f"{key}.{parameter}" for parameter in parameters])
            raise ConfigError(f"{key}.{name}: no such key; {hint}")
        check_type(f"{key}.{name}", value, hints.get(name, Any))


def check_type(key: str, value: Any, hint: Any) -> None:
    """Refuse a value that does not fit a type annotation.

    Raises:
        ConfigError: naming the key, the value and the types expected.
    """
    if not _fits(value, hint):
        raise ConfigError(f"{key}: {_shown(value)}; expected {' or '.join(_names(hint))}")


def nearest(key: str, known: Iterable[str]) -> str:
    """A hint at the known key that looks most like this one, or at what is known."""
    candidates = sorted({name.removesuffix("._target_") for name in known})
    matches = difflib.get_close_matches(key, candidates, n=1, cutoff=0.5)
    few = (
        sorted({name.split(".")[0] for name in candidates}) if len(candidates) > 12 else candidates
    )
    return f"did you mean {matches[0]}?" if matches else f"expected one of {', '.join(few)}"


def nodes_with_target(node: Any, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each dict that describes an object by `_target_`, with its dotted key."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield prefix, node
        for key, value in node.items():
            yield from nodes_with_target(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from nodes_with_target(value, f"{prefix}[{position}]")


def _hints(found: Callable[..., Any]) -> dict[str, Any]:
    """Annotations by argument; none where they cannot be resolved, as in some of torch's classes."""
    try:
        return typing.get_type_hints(found.__init__ if inspect.isclass(found) else found)
    except (NameError, TypeError, AttributeError):
        return {}


def _fits(value: Any, hint: Any) -> bool:
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    return any(_fits_one(value, option) for option in options)


def _fits_one(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint) or hint
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is None or hint is type(None):
        return value is None
    if hint is Any or not inspect.isclass(origin):
        return True  # also a type variable
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (str, Path):
        return isinstance(value, str)
    if origin is bool:
        return isinstance(value, bool)
    if issubclass(list, origin) or origin is tuple:
        return value is None or isinstance(value, list)  # null: nothing in it
    if issubclass(dict, origin):
        return value is None or isinstance(value, dict)
    return isinstance(value, dict) and "_target_" in value


def _names(hint: Any) -> list[str]:
    """The types of an annotation, in YAML's words."""
    if _is_union(hint):
        return list(
            dict.fromkeys(name for option in typing.get_args(hint) for name in _names(option))
        )
    origin = typing.get_origin(hint) or hint
    if origin is typing.Literal:
        return [str(value) for value in typing.get_args(hint)]
    words = {
        float: "a number",
        int: "a whole number",
        bool: "true or false",
        str: "a text",
        Path: "a path",
    }
    if origin in words:
        return [words[origin]]
    if hint is None or hint is type(None):
        return ["null"]
    if origin is tuple or (inspect.isclass(origin) and issubclass(list, origin)):
        return ["a list"]
    if inspect.isclass(origin) and issubclass(dict, origin):
        return ["{key: value}"]
    return ["an object (_target_)"]


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)
