"""Evaluation of saved predictions: case by case, as a mean with intervals, and pooled.

One case is in memory at a time. Ranking metrics of the cohort come from a histogram of the saved
probabilities.
"""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import TOLERATED_SHIFT_VOXELS
from tversky_seg.evaluation.brain_regions import is_mni
from tversky_seg.evaluation.case_result import evaluate_case
from tversky_seg.evaluation.cohort import EvaluatedCohort
from tversky_seg.evaluation.criteria import Criteria
from tversky_seg.evaluation.evaluation_folder import (
    check_folder,
    new_evaluation,
    write_page,
    write_tables,
)
from tversky_seg.evaluation.groups import check_columns
from tversky_seg.evaluation.saved_predictions import Predictions, open_predictions
from tversky_seg.evaluation.scan_rescan import compare_repeats
from tversky_seg.evaluation.sessions import compare_sessions
from tversky_seg.evaluation.summary import summarize
from tversky_seg.evaluation.tables import LESION_COLUMNS, lesion_rows
from tversky_seg.metrics.averages import unwrap_single
from tversky_seg.metrics.by_lesion import DEFAULT_SETTINGS, LesionSettings
from tversky_seg.metrics.case_metrics import TOLERANCE_MM
from tversky_seg.metrics.lesion_rule import ANY_OVERLAP, LesionRule
from tversky_seg.runtime.files import replacing
from tversky_seg.runtime.progress import track

logger = logging.getLogger("tversky_seg")


def evaluate(
    predictions: Path | str,
    cases: Sequence[Case],
    *,
    output_dir: Path | str,
    classes: Mapping[str, Sequence[int]] | None = None,
    threshold: float | Mapping[str, float] | None = None,
    min_volume_mm3: float | Mapping[str, float] | None = None,
    min_peak: float | Mapping[str, float] | None = None,
    pattern: str | None = None,
    background_values: Sequence[int] | None = None,
    ignore: Sequence[int] | None = None,
    rule: LesionRule = ANY_OVERLAP,
    tolerance_mm: float = TOLERANCE_MM,
    by_lesion: LesionSettings = DEFAULT_SETTINGS,
    n_bootstrap: int = 2000,
    seed: int = 0,
    viewer: str = "worst",
    consensus: str = "majority",
    by: Sequence[str] | None = None,
    overwrite: bool = False,
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Evaluate saved predictions against the cases' labels, and write the report.

    Each case is evaluated on the grid of its label.

    Args:
        predictions: Folder of `<case_id>_{probability,mask}.nii.gz`, or of another tool's masks
            named by `pattern`.
        cases: Cases to evaluate. Those without a label are left out, but a repeat of another scan
            is compared with it.
        output_dir: Folder for {cases,lesions,pr_curve,froc,threshold_curve}.csv, pr_curve.png,
            report.html and, last, metrics.json.
        classes: Class name -> label values. None: as predictions.json says, else
            `{"lesion": (1,)}`.
        threshold: Threshold of `probability >= threshold`, a number or one by class. None: as
            predictions.json says, else 0.5.
        min_volume_mm3: Volume below which predicted lesions are removed before anything is
            measured, a number or one by class. None: as predictions.json says, else 0.
        min_peak: Probability that a predicted lesion must reach not to be removed, a number or one
            by class. None: as predictions.json says, else 0.
        pattern: File name of another tool's masks, as `{case_id}.nii.gz`; ranking metrics are then
            undefined.
        background_values: Label values of the references that belong to no class and count as
            background. None: as predictions.json says (the `data.crop_values` of training), else
            only 0.
        ignore: Label values of the references whose voxels do not count, as those of a case's
            `ignore_mask`. None: as predictions.json says (the `data.ignore` of training), else
            none.
        rule: Rule of what a lesion is and when it counts as detected.
        tolerance_mm: Distance up to which surfaces agree, for the surface Dice.
        by_lesion: Settings of the metrics by lesion, such as the penalties of missed lesions.
        n_bootstrap: Resamplings of the subjects for `ci95`.
        seed: Seed of the resamplings.
        viewer: Case that report.html first shows in three planes: "worst" (lowest Dice) or a
            case_id; the reader may choose others. "none": no viewer.
        consensus: How the consensus of several raters is made where a case's label is none:
            "majority" (more than half of them) or "staple" (needs SimpleITK).
        by: Columns of the manifest by which the cases are grouped for `by_<column>` in
            metrics.json: "site", "session", "modalities" (the set that a case has) or a column of
            metadata. None: site, scanner and modalities, where cases differ in them.
        overwrite: Whether an evaluation in `output_dir` by another rule is replaced.
        command: Words of the command line, for the header of report.html. None: those of the
            training, where the predictions lie in its folder.

    Returns:
        The content of metrics.json (docs/metrics.md). Cases that could not be evaluated are listed
        under "faults", a key that is absent otherwise.

    Raises:
        DataError: No case could be evaluated, the folder of predictions is missing, or
            `output_dir` cannot be written or holds an evaluation by another rule.
    """
    output_dir = Path(output_dir)
    source = open_predictions(
        predictions,
        classes=classes,
        threshold=threshold,
        min_volume_mm3=min_volume_mm3,
        min_peak=min_peak,
        pattern=pattern,
        background_values=background_values,
        ignore=ignore,
    )
    labelled = [case for case in cases if case.label is not None]
    # All that can be refused is refused here, before hours of reading.
    _check_request(labelled, source, viewer=viewer, by=by, n_bootstrap=n_bootstrap)
    criteria = Criteria(rule, tolerance_mm=tolerance_mm, by_lesion=by_lesion, consensus=consensus)
    check_folder(output_dir, source, criteria, overwrite=overwrite)

    # All files appear together, so a stopped evaluation leaves the old one whole.
    with new_evaluation(output_dir) as folder:
        cohort = evaluate_cohort(source, labelled, criteria, lesion_file=folder / "lesions.csv")
        _add_comparisons(cohort, cases, source)
        metrics = _summarize(cohort, source, criteria, n_bootstrap=n_bootstrap, seed=seed, by=by)
        write_tables(folder, cohort, metrics)
        write_page(folder, cohort, source, metrics, viewer=viewer, command=command)
    return metrics


def _add_comparisons(cohort: EvaluatedCohort, cases: Sequence[Case], source: Predictions) -> None:
    """Compare the sessions of each subject, and the repeats of each scan."""
    # Sessions are read again in pairs, since one case is in memory at a time.
    cohort.session_pairs = compare_sessions(cohort.cases, source, rule=cohort.rule)
    # All cases, since a repeat needs no label.
    cohort.repeats = compare_repeats(cases, source, rule=cohort.rule)


def _warn_of_other_spaces(cases: Sequence[Case]) -> None:
    """Say that lesions get no region where the manifest names spaces, but never MNI."""
    # Otherwise metrics.json would lack the regions without a word.
    spaces = sorted({case.space for case in cases if case.space})
    if spaces and not any(is_mni(space) for space in spaces):
        logger.warning("no lesions by region: space is %s, expected MNI", ", ".join(spaces))


def evaluate_cohort(
    source: Predictions,
    cases: Sequence[Case],
    criteria: Criteria,
    *,
    lesion_file: Path,
) -> EvaluatedCohort:
    """Evaluate case after case, and write the rows of their lesions as they come.

    A case that cannot be evaluated is listed under the cohort's faults.

    Raises:
        DataError: No case could be evaluated.
    """
    cohort = EvaluatedCohort(criteria.rule)
    cohort.temperature = dict(source.temperature)
    faults: list[DataError] = []
    with (
        replacing(lesion_file) as scratch,
        scratch.open("w", newline="", encoding="utf-8") as file,
    ):
        # Row by row, because a large cohort has a million lesions.
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(LESION_COLUMNS)
        for case in track(cases, "evaluating", total=len(cases)):
            try:
                result = evaluate_case(source, case, criteria)
            # One bad file must not cost the evaluation of a thousand others.
            except DataError as fault:
                faults.extend(fault.faults)
            else:
                writer.writerows(lesion_rows(result, rule=criteria.rule))
                cohort.add(result)
    if not cohort.cases:
        # The check of the dataset never sees predictions.
        raise DataError.gather(faults, others="")
    # One warning for all cases, instead of one line in a thousand.
    if cohort.shifted:
        logger.warning(
            "predictions up to %g voxel off their reference, compared voxel by voxel: %s",
            TOLERATED_SHIFT_VOXELS,
            ", ".join(cohort.shifted),
        )
    for one_fault in faults:
        logger.warning("not evaluated: %s", one_fault)
        cohort.faults.append(str(one_fault))
    _warn_of_other_spaces(cohort.cases)
    return cohort


def _check_request(
    labelled: Sequence[Case],
    source: Predictions,
    *,
    viewer: str,
    by: Sequence[str] | None,
    n_bootstrap: int,
) -> None:
    """Refuse cases and settings with which no case could be evaluated."""
    if not labelled:
        raise DataError(
            source.folder,
            "no case has a label to evaluate against",
            "fill the label column of the manifest",
        )
    n_by_id = Counter(case.case_id for case in labelled)
    for case_id, n in n_by_id.items():
        if n > 1:
            raise DataError("case_id", f"duplicate {case_id!r}", "expected each case once")
    if viewer not in ("worst", "none", *n_by_id):
        # The page without this case is still worth having.
        expected = "expected worst, none or a case_id"
        logger.warning("viewer: %r is not a labelled case; %s", viewer, expected)
    check_columns(labelled, by)
    if n_bootstrap < 1:
        raise DataError("n_bootstrap", f"{n_bootstrap}", "expected 1 or more")


def _summarize(
    cohort: EvaluatedCohort,
    source: Predictions,
    criteria: Criteria,
    *,
    n_bootstrap: int,
    seed: int,
    by: Sequence[str] | None,
) -> dict[str, Any]:
    """Make the content of metrics.json: the numbers, and the settings that they depend on."""
    lesion_rule = asdict(criteria.rule)
    # Beside the rule, because removing predicted lesions changes the counts as the rule does.
    lesion_rule["prediction_min_volume_mm3"] = unwrap_single(source.min_volume_mm3)
    lesion_rule["prediction_min_peak"] = unwrap_single(source.min_peak)
    metrics = summarize(
        cohort,
        threshold=unwrap_single(source.threshold),
        lesion_rule=lesion_rule,
        n_bootstrap=n_bootstrap,
        seed=seed,
        by=by,
    )
    metrics["surface_tolerance_mm"] = criteria.tolerance_mm
    metrics["by_lesion_settings"] = asdict(criteria.by_lesion)
    n_masks = sum(case.ignore_mask is not None for case in cohort.cases)
    if source.ignore or n_masks:
        metrics["ignored"] = {"label_values": list(source.ignore), "n_masks": n_masks}
    return metrics
