"""Settings that differ in alpha and beta alone: the lines of the figures of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tversky_seg.analysis.setting_names import LossWeights, Settings, name_settings
from tversky_seg.analysis.summaries import Summary, summarize_settings
from tversky_seg.analysis.sweep import Setting

METRICS = ("sensitivity", "precision", "dice", "f2", "lesion_tpr")
"""Metrics that the figures show."""
NAMES_OF_WEIGHTS = {"loss._target_", "loss.alpha", "loss.beta", "loss.b"}
"""Settings that say alpha and beta, among them the class: Dice loss is Tversky at 0.5 and 0.5."""


@dataclass(frozen=True)
class WeightPoint:
    """One setting of a line, in one class."""

    weights: LossWeights
    summaries: Mapping[str, Summary]
    """Metric -> summary, for each of `METRICS`."""


@dataclass(frozen=True)
class WeightLine:
    """Settings that differ in alpha and beta alone, in one class."""

    name: str
    """What tells it from the other lines; "" where it is the only one."""
    points: Sequence[WeightPoint]

    def summaries(self, metric: str) -> list[Summary]:
        """List the summaries of a metric, point by point."""
        return [point.summaries[metric] for point in self.points]

    def means(self, metric: str) -> list[float]:
        """List the means of a metric, point by point."""
        return [summary.mean for summary in self.summaries(metric)]


def weight_lines(settings: Sequence[Setting]) -> list[WeightLine]:
    """Join the settings that differ in alpha and beta alone, class by class.

    Returns:
        Lines of at least two points. Settings whose loss has no alpha and beta are left out.
    """
    groups = _groups_by_weights(settings)
    # The classes are those of the data, so all settings have the same.
    classes: list[str] = []
    if settings:
        classes = list(next(iter(settings[0].cohorts.values())).rows)
    lines: list[WeightLine] = []
    for group_name, members in groups.items():
        by_key: dict[Any, Summary] = {}
        for summary in summarize_settings(members, metrics=METRICS):
            by_key[summary.setting, summary.class_name, summary.metric] = summary
        for class_name in classes:
            words: list[str] = []
            if len(classes) > 1:
                words.append(class_name)
            if len(groups) > 1:
                words.append(group_name)
            points: list[WeightPoint] = []
            for setting in members:
                assert setting.weights is not None
                of_metric = {m: by_key[setting.name, class_name, m] for m in METRICS}
                points.append(WeightPoint(setting.weights, of_metric))
            lines.append(WeightLine(", ".join(words), points))
    return lines


def _groups_by_weights(settings: Sequence[Setting]) -> dict[str, list[Setting]]:
    """Group settings by all that they set beside alpha and beta."""
    weighted = [setting for setting in settings if setting.weights is not None]
    groups: dict[str, list[Setting]] = {}
    names = name_settings([_beside_weights(setting) for setting in weighted])
    for name, setting in zip(names, weighted, strict=True):
        groups.setdefault(name, []).append(setting)
    lines: list[list[Setting]] = []
    for members in groups.values():
        if len({setting.weights for setting in members}) > 1:
            lines.append(members)
    # Named again, since the groups left out may have been the only ones to differ in a setting.
    names = name_settings([_beside_weights(members[0]) for members in lines])
    return dict(zip(names, lines, strict=True))


def _beside_weights(setting: Setting) -> Settings:
    """Leave out alpha and beta, and settings that only some of the equal formulas have."""
    beside: dict[str, Any] = {}
    for key, value in setting.runs[0].settings.items():
        # Dice loss has `squared`; at false it is the formula of Tversky loss.
        is_default_square = key == "loss.squared" and not value
        if key not in NAMES_OF_WEIGHTS and not is_default_square:
            beside[key] = value
    return beside
