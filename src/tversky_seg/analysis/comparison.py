"""Runs evaluated on the same cases, side by side: paired differences, intervals, tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tversky_seg.analysis.comparison_text import comparison_latex, comparison_markdown
from tversky_seg.analysis.curves import read_curves
from tversky_seg.analysis.differences import Difference, paired_difference
from tversky_seg.analysis.figures import curves_figure, save_figure
from tversky_seg.analysis.runs import Run
from tversky_seg.analysis.statistics import holm
from tversky_seg.analysis.tables import blank_nan
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
)
"""Columns of comparison.csv: the fields of `Difference`; `metric` is named "measure" there."""


def compare(
    runs: Sequence[Run],
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    n_bootstrap: int = 10_000,
    seed: int = 0,
) -> list[Difference]:
    """Compare every run with the first, metric by metric, in pairs of subjects.

    Args:
        runs: Two runs or more that were evaluated alike (see `check_alike`).
        metrics: Names as in metrics.json.
        n_bootstrap: Resamplings of the subjects behind each interval.
        seed: Seed of the resamplings; each metric draws the same ones.

    Returns:
        Differences by run, class and metric; p is corrected for all of them together.

    Raises:
        DataError: A metric is in no run.
    """
    first = runs[0]
    differences: list[Difference] = []
    for second in runs[1:]:
        for class_name in first.rows:
            for metric in metrics:
                # Each metric draws the same resamplings.
                rng = np.random.default_rng(seed)
                difference = paired_difference(
                    first, second, class_name, metric, n_bootstrap=n_bootstrap, rng=rng
                )
                differences.append(difference)
    # Together, because each further table is another chance to find a difference where none is.
    corrected = holm([difference.p for difference in differences]).tolist()
    results: list[Difference] = []
    for difference, p in zip(differences, corrected, strict=True):
        results.append(replace(difference, p_holm=p))
    return results


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
