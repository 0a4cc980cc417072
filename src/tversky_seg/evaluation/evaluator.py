"""Evaluation of saved predictions: case by case, as a mean with intervals, and pooled.

One case is in memory at a time. Ranking metrics of the cohort come from a histogram of the saved
probabilities.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import TOLERATED_SHIFT_VOXELS
from tversky_seg.evaluation.brain_regions import is_mni
from tversky_seg.evaluation.case_result import evaluate_case
from tversky_seg.evaluation.cohort import EvaluatedCohort
from tversky_seg.evaluation.groups import check_columns
from tversky_seg.evaluation.provenance import describe_origin
from tversky_seg.evaluation.saved_predictions import Predictions, open_predictions
from tversky_seg.evaluation.scan_rescan import REPEAT_COLUMNS, compare_repeats, repeat_rows
from tversky_seg.evaluation.sessions import compare_sessions
from tversky_seg.evaluation.shown_case import show_case
from tversky_seg.evaluation.summary import summarize
from tversky_seg.evaluation.tables import (
    CASE_COLUMNS,
    CURVE_COLUMNS,
    FROC_COLUMNS,
    LESION_COLUMNS,
    THRESHOLD_COLUMNS,
    case_rows,
    curve_rows,
    froc_rows,
    lesion_rows,
    threshold_rows,
)
from tversky_seg.metrics.averages import unwrap_single
from tversky_seg.metrics.by_lesion import DEFAULT_SETTINGS, LesionSettings
from tversky_seg.metrics.case_metrics import TOLERANCE_MM
from tversky_seg.metrics.lesion_rule import ANY_OVERLAP, LesionRule
from tversky_seg.report.figures import Curve, as_png, curve_figure
from tversky_seg.report.page import write_report
from tversky_seg.report.slices import cases_to_view, choose_cases
from tversky_seg.report.viewer import N_CASES
from tversky_seg.runtime.files import read_json_if_whole, replacing, write_csv, write_text
from tversky_seg.runtime.progress import track
from tversky_seg.runtime.run_settings import flatten

logger = logging.getLogger("tversky_seg")

CONSENSUS = ("majority", "staple")


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
        pattern=pattern,
        background_values=background_values,
        ignore=ignore,
    )
    labelled = [case for case in cases if case.label is not None]
    _check_cases(labelled, source, viewer=viewer)
    check_columns(labelled, by)
    if consensus not in CONSENSUS:
        expected = f"expected {' or '.join(CONSENSUS)}"
        raise DataError("evaluation.consensus", repr(consensus), expected)
    _check_settings(output_dir, source, n_bootstrap=n_bootstrap, tolerance_mm=tolerance_mm)
    if not overwrite:
        _refuse_other_rule(
            output_dir,
            rule,
            tolerance_mm=tolerance_mm,
            by_lesion=by_lesion,
            ignore=source.ignore,
        )

    # All files appear together, so a stopped evaluation leaves the old one whole.
    with _new_evaluation(output_dir) as folder:
        cohort = evaluate_cohort(
            source,
            labelled,
            rule=rule,
            tolerance_mm=tolerance_mm,
            by_lesion=by_lesion,
            lesion_file=folder / "lesions.csv",
            consensus=consensus,
        )
        cohort.temperature = dict(source.temperature)
        _warn_of_other_spaces(cohort.cases)
        # Sessions are read again in pairs, since one case is in memory at a time.
        cohort.session_pairs = compare_sessions(cohort.cases, source, rule=rule)
        cohort.repeats = compare_repeats(cases, source, rule=rule)
        metrics = _summarize_with_settings(
            cohort,
            source,
            tolerance_mm=tolerance_mm,
            by_lesion=by_lesion,
            n_bootstrap=n_bootstrap,
            seed=seed,
            by=by,
        )
        _write_tables(folder, cohort, metrics)
        origin = describe_origin(source, cohort.cases, command=command)
        _write_pictures(folder, cohort, source, metrics, viewer=viewer, origin=origin)
    return metrics


def _warn_of_other_spaces(cases: Sequence[Case]) -> None:
    """Say that lesions get no region where the manifest names spaces, but never MNI."""
    spaces = sorted({case.space for case in cases if case.space})
    if spaces and not any(is_mni(space) for space in spaces):
        logger.warning("no lesions by region: space is %s, expected MNI", ", ".join(spaces))


def evaluate_cohort(
    source: Predictions,
    cases: Sequence[Case],
    *,
    rule: LesionRule,
    tolerance_mm: float,
    lesion_file: Path,
    by_lesion: LesionSettings = DEFAULT_SETTINGS,
    consensus: str = "majority",
) -> EvaluatedCohort:
    """Evaluate case after case, and write the rows of their lesions as they come.

    A case that cannot be evaluated is listed under the cohort's faults.

    Raises:
        DataError: No case could be evaluated.
    """
    cohort = EvaluatedCohort(rule)
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
                result = evaluate_case(
                    source,
                    case,
                    rule=rule,
                    tolerance_mm=tolerance_mm,
                    by_lesion=by_lesion,
                    consensus=consensus,
                )
            # One bad file must not cost the evaluation of a thousand others.
            except DataError as fault:
                faults.extend(fault.faults)
            else:
                writer.writerows(lesion_rows(result, rule=rule))
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
    return cohort


def _check_cases(labelled: Sequence[Case], source: Predictions, *, viewer: str) -> None:
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


def _check_settings(
    output_dir: Path, source: Predictions, *, n_bootstrap: int, tolerance_mm: float
) -> None:
    # Both folders hold a lesions.csv.
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


def _summarize_with_settings(
    cohort: EvaluatedCohort,
    source: Predictions,
    *,
    tolerance_mm: float,
    by_lesion: LesionSettings,
    n_bootstrap: int,
    seed: int,
    by: Sequence[str] | None,
) -> dict[str, Any]:
    """Make the content of metrics.json: the numbers, and the settings that they depend on."""
    lesion_rule = asdict(cohort.rule)
    # Beside the rule, because removing predicted lesions changes the counts as the rule does.
    lesion_rule["prediction_min_volume_mm3"] = unwrap_single(source.min_volume_mm3)
    metrics = summarize(
        cohort,
        threshold=unwrap_single(source.threshold),
        lesion_rule=lesion_rule,
        n_bootstrap=n_bootstrap,
        seed=seed,
        by=by,
    )
    metrics["surface_tolerance_mm"] = tolerance_mm
    metrics["by_lesion_settings"] = asdict(by_lesion)
    n_masks = sum(case.ignore_mask is not None for case in cohort.cases)
    if source.ignore or n_masks:
        metrics["ignored"] = {"label_values": list(source.ignore), "n_masks": n_masks}
    return metrics


def _refuse_other_rule(
    output_dir: Path,
    rule: LesionRule,
    *,
    tolerance_mm: float,
    by_lesion: LesionSettings,
    ignore: Sequence[int],
) -> None:
    """Refuse to replace an evaluation whose numbers mean something else."""
    saved = read_json_if_whole(output_dir / "metrics.json")
    if saved is None:
        return
    before = dict(flatten(saved))
    settings = {
        "lesion_rule": asdict(rule),
        "surface_tolerance_mm": tolerance_mm,
        "by_lesion_settings": asdict(by_lesion),
    }
    saved_ignore = (saved.get("ignored") or {}).get("label_values", [])
    if saved_ignore != list(ignore):
        raise DataError(
            "output_dir",
            f"{output_dir} holds an evaluation with ignore {saved_ignore}, this one has "
            f"{list(ignore)}",
            "choose another, or evaluation.overwrite=true",
        )
    for key, value in flatten(settings):
        # An evaluation of an older version knows fewer settings.
        if before.get(key, value) != value and key != "lesion_rule.source":
            raise DataError(
                "output_dir",
                f"{output_dir} holds an evaluation with {key} {before[key]}, this one has {value}",
                "choose another, or evaluation.overwrite=true",
            )


def _pooled_curve(cohort: EvaluatedCohort, name: str) -> Curve:
    points = None
    histogram = cohort.totals[name].histogram
    if histogram is not None:
        points = histogram.curve()
    pooled = cohort.pooled(name)
    return Curve(
        name,
        points,
        area=pooled.ranking.pr_auc,
        working_point=(pooled.overlap.sensitivity, pooled.overlap.precision),
    )


def _write_tables(folder: Path, cohort: EvaluatedCohort, metrics: Mapping[str, Any]) -> None:
    curves = [_pooled_curve(cohort, name) for name in cohort.totals]
    # NaN is not JSON: `summarize` has replaced it by None, and a forgotten one is an error here.
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    write_csv(folder / "cases.csv", CASE_COLUMNS, case_rows(cohort))
    repeats = repeat_rows(cohort.repeats)
    if repeats:
        write_csv(folder / "repeatability.csv", REPEAT_COLUMNS, repeats)
    write_csv(folder / "froc.csv", FROC_COLUMNS, froc_rows(cohort))
    write_csv(folder / "threshold_curve.csv", THRESHOLD_COLUMNS, threshold_rows(cohort))
    write_csv(folder / "pr_curve.csv", CURVE_COLUMNS, curve_rows(curves))
    with replacing(folder / "pr_curve.png") as scratch:
        scratch.write_bytes(as_png(curve_figure(curves)))


def _write_pictures(
    folder: Path,
    cohort: EvaluatedCohort,
    source: Predictions,
    metrics: Mapping[str, Any],
    *,
    viewer: str,
    origin: Mapping[str, str],
) -> None:
    """Write report.html with the most telling cases."""
    cases = {case.case_id: case for case in cohort.cases}
    titles = choose_cases(metrics, viewed=viewer)
    viewed = cases_to_view(metrics, viewed=viewer, most=N_CASES)
    # A generator, so that the volumes of one case are in memory at a time.
    shown = (show_case(cases[case_id], source) for case_id in dict.fromkeys([*titles, *viewed]))
    write_report(
        folder,
        metrics,
        shown=shown,
        titles=titles,
        viewed=viewed,
        first=viewer,
        rule=cohort.rule,
        origin=origin,
    )


@contextmanager
def _new_evaluation(output_dir: Path) -> Iterator[Path]:
    """Give a scratch folder whose files move into `output_dir` once all of them are written.

    metrics.json, the sign of a finished evaluation, goes first and comes last.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        # On the disk of the target, so that each file moves at once, not byte by byte.
        with tempfile.TemporaryDirectory(prefix=".evaluation_", dir=output_dir) as scratch:
            yield Path(scratch)
            # An interruption between two moves leaves tables without a metrics.json, rather than
            # new tables beside old numbers.
            sign = output_dir / "metrics.json"
            sign.unlink(missing_ok=True)
            for path in sorted(Path(scratch).iterdir()):
                if path.name != sign.name:
                    path.replace(output_dir / path.name)
            (Path(scratch) / sign.name).replace(sign)
    except OSError as fault:
        raise DataError(
            "output_dir", f"{output_dir} cannot be written ({fault.strerror})", "choose another"
        ) from fault
