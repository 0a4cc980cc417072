"""Names of the settings of a sweep: what tells each from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tversky_seg.losses.checks import tversky_weights
from tversky_seg.runtime.run_settings import is_free

REPEATED = ("seed", "data.fold")
"""Settings in which the runs of one setting differ."""
EVERYTHING_EQUAL = "all runs"
Settings = Mapping[str, Any]
"""Dotted key -> value, as in `loss.beta: 0.7`."""


class LossWeights(NamedTuple):
    """Weights of a loss of the Tversky family."""

    alpha: float
    """Weight of false positives."""
    beta: float
    """Weight of false negatives."""


def loss_weights(settings: Settings) -> LossWeights | None:
    """Take alpha and beta of the loss, by whichever name it has them; None for other losses."""
    loss = str(settings.get("loss._target_", "")).rpartition(".")[2]
    # Equal formulas under other names and letters: Dice is Tversky with alpha = beta = 0.5.
    if loss == "DiceLoss":
        return LossWeights(0.5, 0.5)
    if loss == "AsymmetricSimilarityLoss":
        # b = 1.5 (the default of the loss) gives alpha 0.31 and beta 0.69.
        squared = float(settings.get("loss.b", 1.5)) ** 2
        return LossWeights(1 / (1 + squared), squared / (1 + squared))
    if loss in ("TverskyLoss", "FocalTverskyLoss", "TverskyCrossEntropyLoss"):
        alpha, beta = tversky_weights(settings.get("loss.alpha"), settings.get("loss.beta"))
        return LossWeights(alpha, beta)
    return None


def name_settings(settings: Sequence[Settings]) -> list[str]:
    """Name each setting by the classes that it uses, then by the values that tell it apart.

        TverskyLoss, loss.alpha=0.4, loss.beta=0.6, no weighting
        TverskyLoss, loss.alpha=0.2, loss.beta=0.8, no weighting
        DiceLoss, no weighting
        DiceLoss, inverse_weights

    A class is named if the settings use different ones there, and a value if it differs among the
    settings of that class. Settings that are all equal are called "all runs".
    """
    deciding = [_deciding_settings(each) for each in settings]
    # A dict keeps the order of the config, which a set would lose.
    sections: dict[str, None] = {}
    for each in deciding:
        for key in each:
            sections[_section_of(key)] = None
    words: list[list[str]] = [[] for _ in deciding]
    for section in sections:
        classes = [_class_of(each, section) for each in deciding]
        # Section "loss" of the example above: the classes are Tversky, Tversky, Dice, Dice. The two
        # Tversky settings differ in alpha and beta, the two of Dice in no value of this section.
        is_varied = len(set(classes)) > 1
        for class_name in dict.fromkeys(classes):
            members = [k for k, other in enumerate(classes) if other == class_name]
            keys = _differing_keys([deciding[k] for k in members], section)
            for k in members:
                if is_varied:
                    words[k].append(class_name)
                for key in keys:
                    words[k].append(f"{key}={_format_setting(deciding[k].get(key))}")
    return [", ".join(each) or EVERYTHING_EQUAL for each in words]


def _deciding_settings(settings: Settings) -> dict[str, Any]:
    """Leave out what may differ within a setting, and fill in alpha and beta as they act."""
    deciding: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in REPEATED and not is_free(key):
            deciding[key] = value
    weights = loss_weights(settings)
    # beta=0.7 and alpha=null act as alpha=0.3 and beta=0.7, so they are one setting.
    if weights and "loss.beta" in deciding:
        deciding["loss.alpha"] = weights.alpha
        deciding["loss.beta"] = weights.beta
    return deciding


def _section_of(key: str) -> str:
    """Take the first part of a dotted key: `loss` of `loss.beta`."""
    return key.partition(".")[0]


def _class_of(settings: Settings, section: str) -> str:
    """Name the class that a section of the config builds; "" where it builds none."""
    target = settings.get(f"{section}._target_")
    if target:
        return str(target).rpartition(".")[2]
    if section in settings and settings[section] is None:
        return f"no {section}"
    return ""


def _differing_keys(settings: Sequence[Settings], section: str) -> list[str]:
    """List the keys of a section, except for its class, whose values differ."""
    keys: set[str] = set()
    for each in settings:
        for key in each:
            if _section_of(key) == section:
                keys.add(key)
    differing: list[str] = []
    for key in sorted(keys):
        # By repr, because a list has no hash.
        values = {repr(each.get(key)) for each in settings}
        if len(values) > 1 and not key.endswith("_target_"):
            differing.append(key)
    return differing


def _format_setting(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
