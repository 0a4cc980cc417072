"""Judge saved predictions against their references: case by case, as a mean with intervals, and pooled.

One case is in memory at a time. Ranking measures of the cohort come from a histogram of the saved probabilities.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import Volume, read_label
from tversky_seg.evaluation.saved_predictions import (
    Prediction,
    Predictions,
    check_grid,
    open_predictions,
)
from tversky_seg.evaluation.summary import (
    CASE_COLUMNS,
    FROC_COLUMNS,
    THRESHOLD_COLUMNS,
    ClassRecord,
    Cohort,
    case_rows,
    froc_rows,
    one,
    summarize,
    threshold_rows,
)
from tversky_seg.metrics.case_metrics import (
    FURTHER_METRICS,
    METRICS,
    TOLERANCE_MM,
    CaseMetrics,
    measure_case,
    ranking_from_histogram,
)
from tversky_seg.metrics.froc import lesion_scores
from tversky_seg.metrics.lesion_rule import (
    ANY_OVERLAP,
    LesionRule,
    detected_lesions,
    matched_lesions,
)
from tversky_seg.metrics.lesions import LesionCounts, LesionMatch
from tversky_seg.metrics.masks import Mask
from tversky_seg.metrics.new_lesions import new_lesion_counts
from tversky_seg.metrics.score_histogram import ScoreHistogram, levels_histogram, to_levels
from tversky_seg.report.page import Curve, curve_figure, write_report
from tversky_seg.report.slices import choose_cases, png, show_case, viewed_case
from tversky_seg.runtime.progress import track

__all__ = ["FURTHER_METRICS", "METRICS", "LesionRule", "evaluate"]

LESION_COLUMNS = (
    "case_id",
    "class",
    "mask",
    "lesion",
    "volume_mm3",
    "x_mm",
    "y_mm",
    "z_mm",
    "overlap",
    "matched",
)
FINE_SHIFT = 0.01  # voxels
logger = logging.getLogger("tversky_seg")


def evaluate(
    predictions: Path | str,
    cases: Sequence[Case],
    *,
    output_dir: Path | str,
    classes: Mapping[str, Sequence[int]] | None = None,
    threshold: float | Mapping[str, float] | None = None,
    min_volume_mm3: float | Mapping[str, float] | None = None,
    pattern: str | None = None,
    background_values: Sequence[int] | None = None,
    rule: LesionRule = ANY_OVERLAP,
    tolerance_mm: float = TOLERANCE_MM,
    n_bootstrap: int = 2000,
    seed: int = 0,
    viewer: str = "worst",
) -> dict[str, Any]:
    """Judge saved predictions against the cases' labels, each on the grid of its file, and write the report.

    Args:
        predictions: folder of `<case_id>_{probability,mask}.nii.gz`, or of foreign masks named by `pattern`.
        cases: those without a label are left out.
        output_dir: gets {cases,lesions,pr_curve,froc,threshold_curve}.csv, pr_curve.png, report.html and, last,
            metrics.json.
        classes: class name -> label values; None: as predictions.json says, else `{"lesion": (1,)}`.
        threshold: for `probability >= threshold`; None: as predictions.json says, else 0.5. A number, or by class.
        min_volume_mm3: smaller predicted lesions are taken out before anything is measured; None: as predictions.json
            says, else 0. A number, or by class.
        pattern: name of another tool's masks, as `{case_id}.nii.gz`; ranking measures are then undefined.
        background_values: label values of the references that belong to no class and count as background; None: as
            predictions.json says (the `data.crop_values` of training), else none but 0.
        rule: what a lesion is and when it counts as found.
        tolerance_mm: surfaces at most this far apart agree, for the surface Dice.
        n_bootstrap: resamplings of the subjects behind `ci95`.
        seed: of the resamplings.
        viewer: the case that report.html shows in three planes: "worst" (lowest Dice), a case_id, or "none".

    Returns:
        What metrics.json holds (docs/metrics.md). Cases that could not be judged, as when a prediction is missing, are
        listed under "faults"; the key is absent where there are none.

    Raises:
        DataError: no case could be judged, the folder of predictions is missing, or `output_dir` cannot be written.
    """
    source = open_predictions(
        predictions,
        classes=classes,
        threshold=threshold,
        min_volume_mm3=min_volume_mm3,
        pattern=pattern,
        background_values=background_values,
    )
    labelled = [case for case in cases if case.label is not None]
    _check_request(
        source,
        labelled,
        output_dir=Path(output_dir),
        n_bootstrap=n_bootstrap,
        tolerance_mm=tolerance_mm,
    )
    if viewer not in ("worst", "none", *(case.case_id for case in labelled)):
        logger.warning(
            "viewer: %r is no labelled case, so none is shown; expected worst, none or a case_id",
            viewer,
        )
    with _writing_into(Path(output_dir)) as folder:
        lesion_file = folder / "lesions.csv"
        cohort = _judge_cohort(
            source, labelled, rule=rule, tolerance_mm=tolerance_mm, lesion_file=lesion_file
        )
        _judge_new_lesions(cohort, source, rule=rule)
        minimum = {"prediction_min_volume_mm3": one(source.min_volume_mm3)}
        settings = {"threshold": one(source.threshold), "lesion_rule": asdict(rule) | minimum}
        metrics = summarize(cohort, settings, n_bootstrap=n_bootstrap, seed=seed)
        metrics["surface_tolerance_mm"] = tolerance_mm
        curves = [_curve_of(cohort, name) for name in source.classes]
        picture = png(curve_figure(curves))
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
        (folder / "pr_curve.png").write_bytes(picture)
        _write_rows(folder / "cases.csv", CASE_COLUMNS, case_rows(cohort))
        _write_rows(folder / "froc.csv", FROC_COLUMNS, froc_rows(cohort))
        _write_rows(folder / "threshold_curve.csv", THRESHOLD_COLUMNS, threshold_rows(cohort))
        _write_rows(
            folder / "pr_curve.csv",
            ("class", "threshold", "precision", "recall"),
            _curve_rows(curves),
        )
        chosen, by_id = (
            choose_cases(metrics, viewed=viewer),
            {case.case_id: case for case, _ in cohort.judged},
        )
        shown = ((title, show_case(by_id[case_id], source)) for title, case_id in chosen.items())
        write_report(folder, metrics, shown=shown, viewed=viewed_case(chosen, viewer))
    return metrics


def _check_request(
    source: Predictions,
    labelled: Sequence[Case],
    *,
    output_dir: Path,
    n_bootstrap: int,
    tolerance_mm: float,
) -> None:
    twice = [
        name for name, count in Counter(case.case_id for case in labelled).items() if count > 1
    ]
    if twice:
        raise DataError("case_id", f"{twice[0]!r} stands twice", "expected each case once")
    if not labelled:
        raise DataError(
            source.folder,
            "no case has a label to judge by",
            "fill the label column of the manifest",
        )
    if output_dir.resolve() == source.folder.resolve():
        raise DataError(
            "output_dir",
            f"{output_dir} holds the predictions and their lesions.csv",
            "choose another",
        )
    if not 0 <= tolerance_mm < math.inf:
        raise DataError("tolerance_mm", f"{tolerance_mm}", "expected 0 or more")
    if n_bootstrap < 1:
        raise DataError("n_bootstrap", f"{n_bootstrap}", "expected 1 or more")


def _judge_cohort(
    source: Predictions,
    cases: Sequence[Case],
    *,
    rule: LesionRule,
    tolerance_mm: float,
    lesion_file: Path,
) -> Cohort:
    """Judge case after case; a case that cannot be judged is listed and the others go on."""
    cohort = Cohort()
    with lesion_file.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(LESION_COLUMNS)
        for case in track(cases, "judge", total=len(cases)):
            try:
                _judge_case(
                    cohort, source, case, rule=rule, tolerance_mm=tolerance_mm, writer=writer
                )
            except DataError as fault:
                cohort.faults.extend(str(one) for one in fault.faults)
    if not cohort.judged:
        raise DataError.gather([DataError(fault) for fault in cohort.faults])
    if cohort.shifted:
        logger.warning(
            "predictions that lie up to 0.6 voxel off their reference, judged voxel by voxel: %s",
            ", ".join(cohort.shifted),
        )
    for line in cohort.faults:
        logger.warning("not judged: %s", line)
    return cohort


def _judge_case(
    cohort: Cohort,
    source: Predictions,
    case: Case,
    *,
    rule: LesionRule,
    tolerance_mm: float,
    writer: Any,
) -> None:
    assert case.label is not None
    reference = _read_reference(case.label, source)
    others = {
        number: _read_rater(path, reference, source)
        for number, path in enumerate(case.labels[1:], 2)
    }
    found: dict[str, _Findings] = {}
    by_rater: dict[int, dict[str, CaseMetrics]] = {number: {} for number in others}
    for name, values in source.classes.items():
        prediction = source.read(case, name, reference=reference)
        settings = {"spacing_mm": reference.spacing_mm, "rule": rule, "tolerance_mm": tolerance_mm}
        found[name] = _judge_class(prediction, np.isin(reference.data, values), **settings)
        for number, label in others.items():
            by_rater[number][name] = _judge_class(
                prediction, np.isin(label.data, values), **settings
            ).judgement
    for name, findings in found.items():  # of a whole case or of none
        writer.writerows(_lesion_rows(case, name, findings, reference.affine, rule))
        record = cohort.classes.setdefault(name, ClassRecord())
        record.add_histogram(findings.histogram, is_first=not cohort.judged)
        if findings.histogram:
            record.scores.append(lesion_scores(findings.match))
        record.volume_mm3.append(findings.match.reference.volume_mm3)
        record.detected.append(detected_lesions(findings.match, rule))
    judgements = {name: findings.judgement for name, findings in found.items()}
    cohort.judged.append((case, judgements))
    if others and not case.consensus:  # then the label that all is judged by is one rater's too
        by_rater[1] = judgements
    for number, against_rater in by_rater.items():
        cohort.raters.setdefault(number, []).append(against_rater)
    if max(findings.shift_voxels for findings in found.values()) > FINE_SHIFT:
        cohort.shifted.append(case.case_id)


@dataclass(frozen=True, eq=False)
class _Findings:
    """What one class of a case gave."""

    judgement: CaseMetrics
    match: LesionMatch
    histogram: ScoreHistogram | None
    shift_voxels: float


def _judge_class(prediction: Prediction, target: Mask, **settings: Any) -> _Findings:
    histogram = None
    if prediction.probability is not None:
        histogram = levels_histogram(to_levels(prediction.probability), target)
    judgement, match = measure_case(
        prediction.mask, target, scores=prediction.probability, **settings
    )
    if histogram:
        judgement = replace(judgement, ranking=ranking_from_histogram(histogram))
    return _Findings(judgement, match, histogram, prediction.shift_voxels)


def _judge_new_lesions(cohort: Cohort, source: Predictions, *, rule: LesionRule) -> None:
    """Compare each judged session of a subject with the one before; sessions on different grids are left out."""
    by_subject: dict[str, list[Case]] = {}
    for case, _ in cohort.judged:
        if case.session is not None:
            by_subject.setdefault(case.subject_id, []).append(case)
    apart = []
    for cases in by_subject.values():
        for before, after in pairwise(sorted(cases, key=lambda case: _natural(str(case.session)))):
            try:
                cohort.new_lesions.append(
                    (before, after, _new_lesions(before, after, source, rule=rule))
                )
            except DataError as fault:
                apart.append(str(fault))
    if apart:
        logger.warning(
            "%d pairs of sessions not compared for new lesions, as %s", len(apart), apart[0]
        )


def _new_lesions(
    before: Case, after: Case, source: Predictions, *, rule: LesionRule
) -> dict[str, LesionCounts]:
    assert before.label is not None
    assert after.label is not None
    labels = [_read_reference(path, source) for path in (before.label, after.label)]
    check_grid(labels[0], labels[1], path=before.label)
    counts = {}
    for name, values in source.classes.items():
        predictions, references = (
            tuple(source.read(case, name, reference=labels[1]).mask for case in (before, after)),
            tuple(np.isin(label.data, values) for label in labels),
        )
        counts[name] = new_lesion_counts(
            (predictions[0], predictions[1]),
            (references[0], references[1]),
            spacing_mm=labels[1].spacing_mm,
            rule=rule,
        )
    return counts


def _natural(session: str) -> list[tuple[int, str]]:
    """A key that puts session 2 before session 10."""
    return [
        (int(part), "") if part.isdigit() else (0, part)
        for part in re.split(r"(\d+)", session)
        if part
    ]


def _read_reference(path: Path, source: Predictions) -> Volume:
    reference = read_label(path)
    known = {
        0,
        *source.background_values,
        *(value for values in source.classes.values() for value in values),
    }
    unknown = sorted(set(np.unique(reference.data).tolist()) - known)
    if unknown:
        named = ", ".join(f"{name}: {list(values)}" for name, values in source.classes.items())
        raise DataError(path, f'label values {unknown[:5]} belong to no class of {{{named}}}', 'expected other classes, or evaluation.background_values for what is none')  # fmt: skip
    return reference


def _read_rater(path: Path, reference: Volume, source: Predictions) -> Volume:
    label = _read_reference(path, source)
    check_grid(label, reference, path=path)
    return label


def _lesion_rows(
    case: Case, name: str, findings: _Findings, affine: NDArray[np.float64], rule: LesionRule
) -> Iterator[tuple[Any, ...]]:
    """Number, size, centre, covered share, and whether that makes it matched, for each lesion of both masks."""
    match = findings.match
    sides = {
        "prediction": (match.predicted, matched_lesions(match, rule)),
        "reference": (match.reference, detected_lesions(match, rule)),
    }
    for mask, (table, found) in sides.items():
        centres_mm = table.centre @ affine[:3, :3].T + affine[:3, 3]
        columns = zip(table.volume_mm3, centres_mm, table.overlap, found, strict=True)
        for number, (volume_mm3, centre_mm, overlap, is_found) in enumerate(columns, start=1):
            place = (f"{value:.2f}" for value in centre_mm)
            yield (
                case.case_id,
                name,
                mask,
                number,
                f"{volume_mm3:.3f}",
                *place,
                f"{overlap:.4f}",
                int(is_found),
            )


def _curve_of(cohort: Cohort, name: str) -> Curve:
    histogram, pooled = cohort.classes[name].histogram, cohort.pooled(name)
    points = histogram.curve() if histogram else None
    return Curve(
        name,
        points,
        area=pooled.ranking.pr_auc,
        working_point=(pooled.overlap.sensitivity, pooled.overlap.precision),
    )


def _curve_rows(curves: Sequence[Curve]) -> Iterator[tuple[str, ...]]:
    for curve in curves:
        if curve.points is not None:
            for threshold, precision, recall in zip(
                curve.points.thresholds, *curve.points[:2], strict=False
            ):
                yield curve.name, f"{threshold:.7f}", f"{precision:.9g}", f"{recall:.9g}"


def _write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


@contextmanager
def _writing_into(output_dir: Path) -> Iterator[Path]:
    """A scratch folder whose files move into `output_dir` when all are whole; metrics.json, the sign of it, last."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".evaluation_", dir=output_dir) as scratch:
            yield Path(scratch)
            (output_dir / "metrics.json").unlink(
                missing_ok=True
            )  # of an earlier evaluation, whose other files go now
            for path in sorted(
                Path(scratch).iterdir(), key=lambda file: file.name == "metrics.json"
            ):
                path.replace(output_dir / path.name)
    except OSError as fault:
        raise DataError(
            "output_dir", f"{output_dir} cannot be written ({fault.strerror})", "choose another"
        ) from fault
