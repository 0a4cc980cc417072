"""Hints at the right key for a wrong one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tversky_seg.config.checks import nearest
from tversky_seg.config.config_files import choices, keys_of_choice, known_keys

USUAL_NAMES: Mapping[str, str] = {
    "amp": "trainer.precision",
    "cuda": "trainer.device",
    "gpu": "trainer.device",
    "gpus": "trainer.device",
    "iterations": "trainer.max_steps",
    "learning_rate": "optimizer.lr",
    "max_iterations": "trainer.max_steps",
    "num_steps": "trainer.max_steps",
    "num_workers": "trainer.n_workers",
    "steps": "trainer.max_steps",
    "workers": "trainer.n_workers",
}
"""Names of other tools -> ours."""

MAIN_COMMANDS = ("train", "predict", "evaluate")
"""Those whose keys a user takes for one another's."""

NAMES_OF_EPOCHS = ("epoch", "epochs", "max_epochs", "n_epochs", "num_epochs")

MOST_NAMESAKES = 3
"""Keys of the same last part that a hint lists."""


def unknown_key(key: str, *, config_name: str, chosen: Mapping[str, Sequence[str]]) -> str:
    """Say why a command does not know a key: it is misspelt, or belongs to another choice.

    Args:
        key: The key as it was typed.
        config_name: The command.
        chosen: Choices of each group; none where they are not known.
    """
    keys = known_keys(config_name)
    if key not in keys:
        homes = _commands_with(key, besides=config_name)
        if homes:
            return f"{key}: is a key of {' and '.join(homes)}, not of {config_name}.py; see --help"
        return f"{key}: no such key; {similar_key(key, keys)}"
    group, _, name = key.partition(".")
    if not name:
        return f"{key}: cannot be set here; --help shows what can be set"
    return _key_of_another_choice(key, chosen=chosen.get(group, ()))


def _commands_with(key: str, *, besides: str) -> list[str]:
    """List the commands that have a key, as `predict.py`."""
    others = [name for name in MAIN_COMMANDS if name != besides]
    return [f"{name}.py" for name in others if key in known_keys(name)]


def similar_key(key: str, keys: Collection[str]) -> str:
    """Name the key that was probably meant.

    Args:
        key: A key that does not exist, such as `lr`.
        keys: All keys that exist.
    """
    return usual_name(key, keys) or nearest(key, keys)


def usual_name(key: str, keys: Collection[str]) -> str | None:
    """Name the key that has this name in another tool, or below some groups; None if none has.

    Args:
        key: A key that does not exist, such as `epochs` or `lr`.
        keys: All keys that exist.
    """
    name = key.rpartition(".")[2].lower()
    # Names of other tools come before similar names: `epochs` resembles `trainer.loss` by letters.
    if name in NAMES_OF_EPOCHS and "trainer.max_steps" in keys:
        return "training is counted in steps: set trainer.max_steps"
    if USUAL_NAMES.get(name) in keys:
        return f"did you mean {USUAL_NAMES[name]}?"
    # `lr` is `optimizer.lr`, `batch_size` is that of the trainer or of the inference.
    namesakes = sorted(other for other in keys if other.rpartition(".")[2] == name)
    if 0 < len(namesakes) <= MOST_NAMESAKES:
        return f"did you mean {' or '.join(namesakes)}?"
    return None


def _key_of_another_choice(key: str, *, chosen: Sequence[str]) -> str:
    """Say how to set a key that the chosen file does not set, or which choices have it."""
    group, _, name = key.partition(".")
    # A choice has a key if its file sets it or its class takes it.
    owners = [choice for choice in choices(group) if key in keys_of_choice(group, choice)]
    if set(chosen) & set(owners):
        return f"{key}: not in the chosen file; add it with +{key}=…"
    subject = f"the chosen {group}"
    if chosen:
        subject = f"{group}={chosen[-1]}"
    return f"{key}: {subject} has no {name}; choose {group}={' or '.join(owners)}"
