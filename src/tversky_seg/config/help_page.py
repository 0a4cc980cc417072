"""The page of `--help`: the template of a command's YAML file, with its groups and keys."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from tversky_seg.config.config_files import CONFIG_DIR, choices, folders, read_yaml, top_level
from tversky_seg.runtime.program import as_called

WIDTH = 100
KEY_WIDTH = 34

LINE_OF_A_KEY = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*)(#(?P<comment>.*))?")


def help_page(config_name: str) -> str:
    """Write the help page of a command.

    In the template of the file (hydra.help.template), `$GROUPS` stands for the groups with their
    choices, and `$KEYS` for the keys of the command with the comments of its YAML files.

    Args:
        config_name: The command, such as `train`.
    """
    content = read_yaml(CONFIG_DIR / f"{config_name}.yaml")
    page = []
    for line in content["hydra"]["help"]["template"].splitlines():
        # Hydra's own help would show every _target_ and no comment.
        if line == "$GROUPS":
            page += _lines_of_groups(config_name)
        elif line == "$KEYS":
            page += _lines_of_keys(config_name)
        else:
            page.append(line)
    return as_called("\n".join(page) + "\n")


def _lines_of_groups(config_name: str) -> list[str]:
    """List the groups in the order of the alphabet, one a line, each with its choices."""
    groups, _ = top_level(config_name)
    lines = []
    for group in sorted(groups):
        # The rows of a paper are many, and its folder's README.md lists them.
        names = choices(group)
        for folder in folders(group):
            names.append(f"{folder}/…")
        lines += textwrap.wrap(
            f"{group}: {', '.join(names)}", WIDTH, initial_indent="  ", subsequent_indent="      "
        )
    return lines


def _lines_of_keys(config_name: str) -> list[str]:
    """List the keys of a command and of the first choice of its groups, with their comments."""
    file = CONFIG_DIR / f"{config_name}.yaml"
    lines = []
    for key, value, comment in described_keys(file.read_text(encoding="utf-8")):
        lines += _wrapped(key, value, comment)
    for entry in read_yaml(file)["defaults"]:
        if not isinstance(entry, dict):
            continue
        for group, choice in entry.items():
            if group.startswith("override "):
                continue
            text = (CONFIG_DIR / group / f"{choice}.yaml").read_text(encoding="utf-8")
            for key, value, comment in described_keys(text):
                lines += _wrapped(f"{group}.{key}", value, comment)
    return lines


def described_keys(text: str) -> Iterator[tuple[str, str, str]]:
    """Read the keys of a YAML file of plain blocks, with values and comments as written.

        threshold: null   # probability from which a voxel is lesion
        rule:
          connectivity: 26

    gives ("threshold", "null", "probability …"), ("rule", "", ""), ("rule.connectivity", "26", "").
    A comment may also stand on lines of its own above the key. Left out are lists of defaults,
    Hydra's block, and keys with a leading underscore.
    """
    parents: list[tuple[int, str]] = []
    comments_above: list[str] = []
    for line in text.splitlines():
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
