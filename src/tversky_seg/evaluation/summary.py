"""The content of metrics.json: an evaluated cohort in plain numbers (docs/metrics.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from operator import add
from typing import Any

from tversky_seg.evaluation.calibration_summary import summarize_calibration
from tversky_seg.evaluation.cohort import EvaluatedCohort
from tversky_seg.evaluation.cohort_statistics import (
    MetricRow,
    summarize_groups,
    summarize_metrics,
)
from tversky_seg.evaluation.detection import (
    summarize_froc,
    summarize_lesion_free,
    summarize_sizes,
    summarize_volumes,
)
from tversky_seg.evaluation.doubt import doubt_summary
from tversky_seg.evaluation.rater_agreement import (
    compare_raters,
    summarize_agreement,
    summarize_consensus,
    summarize_raters,
)
from tversky_seg.evaluation.region_counts import summarize_regions
from tversky_seg.evaluation.scan_rescan import summarize_repeats
from tversky_seg.evaluation.volume_change import summarize_change
from tversky_seg.metrics.averages import unwrap_single
from tversky_seg.metrics.case_metrics import CaseMetrics
from tversky_seg.metrics.lesions import LesionCounts


def summarize(
    cohort: EvaluatedCohort,
    *,
    threshold: Any,
    lesion_rule: Mapping[str, Any],
    n_bootstrap: int,
    seed: int,
    by: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Summarize a cohort as plain values, with None for NaN.

    With several classes, each metric stands under the name of its class.

    Args:
        cohort: Cohort of at least one case.
        threshold: Threshold of the masks, as it shall be recorded.
        lesion_rule: Rule of the lesions, as it shall be recorded.
        n_bootstrap: Resamplings of the subjects for the intervals.
        seed: Seed of the resamplings.
        by: Columns by which the cases are grouped, each a section `by_<column>`; None: site,
            scanner and modalities where cases differ in them.
    """
    summary: dict[str, Any] = {
        "n_cases": len(cohort.cases),
        "threshold": threshold,
        "lesion_rule": lesion_rule,
    }
    # The same resamplings for all three, so that their intervals can be compared.
    statistics = partial(summarize_metrics, cohort, n_bootstrap=n_bootstrap, seed=seed)
    summary |= statistics(CaseMetrics.metrics)
    summary["cases"] = _cases(cohort)
    summary["further"] = statistics(CaseMetrics.further_metrics)
    summary["by_lesion"] = statistics(CaseMetrics.lesion_metrics)

    # These sections of metrics.json have one summary for each class.
    sections = {
        "cohort": summarize_agreement,
        "recall_by_volume": summarize_volumes,
        "froc": summarize_froc,
        "calibration": summarize_calibration,
        "retention": doubt_summary,
        "lesion_free": summarize_lesion_free,
        "raters": summarize_raters,
        "consensus": summarize_consensus,
        "between_raters": compare_raters,
        "new_lesions": _new_lesions,
        "regions": _regions,
        "repeatability": _repeatability,
        "change": _change,
    }
    for title, section in sections.items():
        summary[title] = unwrap_single({name: section(cohort, name) for name in cohort.totals})
    summary["by_size"] = summarize_sizes(cohort, n_bootstrap=n_bootstrap, seed=seed)
    summary |= summarize_groups(cohort, by, n_bootstrap=n_bootstrap, seed=seed)
    if cohort.faults:
        summary["faults"] = cohort.faults
    plain: dict[str, Any] = _without_nan(summary)
    return plain


def all_metrics(metrics: CaseMetrics) -> MetricRow:
    """Join all metrics of a case: the published ones, the further ones and those by lesion."""
    return metrics.metrics() | metrics.further_metrics() | metrics.lesion_metrics()


def _cases(cohort: EvaluatedCohort) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for case, by_class in zip(cohort.cases, cohort.metrics, strict=True):
        values = unwrap_single({name: all_metrics(metrics) for name, metrics in by_class.items()})
        rows.append({"case_id": case.case_id, "subject_id": case.subject_id, **values})
    return rows


def _regions(cohort: EvaluatedCohort, name: str) -> dict[str, Any] | None:
    case_ids = [case.case_id for case in cohort.cases]
    subject_ids = [case.subject_id for case in cohort.cases]
    return summarize_regions(case_ids, subject_ids, cohort.regions[name])


def _repeatability(cohort: EvaluatedCohort, name: str) -> dict[str, Any] | None:
    return summarize_repeats(cohort.repeats.get(name, []))


def _new_lesions(cohort: EvaluatedCohort, name: str) -> dict[str, Any] | None:
    if not cohort.session_pairs:
        return None
    # Rates are made of the counts of all pairs: many pairs have no new lesion, hence no rate.
    total = reduce(add, (pair.counts[name] for pair in cohort.session_pairs))
    pairs: list[dict[str, Any]] = []
    for pair in cohort.session_pairs:
        row = {
            "subject_id": pair.after.subject_id,
            "from_case": pair.before.case_id,
            "to_case": pair.after.case_id,
            **_lesion_counts(pair.counts[name]),
        }
        pairs.append(row)
    return {
        "n_pairs": len(pairs),
        **_lesion_counts(total),
        "tpr": total.tpr,
        "fpr": total.fpr,
        "f1": total.f1,
        "pairs": pairs,
    }


def _change(cohort: EvaluatedCohort, name: str) -> dict[str, Any] | None:
    return summarize_change(cohort.session_pairs, name)


def _lesion_counts(counts: LesionCounts) -> dict[str, int]:
    return {
        "n_reference": counts.n_reference,
        "n_detected": counts.n_detected,
        "n_predicted": counts.n_predicted,
        "n_unmatched": counts.n_unmatched,
    }


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity by None, which JSON knows, at every depth."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
