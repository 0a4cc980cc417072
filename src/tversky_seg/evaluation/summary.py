"""What a cohort of judged cases amounts to: the content of metrics.json and of the curves beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.case import Case
from tversky_seg.metrics.agreement import (
    VOLUME_EDGES_MM3,
    VolumeBin,
    bland_altman,
    isbi_score,
    quartile_edges,
    recall_by_volume,
    volume_correlation,
)
from tversky_seg.metrics.calibration import calibrate
from tversky_seg.metrics.case_metrics import (
    FURTHER_METRICS,
    METRICS,
    NO_DISTANCES,
    NO_RANKING,
    CaseMetrics,
    mean_metrics,
    ranking_from_histogram,
)
from tversky_seg.metrics.froc import (
    LUNA_POINTS,
    LesionScores,
    average_recall,
    pool_lesion_scores,
    recall_at,
)
from tversky_seg.metrics.lesions import LesionCounts
from tversky_seg.metrics.score_histogram import ScoreHistogram, level_of

THRESHOLDS = np.arange(1, 200) / 200  # of threshold_curve.csv
Rows = list[dict[str, float]]


@dataclass
class ClassRecord:
    """What is kept of one class beside its counts: as much for a thousand cases as for one, but for single lesions."""

    histogram: ScoreHistogram | None = None
    """Of all voxels; None once a case has no probabilities."""
    f_sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, len(THRESHOLDS))))
    """Sums over cases of Dice and F2 at each of `THRESHOLDS`."""
    n_curves: int = 0
    scores: list[LesionScores] = field(default_factory=list)
    volume_mm3: list[NDArray[np.float64]] = field(default_factory=list)
    detected: list[NDArray[np.bool_]] = field(default_factory=list)

    def add_histogram(self, histogram: ScoreHistogram | None, *, is_first: bool) -> None:
        """Add the voxels of a case."""
        if is_first:
            self.histogram = histogram
        else:
            self.histogram = self.histogram + histogram if self.histogram and histogram else None
        if histogram and histogram.n_positive.any():
            self.f_sums += [histogram.f(b)[level_of(THRESHOLDS)] for b in (1, 2)]
            self.n_curves += 1


@dataclass
class Cohort:
    """What was counted so far: small numbers per case, one histogram per class."""

    judged: list[tuple[Case, dict[str, CaseMetrics]]] = field(default_factory=list)
    classes: dict[str, ClassRecord] = field(default_factory=dict)
    raters: dict[int, list[dict[str, CaseMetrics]]] = field(default_factory=dict)
    """Number of a label column (1 label, 2 label_2, ...) -> judgements against what that rater drew."""
    new_lesions: list[tuple[Case, Case, dict[str, LesionCounts]]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    shifted: list[str] = field(default_factory=list)

    def of_class(self, name: str) -> list[CaseMetrics]:
        """One judgement per case."""
        return [judgements[name] for _, judgements in self.judged]

    def pooled(self, name: str) -> CaseMetrics:
        """All voxels and lesions of one class together."""
        histogram = self.classes[name].histogram
        ranking = ranking_from_histogram(histogram) if histogram else NO_RANKING
        return replace(reduce(add, self.of_class(name)), ranking=ranking, distances=NO_DISTANCES)


def summarize(
    cohort: Cohort, settings: Mapping[str, Any], *, n_bootstrap: int, seed: int
) -> dict[str, Any]:
    """What metrics.json holds (docs/metrics.md), in plain values with None for NaN.

    Args:
        cohort: at least one judged case.
        settings: threshold and lesion_rule, as they will stand there.
        n_bootstrap: resamplings of the subjects behind the intervals.
        seed: of the resamplings.
    """
    names, subjects = list(cohort.classes), [case.subject_id for case, _ in cohort.judged]

    def statistics(
        rows: Mapping[str, Rows], pooled: Mapping[str, Mapping[str, float]]
    ) -> dict[str, Any]:
        return {
            "mean": one({name: mean_metrics(rows[name]) for name in names}),
            "ci95": one(
                {
                    name: _intervals(
                        rows[name],
                        subjects,
                        n_bootstrap=n_bootstrap,
                        rng=np.random.default_rng(seed),
                    )
                    for name in names
                }
            ),
            "pooled": one(pooled),
            "undefined": one(
                {
                    name: {m: sum(math.isnan(row[m]) for row in rows[name]) for m in rows[name][0]}
                    for name in names
                }
            ),
        }

    def of_each_class(summary: Callable[[str], Any]) -> Any:
        return one({name: summary(name) for name in names})

    pooled = {name: cohort.pooled(name) for name in names}
    metrics = {
        "n_cases": len(cohort.judged),
        **settings,
        **statistics(
            {name: [judgement.metrics() for judgement in cohort.of_class(name)] for name in names},
            {name: judgement.metrics() for name, judgement in pooled.items()},
        ),
        "cases": [
            {"case_id": case.case_id, "subject_id": case.subject_id}
            | one({name: all_measures(judgement) for name, judgement in judgements.items()})
            for case, judgements in cohort.judged
        ],
        "further": statistics(
            {
                name: [judgement.further_metrics() for judgement in cohort.of_class(name)]
                for name in names
            },
            {name: judgement.further_metrics() for name, judgement in pooled.items()},
        ),
        "cohort": of_each_class(lambda name: _agreement_with_all(cohort, name)),
        "recall_by_volume": of_each_class(lambda name: _recall_by_volume(cohort.classes[name])),
        "froc": of_each_class(lambda name: _froc(cohort.classes[name], n_cases=len(cohort.judged))),
        "calibration": of_each_class(lambda name: _calibration(cohort.classes[name].histogram)),
        "lesion_free": of_each_class(lambda name: _lesion_free(cohort, name)),
        "raters": of_each_class(lambda name: _raters(cohort, name)),
        "new_lesions": of_each_class(lambda name: _new_lesions(cohort, name)),
    }
    faults = {"faults": cohort.faults} if cohort.faults else {}
    return {key: plain(value) for key, value in (metrics | faults).items()}


def all_measures(judgement: CaseMetrics) -> dict[str, float]:
    """The published measures of a case, then the further ones."""
    return judgement.metrics() | judgement.further_metrics()


def one(by_class: Mapping[str, Any]) -> Any:
    """The value itself where there is one class."""
    return next(iter(by_class.values())) if len(by_class) == 1 else dict(by_class)


def plain(value: Any) -> Any:
    """The same for JSON: NaN and infinity are None."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def case_rows(cohort: Cohort) -> Iterator[tuple[Any, ...]]:
    """Rows of cases.csv: case, subject, class, all measures; empty cells where undefined."""
    for case, judgements in cohort.judged:
        for name, judgement in judgements.items():
            values = (
                "" if math.isnan(value) else value for value in all_measures(judgement).values()
            )
            yield case.case_id, case.subject_id, name, *values


CASE_COLUMNS = ("case_id", "subject_id", "class", *METRICS, *FURTHER_METRICS)
FROC_COLUMNS = (
    "class",
    "threshold",
    "recall",
    "false_lesions_per_case",
    "false_lesions_per_recorded_case",
)
THRESHOLD_COLUMNS = (
    "class",
    "threshold",
    "precision",
    "recall",
    "dice",
    "f2",
    "mean_dice",
    "mean_f2",
)


def froc_rows(cohort: Cohort) -> Iterator[tuple[Any, ...]]:
    """Rows of froc.csv; none for a class of masks."""
    for name, record in cohort.classes.items():
        if record.histogram is not None:
            scores = pool_lesion_scores(record.scores)
            recorded = scores.curve(only_cases_with_lesions=True).false_lesions_per_case
            for values in zip(*scores.curve(), recorded, strict=True):
                yield name, f"{values[0]:.7f}", *map(_cell, values[1:])


def threshold_rows(cohort: Cohort) -> Iterator[tuple[Any, ...]]:
    """Rows of threshold_curve.csv: all voxels pooled, and the mean over the cases with lesion; none for masks."""
    for name, record in cohort.classes.items():
        if record.histogram is None:
            continue
        tp, predicted = record.histogram.at_or_above(THRESHOLDS)
        total = int(record.histogram.n_positive.sum())
        levels = level_of(THRESHOLDS)
        with np.errstate(invalid="ignore"):
            columns = (
                tp / predicted,
                tp / (total or math.nan),
                record.histogram.f(1)[levels],
                record.histogram.f(2)[levels],
                *record.f_sums / (record.n_curves or math.nan),
            )
        for threshold, *values in zip(THRESHOLDS, *columns, strict=True):
            yield name, f"{threshold:g}", *map(_cell, values)


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.9g}"


def _agreement_with_all(cohort: Cohort, name: str) -> dict[str, Any]:
    """Agreement with the labels, and the mean ISBI score over the raters, as that challenge ranked."""
    scores = [rater["isbi_score"] for rater in _raters(cohort, name)]
    over_raters = float(np.mean(scores)) if scores else math.nan
    return _agreement(cohort.of_class(name)) | {"isbi_score_over_raters": over_raters}


def _agreement(judgements: Sequence[CaseMetrics]) -> dict[str, Any]:
    predicted = [judgement.predicted_volume_mm3 for judgement in judgements]
    reference = [judgement.reference_volume_mm3 for judgement in judgements]
    difference, correlation = (
        bland_altman(predicted, reference),
        volume_correlation(predicted, reference),
    )
    mean = mean_metrics([judgement.metrics() for judgement in judgements])
    terms = {name: mean[name] for name in ("dice", "precision", "lesion_fpr", "lesion_tpr")}
    lowest, highest = difference.limits
    return {
        "n_cases": len(judgements),
        "volume_correlation": correlation,
        "bland_altman": {
            "bias_mm3": difference.bias,
            "sd_mm3": difference.sd,
            "lowest_mm3": lowest,
            "highest_mm3": highest,
        },
        "isbi_score": isbi_score(**terms, correlation=correlation),
    }


def _recall_by_volume(record: ClassRecord) -> dict[str, Any]:
    volumes = np.concatenate([np.zeros(0), *record.volume_mm3])
    detected = np.concatenate([np.zeros(0, bool), *record.detected])
    edges = {"quartiles": quartile_edges(volumes), "fixed": VOLUME_EDGES_MM3}
    return {
        key: [_bin(found) for found in recall_by_volume(volumes, detected, e)]
        for key, e in edges.items()
    }


def _bin(found: VolumeBin) -> dict[str, Any]:
    return {
        "from_mm3": found.from_mm3,
        "to_mm3": found.to_mm3,
        "n_lesions": found.n_lesions,
        "n_detected": found.n_detected,
        "recall": found.recall,
    }


def _froc(record: ClassRecord, *, n_cases: int) -> dict[str, Any] | None:
    if record.histogram is None:
        return None
    scores = pool_lesion_scores(record.scores)
    curve, n_found = scores.curve(), len(scores.detected)
    recall = (
        recall_at(curve, LUNA_POINTS) if scores.n_reference else np.full(len(LUNA_POINTS), math.nan)
    )
    return {
        "average_recall": average_recall(curve) if scores.n_reference else math.nan,
        "recall_at": {
            f"{point:g}": float(value) for point, value in zip(LUNA_POINTS, recall, strict=True)
        },
        "highest_recall": n_found / scores.n_reference if scores.n_reference else math.nan,
        "false_lesions_per_case": len(scores.false) / n_cases,
        "n_cases": n_cases,
        "recorded": {
            "n_cases": scores.n_cases_with_lesions,
            "average_recall": average_recall(scores.curve(only_cases_with_lesions=True))
            if scores.n_reference
            else math.nan,
        },
        "object_dice": float(scores.dice.mean()) if n_found else math.nan,
        "object_dice_sd": float(scores.dice.std()) if n_found else math.nan,
    }


def _calibration(histogram: ScoreHistogram | None) -> dict[str, Any] | None:
    if histogram is None:
        return None
    found = calibrate(histogram)
    columns = (
        found.edges[:-1],
        found.edges[1:],
        found.n_voxels,
        found.mean_probability,
        found.lesion_share,
    )
    names = ("from", "to", "n_voxels", "mean_probability", "lesion_share")
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {
        "expected_calibration_error": found.error,
        "bins": [dict(zip(names, row, strict=True)) for row in rows],
    }


def _lesion_free(cohort: Cohort, name: str) -> dict[str, Any]:
    """Cases without a reference voxel: all that is predicted there is false."""
    cases = [
        {
            "case_id": case.case_id,
            "n_false_lesions": judgements[name].lesions.n_predicted,
            "false_volume_mm3": judgements[name].predicted_volume_mm3,
        }
        for case, judgements in cohort.judged
        if not judgements[name].reference_volume_mm3
    ]
    return {
        "n_cases": len(cases),
        "n_clean": sum(not case["false_volume_mm3"] for case in cases),
        "n_false_lesions": sum(case["n_false_lesions"] for case in cases),
        "false_volume_mm3": sum(case["false_volume_mm3"] for case in cases),
        "cases": cases,
    }


def _raters(cohort: Cohort, name: str) -> list[dict[str, Any]]:
    found = []
    for number, judged in sorted(cohort.raters.items()):
        judgements = [by_class[name] for by_class in judged]
        agreement = _agreement(judgements)
        found.append(
            {
                "label": number,
                "n_cases": len(judgements),
                "mean": mean_metrics([judgement.metrics() for judgement in judgements]),
                "volume_correlation": agreement["volume_correlation"],
                "isbi_score": agreement["isbi_score"],
            }
        )
    return found


def _new_lesions(cohort: Cohort, name: str) -> dict[str, Any] | None:
    if not cohort.new_lesions:
        return None
    total = reduce(add, (by_class[name] for _, _, by_class in cohort.new_lesions))
    return {
        "n_pairs": len(cohort.new_lesions),
        **_counts(total),
        "tpr": total.tpr,
        "fpr": total.fpr,
        "f1": total.f1,
        "pairs": [
            {"subject_id": after.subject_id, "from_case": before.case_id, "to_case": after.case_id}
            | _counts(by_class[name])
            for before, after, by_class in cohort.new_lesions
        ],
    }


def _counts(found: LesionCounts) -> dict[str, int]:
    return {
        "n_reference": found.n_reference,
        "n_detected": found.n_detected,
        "n_predicted": found.n_predicted,
        "n_unmatched": found.n_unmatched,
    }


def _intervals(
    rows: Sequence[Mapping[str, float]],
    subjects: Sequence[str],
    *,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> dict[str, list[float]]:
    """95 % percentile intervals of the means, drawing whole subjects with replacement; NaN for a single subject."""
    values = np.array([list(row.values()) for row in rows], dtype=np.float64)
    which = np.unique(subjects, return_inverse=True)[1]
    n_subjects = which.max() + 1
    sums, counts = np.zeros((2, n_subjects, values.shape[1]))
    np.add.at(sums, which, np.nan_to_num(values))
    np.add.at(counts, which, ~np.isnan(values))
    draws = rng.multinomial(n_subjects, np.full(n_subjects, 1 / n_subjects), size=n_bootstrap)
    with np.errstate(invalid="ignore"):
        means = (draws @ sums) / (draws @ counts)
    limits = []
    for column, subjects_with in zip(means.T, (counts > 0).sum(axis=0), strict=True):
        drawn = column[~np.isnan(column)]
        limits.append(
            np.percentile(drawn, (2.5, 97.5)).tolist()
            if subjects_with > 1
            else [math.nan, math.nan]
        )
    return dict(zip(rows[0], limits, strict=True))
