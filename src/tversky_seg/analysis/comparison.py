"""Runs evaluated on the same cases, side by side: paired differences, intervals, tests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tversky_seg.analysis.comparison_text import (
    LOWER_IS_BETTER,
    NO_DIRECTION,
    comparison_latex,
    comparison_markdown,
)
from tversky_seg.analysis.curves import read_curves
from tversky_seg.analysis.differences import Difference, paired_difference
from tversky_seg.analysis.figures import curves_figure, save_figure
from tversky_seg.analysis.runs import Run
from tversky_seg.analysis.statistics import holm
from tversky_seg.analysis.tables import blank_nan
from tversky_seg.data.errors import DataError
from tversky_seg.inference.output_errors import writing
from tversky_seg.runtime.files import write_csv, write_text

DEFAULT_METRICS = (
    "dice",
    "sensitivity",
    "precision",
    "f2",
    "pr_auc",
    "lesion_tpr",
    "lesion_fpr",
    "lesion_f1",
    "assd_mm",
    "hd95_mm",
    "volume_difference",
)
COLUMNS = (
    "first",
    "second",
    "class_name",
    "measure",
    "n_subjects",
    "n_undefined",
    "mean_first",
    "mean_second",
    "mean",
    "low",
    "high",
    "p",
    "p_holm",
    "rank_biserial",
    "dz",
    "detectable",
    "margin",
    "p_noninferior",
    "p_noninferior_holm",
    "seed_sd",
    "p_seeds",
    "p_seeds_holm",
    "n_seed_subjects",
)
"""Columns of comparison.csv: the fields of `Difference`; `metric` is named "measure" there."""


def compare(
    runs: Sequence[Run],
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    n_bootstrap: int = 10_000,
    seed: int = 0,
    margins: Mapping[str, float] | None = None,
) -> list[Difference]:
    """Compare every run with the first, metric by metric, in pairs of subjects.

    Args:
        runs: Two runs or more that were evaluated alike (see `check_alike`).
        metrics: Names as in metrics.json.
        n_bootstrap: Resamplings of the subjects behind each interval.
        seed: Seed of the resamplings; each metric draws the same ones.
        margins: Metric -> margin of non-inferiority, in the metric's unit.

    Returns:
        Differences by run, class and metric; each kind of p is corrected for all of them together.

    Raises:
        DataError: A metric is in no run, or a margin is of a metric that is not compared or that
            neither more nor less of is better.
    """
    margins = margins or {}
    _check_margins(margins, metrics)
    first = runs[0]
    differences: list[Difference] = []
    # With the first alone: all pairs would need a stricter correction for little use.
    for second in runs[1:]:
        for class_name in first.rows:
            for metric in metrics:
                # Each metric draws the same resamplings.
                rng = np.random.default_rng(seed)
                difference = paired_difference(
                    first,
                    second,
                    class_name,
                    metric,
                    n_bootstrap=n_bootstrap,
                    rng=rng,
                    margin=margins.get(metric, math.nan),
                    lower_is_better=metric in LOWER_IS_BETTER,
                )
                differences.append(difference)
    return _corrected(differences)


def _corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Correct each kind of p for the number of its tests."""
    # Together, because each further table is another chance to find a difference where none is.
    p = _holm([difference.p for difference in differences])
    p_noninferior = _holm([difference.p_noninferior for difference in differences])
    p_seeds = _holm([difference.p_seeds for difference in differences])
    results: list[Difference] = []
    for k, difference in enumerate(differences):
        corrected = replace(
            difference,
            p_holm=p[k],
            p_noninferior_holm=p_noninferior[k],
            p_seeds_holm=p_seeds[k],
        )
        results.append(corrected)
    return results


def _holm(p: Sequence[float]) -> list[float]:
    """Correct p-values, with the one object `math.nan` for each NaN, so that equals are equal."""
    return [math.nan if math.isnan(value) else value for value in holm(p).tolist()]


def _check_margins(margins: Mapping[str, float], metrics: Sequence[str]) -> None:
    for metric, margin in margins.items():
        if metric not in metrics:
            raise DataError(
                "margin", f"{metric} is not compared", f"expected some of {', '.join(metrics)}"
            )
        if metric in NO_DIRECTION:
            raise DataError(
                "margin", f"neither more nor less {metric} is better", "choose another metric"
            )
        if not 0 < margin < math.inf:
            raise DataError("margin", f"{metric}={margin}", "expected a number above 0")


def write_comparison(
    runs: Sequence[Run], differences: Sequence[Difference], *, output_dir: Path
) -> None:
    """Write comparison.{md,tex,csv}, cases.csv and pr_curves.{png,pdf}.

    Args:
        runs: Runs as given to `compare`.
        differences: Differences as returned by it.
        output_dir: Folder to write into; it is made.

    Raises:
        DataError: `output_dir` cannot be written, or a pr_curve.csv cannot be read.
    """
    # Read before anything is written, so that a damaged curve leaves no half of a comparison.
    figure = curves_figure({run.name: read_curves(run) for run in runs})
    metrics = list(dict.fromkeys(difference.metric for difference in differences))
    names = [run.name for run in runs]
    case_columns = ("subject_id", "case_id", "class", "measure", *names)
    # A dataclass keeps its fields in the order of their definition, that of COLUMNS.
    rows = [blank_nan(vars(difference).values()) for difference in differences]
    with writing(output_dir / "comparison.md"):
        write_text(output_dir / "comparison.md", comparison_markdown(runs, differences))
        write_text(output_dir / "comparison.tex", comparison_latex(runs, differences))
        write_csv(output_dir / "comparison.csv", COLUMNS, rows)
        write_csv(output_dir / "cases.csv", case_columns, _case_rows(runs, metrics))
        save_figure(figure, output_dir / "pr_curves")


def _case_rows(runs: Sequence[Run], metrics: Sequence[str]) -> Iterator[list[Any]]:
    """Yield a row for each case, class and metric, with the values of all runs."""
    first = runs[0]
    for class_name, cases in first.rows.items():
        for case in cases:
            for metric in metrics:
                values = [run.rows[class_name][case][metric] for run in runs]
                yield [first.subjects[case], case, class_name, metric, *blank_nan(values)]
