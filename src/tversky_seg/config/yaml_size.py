"""Limits of a file's size: a few lines of YAML can stand for gigabytes, or exhaust the stack."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TextIO

import yaml

from tversky_seg.config.checks import ConfigError

MOST_VALUES = 100_000
"""More values than any config has; the largest of ours has some 200."""

DEEPEST = 50
"""More levels than any config has; the deepest of ours has 4."""


def check_yaml(file: TextIO, where: object, loader: Any) -> None:
    """Refuse a YAML file that is too large once its aliases are replaced, or too deep.

        a: &a [x, x, x, x]
        b: &b [*a, *a, *a, *a]     # 16 values; nine more lines like this one are 4 million

    The events of the parser are counted, so nothing is replaced and nothing recurses.

    Args:
        file: Open text file.
        where: Name of the file, for the message.
        loader: Loader class of PyYAML.

    Raises:
        ConfigError: More than MOST_VALUES values, or DEEPEST levels; or it is no text in UTF-8.
        yaml.MarkedYAMLError: It is not YAML; the error holds the name of the file and the line.
    """
    try:
        _check_events(yaml.parse(file, Loader=loader), where)
    except (UnicodeDecodeError, yaml.reader.ReaderError) as fault:
        raise ConfigError(f"{where}: is no text in UTF-8; expected YAML") from fault


def _check_events(events: Iterable[Any], where: object) -> None:
    size_of_anchor: dict[str, int] = {}
    # One entry for each collection that is open; the first is the document.
    sizes = [0]
    anchors: list[str | None] = [None]
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            # A collection that contains itself never ends.
            if event.anchor in anchors:
                raise _too_large(where)
            sizes[-1] += size_of_anchor.get(str(event.anchor), 0)
        elif isinstance(event, yaml.ScalarEvent):
            sizes[-1] += 1
        elif isinstance(event, yaml.CollectionStartEvent):
            sizes.append(1)
            anchors.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            size = sizes.pop()
            anchor = anchors.pop()
            if anchor is not None:
                size_of_anchor[anchor] = size
            sizes[-1] += size
        if sizes[-1] > MOST_VALUES or len(sizes) > DEEPEST:
            raise _too_large(where)


def check_values(settings: Any, where: object) -> None:
    """Refuse dicts and lists that are too large or too deep, such as those of a checkpoint.

    Raises:
        ConfigError: More than MOST_VALUES values, or DEEPEST levels.
    """
    n_values = 0
    remaining = [(settings, 1)]
    while remaining:
        value, depth = remaining.pop()
        n_values += 1
        if n_values > MOST_VALUES or depth > DEEPEST:
            raise _too_large(where)
        if isinstance(value, dict):
            remaining.extend((child, depth + 1) for child in value.values())
        elif isinstance(value, list | tuple):
            remaining.extend((child, depth + 1) for child in value)


def _too_large(where: object) -> ConfigError:
    return ConfigError(
        f"{where}: is too large or nested too deeply; "
        f"expected at most {MOST_VALUES} settings on {DEEPEST} levels"
    )
