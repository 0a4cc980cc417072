"""The folder of an evaluation: metrics.json, tables and report, which appear together."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tversky_seg.data.errors import DataError
from tversky_seg.evaluation.cohort import EvaluatedCohort
from tversky_seg.evaluation.criteria import Criteria
from tversky_seg.evaluation.provenance import describe_origin
from tversky_seg.evaluation.saved_predictions import Predictions
from tversky_seg.evaluation.scan_rescan import REPEAT_COLUMNS, repeat_rows
from tversky_seg.evaluation.shown_case import show_case
from tversky_seg.evaluation.tables import (
    CASE_COLUMNS,
    CURVE_COLUMNS,
    FROC_COLUMNS,
    THRESHOLD_COLUMNS,
    case_rows,
    curve_rows,
    froc_rows,
    threshold_rows,
)
from tversky_seg.report.figures import Curve, as_png, curve_figure
from tversky_seg.report.page import write_report
from tversky_seg.report.slices import cases_to_view, choose_cases
from tversky_seg.report.viewer import N_CASES
from tversky_seg.runtime.files import read_json_if_whole, replacing, write_csv, write_text
from tversky_seg.runtime.run_settings import flatten


def check_folder(
    output_dir: Path, source: Predictions, criteria: Criteria, *, overwrite: bool
) -> None:
    """Check that an evaluation may be written to a folder.

    Raises:
        DataError: The folder is that of the predictions, or holds an evaluation by other criteria
            that is not to be overwritten.
    """
    # Both folders hold a lesions.csv.
    if output_dir.resolve() == source.folder.resolve():
        raise DataError(
            "output_dir",
            f"{output_dir} holds the predictions and their lesions.csv",
            "choose another",
        )
    if not overwrite:
        _refuse_other_rule(output_dir, criteria, ignore=source.ignore)


def _refuse_other_rule(output_dir: Path, criteria: Criteria, *, ignore: Sequence[int]) -> None:
    """Refuse to replace an evaluation whose numbers mean something else."""
    saved = read_json_if_whole(output_dir / "metrics.json")
    if saved is None:
        return
    before = dict(flatten(saved))
    settings = {
        "lesion_rule": asdict(criteria.rule),
        "surface_tolerance_mm": criteria.tolerance_mm,
        "by_lesion_settings": asdict(criteria.by_lesion),
    }
    # Apart from the others, since the key is absent where nothing is ignored.
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


@contextmanager
def new_evaluation(output_dir: Path) -> Iterator[Path]:
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


def write_tables(folder: Path, cohort: EvaluatedCohort, metrics: Mapping[str, Any]) -> None:
    """Write metrics.json, the tables of cases and curves, and pr_curve.png."""
    curves = [_pooled_curve(cohort, name) for name in cohort.totals]
    # NaN is not JSON: `summarize` has replaced it by None, and a forgotten one is an error here.
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    write_csv(folder / "cases.csv", CASE_COLUMNS, case_rows(cohort))
    repeats = repeat_rows(cohort.repeats)
    # Few cohorts have any, and an empty table would only raise questions.
    if repeats:
        write_csv(folder / "repeatability.csv", REPEAT_COLUMNS, repeats)
    write_csv(folder / "froc.csv", FROC_COLUMNS, froc_rows(cohort))
    write_csv(folder / "threshold_curve.csv", THRESHOLD_COLUMNS, threshold_rows(cohort))
    write_csv(folder / "pr_curve.csv", CURVE_COLUMNS, curve_rows(curves))
    with replacing(folder / "pr_curve.png") as scratch:
        scratch.write_bytes(as_png(curve_figure(curves)))


def write_page(
    folder: Path,
    cohort: EvaluatedCohort,
    source: Predictions,
    metrics: Mapping[str, Any],
    *,
    viewer: str,
    command: Sequence[str] | None,
) -> None:
    """Write report.html with the most telling cases, and where its numbers come from."""
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
        origin=describe_origin(source, cohort.cases, command=command),
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
