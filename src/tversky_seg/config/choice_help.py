"""What the help says of the choices of a group: the first sentence of each file, and its keys."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from tversky_seg.config.checks import ConfigError, nearest
from tversky_seg.config.config_files import CONFIG_DIR, choices, folders, read_yaml, top_level
from tversky_seg.config.key_help import key_lines

WIDTH = 110
SHORTEST_COLUMN = 18

AUTHORS = re.compile(r"^\w+ et al\. \d{4}(, [^.:]*)?[.:] ")
"""What the rows of a paper begin with: "Salehi et al. 2017, Table 1: "."""

SENTENCE_END = re.compile(r"(?<!al)[.;]\s|,? say: |: (?:python|pip) ")


def group_lines(config_name: str) -> list[str]:
    """List the groups of a command in the order of the alphabet, with a line for each choice.

    The rows of papers are many, and have a page of their own.
    """
    groups, _ = top_level(config_name)
    defaults = _defaults(config_name)
    lines: list[str] = []
    for group in sorted(groups - {"experiment"}):
        lines += [f"  {group} (default: {defaults.get(group)})", *choice_lines(group)]
    if "experiment" in groups:
        # Hydra's own groups, of which a user meets only these.
        for group in ("hydra/launcher", "hydra/sweeper"):
            lines += [f"  {group} (of a sweep, -m)", *choice_lines(group)]
    return lines


def choice_lines(group: str) -> list[str]:
    """List the choices of a group, each with the first sentence of its file."""
    names = choices(group)
    column = max(SHORTEST_COLUMN, 2 + max(map(len, names)))
    lines = []
    for name in names:
        sentence = first_sentence(CONFIG_DIR / group / f"{name}.yaml")
        sentence = textwrap.shorten(sentence, WIDTH - 4 - column, placeholder=" …")
        lines.append(f"    {name:<{column}}{sentence}")
    return lines


def topic_page(config_name: str, topic: str) -> str:
    """Write the page of `--help <topic>`: a group with the keys of each choice, or `experiments`.

    Raises:
        ConfigError: The command has no such group.
    """
    groups, _ = top_level(config_name)
    if topic.rstrip("s") == "experiment" and "experiment" in groups:
        return _experiments_page()
    topics = sorted({*groups, "experiments"} if "experiment" in groups else groups)
    if topic not in groups:
        raise ConfigError(f"--help {topic}: no such page; {nearest(topic, topics)}")
    default = _defaults(config_name).get(topic)
    page = [f"{topic}=CHOICE ({default} by default) and its keys ({topic}.key=value)"]
    for name in choices(topic):
        file = CONFIG_DIR / topic / f"{name}.yaml"
        comment = textwrap.wrap(_comment(file), WIDTH - 4)
        page += ["", f"  {name}", *(f"    {line}" for line in comment)]
        page += key_lines(file.read_text(encoding="utf-8"), prefix=f"{topic}.")
    return "\n".join(page) + "\n"


def _experiments_page() -> str:
    """List the experiments: those of our own, and for each paper the rows of its table."""
    page = [
        "python train.py experiment=NAME, or experiment=[ROW,PART] for a row of a paper and a part",
        "that changes it, such as experiment=[salehi2017/tversky_b07,salehi2017/small].",
        "python scripts/reproduce.py PAPER runs all rows of a table.",
        "",
        *choice_lines("experiment"),
    ]
    for folder in folders("experiment"):
        group = f"experiment/{folder}"
        page += ["", f"  {folder}/", *choice_lines(group)]
    return "\n".join(page) + "\n"


def first_sentence(file: Path) -> str:
    """Return the first sentence of the comment at the top of a YAML file."""
    text = AUTHORS.sub("", _comment(file), count=1)
    return SENTENCE_END.split(text + " ", maxsplit=1)[0].strip().rstrip(".:")


def _comment(file: Path) -> str:
    """Join the lines of the comment at the top of a YAML file."""
    lines: list[str] = []
    for line in _lines_at_the_top(file):
        # The commands that a comment gives as examples stand in lines of their own.
        if not line.startswith("#   "):
            lines.append(line.lstrip("# "))
    return " ".join(lines)


def _lines_at_the_top(file: Path) -> Iterator[str]:
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return
        # A word to Hydra, not to the reader.
        if not line.startswith("# @package"):
            yield line


def _defaults(config_name: str) -> dict[str, str]:
    """Read which choice of each group a command takes by itself."""
    chosen: dict[str, str] = {}
    entries: Sequence[object] = read_yaml(CONFIG_DIR / f"{config_name}.yaml")["defaults"]
    for entry in entries:
        if isinstance(entry, dict):
            chosen |= {str(group): str(choice) for group, choice in entry.items()}
        # The defaults of another command, which this one begins with.
        elif entry != "_self_":
            chosen |= _defaults(str(entry))
    return chosen
