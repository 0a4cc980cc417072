"""Completion in a shell: `eval "$(tversky-seg --completion bash)"`, or zsh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tversky_seg.config.config_files import choices, folders, known_keys, top_level

SHELLS = ("bash", "zsh")

SCRIPT = """\
_tversky_seg() {
  local line="${COMP_LINE:0:COMP_POINT}"
  local word="${line##* }" command="${COMP_WORDS[1]}" words
  case "$COMP_CWORD:$command" in
    1:*) words="COMMANDS" ;;
CASES
    *) words="" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  # What no command knows is a file, as after data.manifest=
  if [ ${#COMPREPLY[@]} -eq 0 ]; then COMPREPLY=($(compgen -f -- "${word##*=}")); fi
  # Bash takes "=" for the end of a word, and replaces what stands behind it.
  if [[ "$word" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
    COMPREPLY=("${COMPREPLY[@]#"${word%=*}="}")
  fi
}
complete -o nospace -o default -F _tversky_seg tversky-seg
"""

ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def completion_script(shell: str, configs: Mapping[str, str | None]) -> str:
    """Write the lines that a shell evaluates to complete commands, settings and choices.

    Args:
        shell: One of SHELLS.
        configs: Name of each command -> its file in configs/; None where it takes no settings.
    """
    cases = []
    for command, config_name in configs.items():
        if config_name is not None:
            words = " ".join(_words(config_name))
            cases.append(f'    *:{command}) words="{words}" ;;')
    script = SCRIPT.replace("COMMANDS", " ".join(configs)).replace("CASES", "\n".join(cases))
    return ZSH + script if shell == "zsh" else script


def _words(config_name: str) -> Sequence[str]:
    """List what may be typed after a command: choices of its groups, keys of its settings."""
    groups, _ = top_level(config_name)
    words = ["--help", "--cfg", "--config-dir"]
    for group in sorted(groups):
        words += [f"{group}={name}" for name in choices(group)]
        for folder in folders(group):
            words += [f"{group}={folder}/{name}" for name in choices(f"{group}/{folder}")]
    for key in sorted(known_keys(config_name) - groups):
        name = key.rpartition(".")[2]
        # Keys of Hydra and of Python, which nobody types.
        if not name.startswith("_") and name not in ("args", "kwargs"):
            words.append(f"{key}=")
    return words
