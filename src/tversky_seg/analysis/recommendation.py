"""The setting of a sweep that serves a goal best, by the validation cases alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import variance

from tversky_seg.analysis.sweep import Setting, SweepRun
from tversky_seg.inference.operating_point import check_goal
from tversky_seg.metrics.averages import mean_of_defined
from tversky_seg.report.labels import LABELS, count


@dataclass(frozen=True)
class Recommendation:
    """The setting that serves a goal best on the validation cases."""

    setting: Setting | None
    """None where validation does not tell."""
    text: str
    """A sentence on why."""


@dataclass(frozen=True)
class _Objective:
    """Metric to maximise, and the recall that must be reached."""

    metric: str
    recall: str = ""
    """Metric of the recall; "" where none is asked for."""
    lowest_recall: float = 0.0


@dataclass(frozen=True)
class _Candidate:
    """A setting and its mean metrics on the validation cases."""

    setting: Setting
    means: dict[str, float]

    def value(self, metric: str) -> float:
        """Return the mean of a metric; lower than any other where it is undefined."""
        value = self.means.get(metric, math.nan)
        if math.isnan(value):
            return -math.inf  # NaN compares as neither higher nor lower, so max would misplace it
        return value

    def reaches(self, objective: _Objective) -> bool:
        """Tell whether the recall is high enough, if one is asked for."""
        return not objective.recall or self.value(objective.recall) >= objective.lowest_recall


def recommend(settings: Sequence[Setting], goal: str) -> Recommendation:
    """Choose the setting that serves a goal best on the validation cases, never on the test cases.

    Args:
        settings: Settings of a sweep.
        goal: "dice", "f2" or "lesion_f1"; "recall=r": the best precision where sensitivity reaches
            r; "lesion_recall=r": the best lesion F1 where the share of detected lesions reaches r.

    Returns:
        No setting where a run has no validation cases, or where all leave the metric undefined.

    Raises:
        ValueError: The goal is unknown.
    """
    check_goal(goal)
    runs: list[SweepRun] = []
    for setting in settings:
        runs += setting.runs
    # The test cases would answer as well, but a setting chosen by them looks better than it is.
    without_validation = [run for run in runs if not run.validation]
    if without_validation:
        runs_text = count(len(without_validation), "run")
        return Recommendation(
            None,
            f"No setting is recommended: {runs_text} had no validation cases "
            f"(as {without_validation[0].folder}).",
        )
    objective = _objective_of(goal)
    candidates: list[_Candidate] = []
    for setting in settings:
        candidates.append(_Candidate(setting, _validation_means(setting)))
    if all(candidate.value(objective.metric) == -math.inf for candidate in candidates):
        return Recommendation(
            None,
            f"No setting is recommended: {LABELS[objective.metric]} is undefined on the "
            "validation cases of all.",
        )
    eligible = [candidate for candidate in candidates if candidate.reaches(objective)]
    # Of equal candidates max keeps the first, which is that of the smallest beta.
    if eligible:
        best = max(eligible, key=lambda candidate: candidate.value(objective.metric))
    else:
        # Too little recall everywhere: the highest comes closest to what was asked for.
        best = max(candidates, key=lambda candidate: candidate.value(objective.recall))
    text = (
        f"Recommended for {goal}, by validation alone ({count(len(runs), 'run')}): "
        f"{best.setting.name} ({_describe(best, objective)} on validation)."
    )
    if not eligible:
        text += f" No setting reaches {goal}; this one has the highest recall."
    else:
        text += _compare_with_next(best, eligible, objective.metric)
    return Recommendation(best.setting, text)


def _compare_with_next(best: _Candidate, eligible: Sequence[_Candidate], metric: str) -> str:
    """Warn where the lead over the next setting is smaller than the spread of the seeds."""
    others = [candidate for candidate in eligible if candidate is not best]
    if not others:
        return ""
    following = max(others, key=lambda candidate: candidate.value(metric))
    lead = best.value(metric) - following.value(metric)
    spread = _seed_spread([best.setting, following.setting], metric)
    if math.isnan(spread) or lead >= spread:
        return ""
    return (
        f" Its lead over {following.setting.name} ({lead:.3f}) is smaller than the spread of seeds "
        f"({spread:.3f}): another seed may turn them around."
    )


def _seed_spread(settings: Sequence[Setting], metric: str) -> float:
    """Pool the standard deviation between seeds of a metric on validation; NaN of one seed each."""
    squares = 0.0
    n_free = 0
    for setting in settings:
        means: list[float] = []
        for seed in setting.cohorts:
            runs = setting.runs_of_seed(seed)
            means.append(mean_of_defined(run.validation.get(metric, math.nan) for run in runs))
        defined = [mean for mean in means if not math.isnan(mean)]
        if len(defined) > 1:
            squares += variance(defined) * (len(defined) - 1)
            n_free += len(defined) - 1
    return math.sqrt(squares / n_free) if n_free else math.nan


def _objective_of(goal: str) -> _Objective:
    # "recall=0.8": the best precision of the settings whose sensitivity reaches 0.8.
    kind, _, target = goal.partition("=")
    if kind == "recall":
        return _Objective("precision", "sensitivity", float(target))
    if kind == "lesion_recall":
        return _Objective("lesion_f1", "lesion_tpr", float(target))
    return _Objective(kind)


def _validation_means(setting: Setting) -> dict[str, float]:
    """Average the metrics that all runs of a setting recorded."""
    recorded = [run.validation for run in setting.runs]
    means: dict[str, float] = {}
    for metric in recorded[0]:
        # A mean over some of the folds would not be of the same cases as the other means.
        if all(metric in metrics for metrics in recorded):
            means[metric] = mean_of_defined(metrics[metric] for metrics in recorded)
    return means


def _describe(candidate: _Candidate, objective: _Objective) -> str:
    texts: list[str] = []
    for metric in (objective.metric, objective.recall):
        if metric:
            value = candidate.means.get(metric, math.nan)
            texts.append(f"{LABELS[metric]} {value:.3f}")
    return ", ".join(texts)
