"""The page of `--help`: the template of a command's YAML file, with its groups and keys."""

from __future__ import annotations

from tversky_seg.config.choice_help import group_lines, topic_page
from tversky_seg.config.config_files import CONFIG_DIR, read_yaml
from tversky_seg.config.key_help import key_lines
from tversky_seg.runtime.program import as_called


def help_page(config_name: str, topic: str | None = None) -> str:
    """Write the help page of a command.

    In the template of the file (hydra.help.template), `$GROUPS` stands for the groups with their
    choices, and `$KEYS` for the keys of the command with the comments of its YAML files.

    Args:
        config_name: The command, such as `train`.
        topic: Group to describe in full, or `experiments`, in place of the command.

    Raises:
        ConfigError: There is no page of the topic.
    """
    if topic is not None:
        return as_called(topic_page(config_name, topic))
    content = read_yaml(CONFIG_DIR / f"{config_name}.yaml")
    page = []
    for line in content["hydra"]["help"]["template"].splitlines():
        # Hydra's own help would show every _target_ and no comment.
        if line == "$GROUPS":
            page += group_lines(config_name)
        elif line == "$KEYS":
            page += _lines_of_keys(config_name)
        else:
            page.append(line)
    return as_called("\n".join(page) + "\n")


def _lines_of_keys(config_name: str) -> list[str]:
    """List the keys of a command and of the first choice of its groups, with their comments."""
    file = CONFIG_DIR / f"{config_name}.yaml"
    lines = key_lines(file.read_text(encoding="utf-8"))
    for entry in read_yaml(file)["defaults"]:
        if not isinstance(entry, dict):
            continue
        for group, choice in entry.items():
            if group.startswith("override "):
                continue
            text = (CONFIG_DIR / group / f"{choice}.yaml").read_text(encoding="utf-8")
            lines += key_lines(text, prefix=f"{group}.")
    return lines
