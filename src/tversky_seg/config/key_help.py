"""The keys of a YAML file for the help, each with its default and its comment."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

WIDTH = 100
KEY_WIDTH = 34

LINE_OF_A_KEY = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*)(#(?P<comment>.*))?")


def key_lines(text: str, *, prefix: str = "") -> list[str]:
    """List the keys of a YAML file with their comments.

    Args:
        text: Content of the file.
        prefix: Group of the file, such as "loss.".
    """
    lines = []
    for key, value, comment in described_keys(text):
        if f"{key}." == prefix:
            continue  # `weighting: null` of weighting=none: there is no object, and so no key
        lines += _wrapped(f"{prefix}{key}", value, comment)
    return lines


def described_keys(text: str) -> Iterator[tuple[str, str, str]]:
    """Read the keys of a YAML file of plain blocks, with values and comments as written.

        threshold: null   # probability from which
                          # a voxel is lesion
        rule:
          connectivity: 26

    gives ("threshold", "null", "probability …"), ("rule", "", ""), ("rule.connectivity", "26", "").
    A comment may also stand on lines of its own above the key. Left out are lists of defaults,
    Hydra's block, and keys with a leading underscore.
    """
    parents: list[tuple[int, str]] = []
    comments_above: list[str] = []
    for line in _with_comments_joined(text):
        if line.lstrip().startswith("#"):
            comments_above.append(line.strip("# "))
            continue
        match = LINE_OF_A_KEY.fullmatch(line)
        if match is None:
            continue
        comments = [*comments_above, (match["comment"] or "").strip()]
        comments_above = []
        # A key belongs to the nearest key above it that is indented less.
        indent = len(match["indent"])
        while parents and parents[-1][0] >= indent:
            parents.pop()
        parents.append((indent, match["key"]))
        path = [key for _, key in parents]
        if path[0] in ("defaults", "hydra") or path[-1].startswith("_"):
            continue
        yield ".".join(path), match["value"].strip(), " ".join(comments).strip()


def _with_comments_joined(text: str) -> list[str]:
    """List lines, with each comment that goes on below itself in one line."""
    lines: list[str] = []
    column = -1  # of the comment beside the key above
    for line in text.splitlines():
        is_comment = line.lstrip().startswith("#")
        if is_comment and line.index("#") == column:
            lines[-1] += " " + line.strip("# ")
            continue
        lines.append(line)
        column = -1 if is_comment else line.find("#")
    return lines


def _wrapped(key: str, value: str, comment: str) -> list[str]:
    """Set a key and its default in one column and the comment in another."""
    if not value and not comment:
        return []
    word = key
    if value:
        word = f"{key}={'…' if value == '???' else value}"
    lines = textwrap.wrap(comment, WIDTH - KEY_WIDTH) or [""]
    if comment and len(word) + 4 > KEY_WIDTH:
        lines.insert(0, "")
    page = [f"  {word}".ljust(KEY_WIDTH) + lines[0]]
    for line in lines[1:]:
        page.append(" " * KEY_WIDTH + line)
    # An empty first line keeps a long word alone, without blanks at its end.
    page[0] = page[0].rstrip()
    return page
