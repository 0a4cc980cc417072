"""The report of a sweep: its tables, how to read them, and its files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tversky_seg.analysis.figures import beta_figure, frontier_figure, save_figure
from tversky_seg.analysis.summaries import Summary
from tversky_seg.analysis.sweep import Setting, SweepRun
from tversky_seg.analysis.tables import blank_nan, latex_tabular, markdown_table
from tversky_seg.analysis.weight_lines import weight_lines
from tversky_seg.inference.output_errors import writing
from tversky_seg.metrics.averages import mean_of_defined
from tversky_seg.report.labels import FEWEST_FOR_INTERVAL, LABELS, UNDEFINED, count
from tversky_seg.runtime.files import write_csv, write_text

COLUMNS = (
    "setting",
    "class_name",
    "measure",
    "mean",
    "sd",
    "low",
    "high",
    "pooled",
    "n_subjects",
    "n_seeds",
    "n_runs",
)
"""Columns of summary.csv: the fields of `Summary`; `metric` is named "measure" there."""


def write_summary(
    settings: Sequence[Setting],
    summaries: Sequence[Summary],
    recommendation: str,
    *,
    output_dir: Path,
) -> None:
    """Write summary.{md,csv,tex}, and figures over alpha and beta where settings differ in these.

    Args:
        settings: Settings of a sweep.
        summaries: Their summaries.
        recommendation: Sentence below the table.
        output_dir: Folder to write into; it is made.

    Raises:
        DataError: `output_dir` cannot be written.
    """
    text = f"{summary_markdown(summaries)}\n\n{reading_notes(settings, summaries)}"
    if recommendation:
        text = f"{text} {recommendation}"
    # A dataclass keeps its fields in the order of their definition, that of COLUMNS.
    rows = [blank_nan(vars(summary).values()) for summary in summaries]
    lines = weight_lines(settings)
    with writing(output_dir / "summary.md"):
        write_text(output_dir / "summary.md", f"{text}\n")
        write_text(output_dir / "summary.tex", summary_latex(summaries))
        write_csv(output_dir / "summary.csv", COLUMNS, rows)
        # A sweep of other settings, such as the learning rate, has no figure over alpha and beta.
        if lines:
            save_figure(frontier_figure(lines), output_dir / "frontier")
            save_figure(beta_figure(lines), output_dir / "beta")


def summary_markdown(summaries: Sequence[Summary]) -> str:
    """Write a row for each setting: mean ± sd between seeds [95 % interval over subjects]."""
    return markdown_table(_header(summaries), _rows(summaries))


def summary_latex(summaries: Sequence[Summary]) -> str:
    r"""Write the same for a paper, with `\usepackage{booktabs}`."""
    tabular = latex_tabular(_header(summaries), _rows(summaries))
    return "% needs \\usepackage{booktabs}\n" + tabular + "\n"


def reading_notes(settings: Sequence[Setting], summaries: Sequence[Summary]) -> str:
    """Tell in sentences how the numbers of the table came about."""
    # All settings have the same cases, so the first one stands for all.
    cohort = next(iter(settings[0].cohorts.values()))
    n_subjects = len(set(cohort.subjects.values()))
    # Where some runs are not finished, settings differ: "3 runs (1 seed) or 6 runs (2 seeds)".
    numbers: set[tuple[int, int]] = set()
    for setting in settings:
        numbers.add((len(setting.runs), len(setting.cohorts)))
    counts: list[str] = []
    for n_runs, n_seeds in sorted(numbers):
        counts.append(_count_runs(n_runs, n_seeds))
    runs = " or ".join(counts)
    if len(settings) > 1:
        runs += " for each setting"
    text = (
        f"{count(len(cohort.subjects), 'case')} of {count(n_subjects, 'subject')}; {runs}, each "
        "subject evaluated by the runs that did not train on it. Mean over subjects ± standard "
        "deviation between seeds [95 % interval, subjects resampled]."
    )
    # 0 subjects: the metric is undefined everywhere, which the table says by itself.
    if any(0 < summary.n_subjects < FEWEST_FOR_INTERVAL for summary in summaries):
        text += f" No interval is given for fewer than {FEWEST_FOR_INTERVAL} subjects."
    return text


def runs_table(runs: Sequence[SweepRun], metrics: Sequence[str]) -> str:
    """Write a Markdown table of the means of each run and class, and their medians over the runs.

    Args:
        runs: Runs of one setting.
        metrics: Names as in metrics.json.
    """
    classes = list(runs[0].evaluated.rows)
    names = _short_names([run.folder for run in runs])
    rows: list[list[str]] = []
    for class_name in classes:
        suffix = ""
        if len(classes) > 1:
            suffix = f", {class_name}"
        means: list[list[float]] = []
        for name, run in zip(names, runs, strict=True):
            of_run = _class_means(run, class_name, metrics)
            means.append(of_run)
            rows.append([name + suffix, *map(_format_number, of_run)])
        if len(runs) > 1:
            # zip(*means) turns the rows of the table into its columns.
            medians = [_median(of_metric) for of_metric in zip(*means, strict=True)]
            rows.append([f"median of {len(runs)}{suffix}", *map(_format_number, medians)])
    return markdown_table(["Run", *map(_label, metrics)], rows)


def _class_means(run: SweepRun, class_name: str, metrics: Sequence[str]) -> list[float]:
    cases = run.evaluated.rows[class_name].values()
    means: list[float] = []
    for metric in metrics:
        means.append(mean_of_defined(row[metric] for row in cases))
    return means


def _median(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    if not defined:
        return math.nan
    return median(defined)


def _label(metric: str) -> str:
    return LABELS.get(metric, metric)


def _format_number(value: float) -> str:
    if math.isnan(value):
        return UNDEFINED
    return f"{value:.3f}"


def _short_names(folders: Sequence[Path]) -> list[str]:
    # Runs of two sweeps may share a name, as x/fold0 and y/fold0: then the path tells them apart.
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        return [folder.as_posix() for folder in folders]
    return names


def _count_runs(n_runs: int, n_seeds: int) -> str:
    if n_runs == 1:
        return "1 run"
    return f"{count(n_runs, 'run')} ({count(n_seeds, 'seed')})"


def _header(summaries: Sequence[Summary]) -> list[str]:
    # Each metric once, in the order of the summaries; a set would lose it.
    metrics = dict.fromkeys(summary.metric for summary in summaries)
    return ["Setting", *map(_label, metrics)]


def _rows(summaries: Sequence[Summary]) -> list[list[str]]:
    has_classes = len({summary.class_name for summary in summaries}) > 1
    rows: dict[tuple[str, str], list[str]] = {}
    for summary in summaries:
        name = summary.setting
        if has_classes:
            name = f"{name}: {summary.class_name}"
        # The first summary of a setting and class begins its row, the others each add a cell.
        row = rows.setdefault((summary.setting, summary.class_name), [name])
        row.append(_format_summary(summary))
    return list(rows.values())


def _format_summary(summary: Summary) -> str:
    # "0.712 ± 0.004 [0.655, 0.768]"; one seed has no spread, few subjects have no interval.
    text = _format_number(summary.mean)
    if not math.isnan(summary.sd):
        text += f" ± {summary.sd:.3f}"
    if summary.n_subjects >= FEWEST_FOR_INTERVAL:
        text += f" [{summary.low:.3f}, {summary.high:.3f}]"
    return text
