"""Runs judged on the same cases, set side by side: paired differences, intervals, tests, tables for a paper."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.analysis.runs import OPERATING_POINT, Run, read_curve
from tversky_seg.analysis.statistics import bootstrap_interval, holm, subject_means, wilcoxon_p
from tversky_seg.data.errors import DataError
from tversky_seg.report.labels import LABELS, count, format_value

MEASURES = (
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
LOWER_IS_BETTER = {
    "lesion_fpr",
    "assd_mm",
    "hd95_mm",
    "hd_mm",
    "volume_difference",
    "absolute_volume_difference_mm3",
    "calibration_error",
    "n_false_lesions",
    "n_split_lesions",
    "n_merged_lesions",
}
NO_DIRECTION = {
    "reference_volume_mm3",
    "predicted_volume_mm3",
    "n_reference_lesions",
    "n_predicted_lesions",
    "signed_volume_difference",
    "signed_volume_difference_mm3",
}


@dataclass(frozen=True)
class Difference:
    """One measure of one class in two runs, in pairs of subjects.

    Attributes:
        first: Name of the run that the other is held against.
        second: Name of the other.
        class_name: What was segmented.
        measure: As in metrics.json.
        n_subjects: Those with a case that defines the measure in both runs; means and tests are over these.
        n_undefined: Pairs of cases left out, because either value is undefined.
        mean_first: Mean over subjects of the mean over their cases.
        mean_second: The same of the other run.
        mean: The mean difference, second - first.
        low: Lower limit of its 95 % interval; NaN below two subjects.
        high: Upper limit.
        p: Two-sided Wilcoxon signed-rank test over subjects; NaN without subjects.
        p_holm: The same, corrected for all tests of the comparison.
    """

    first: str
    second: str
    class_name: str
    measure: str
    n_subjects: int
    n_undefined: int
    mean_first: float
    mean_second: float
    mean: float
    low: float
    high: float
    p: float
    p_holm: float = math.nan


def compare(
    runs: Sequence[Run],
    *,
    measures: Sequence[str] = MEASURES,
    n_bootstrap: int = 10_000,
    seed: int = 0,
) -> list[Difference]:
    """Hold every run against the first, measure by measure, in pairs of subjects.

    Args:
        runs: two or more, judged alike (see `check_alike`).
        measures: names as in metrics.json.
        n_bootstrap: resamplings of the subjects behind each interval.
        seed: of the resamplings; the same draws serve each measure.

    Returns:
        By run, class and measure; p is corrected for all of them together.

    Raises:
        DataError: A measure is in no run.
    """
    first = runs[0]
    found = [
        _difference(first, second, name, measure, n_bootstrap=n_bootstrap, seed=seed)
        for second in runs[1:]
        for name in first.rows
        for measure in measures
    ]
    corrected = holm([difference.p for difference in found]).tolist()
    return [Difference(**vars(found[i]) | {"p_holm": p}) for i, p in enumerate(corrected)]


def _difference(
    first: Run, second: Run, name: str, measure: str, *, n_bootstrap: int, seed: int
) -> Difference:
    for run in (first, second):
        if any(measure not in row for row in run.rows[name].values()):
            known = ", ".join(next(iter(run.rows[name].values())))
            raise DataError(
                "measures",
                f"{measure!r} is not in {run.folder / 'metrics.json'}",
                f"expected some of {known}",
            )
    columns = [
        {case: row[measure] for case, row in run.rows[name].items()} for run in (first, second)
    ]
    means, n_undefined = subject_means(*columns, subjects=first.subjects)
    differences = means[:, 1] - means[:, 0]
    low, high = bootstrap_interval(
        differences, n_bootstrap=n_bootstrap, rng=np.random.default_rng(seed)
    )
    mean_first, mean_second = means.mean(axis=0).tolist() if len(means) else (math.nan, math.nan)
    return Difference(
        first=first.name,
        second=second.name,
        class_name=name,
        measure=measure,
        n_subjects=len(means),
        n_undefined=n_undefined,
        mean_first=mean_first,
        mean_second=mean_second,
        mean=mean_second - mean_first,
        low=low,
        high=high,
        p=wilcoxon_p(differences),
    )


def markdown(runs: Sequence[Run], differences: Sequence[Difference]) -> str:
    """A table for each run held against the first, with what one must know to read it."""
    blocks = []
    for second in runs[1:]:
        of_run = [difference for difference in differences if difference.second == second.name]
        header = _header(runs[0].name, second.name)
        lines = [f"| {' | '.join(map(_piped, header))} |", "|---|" + "---:|" * (len(header) - 1)]
        lines += [f"| {' | '.join(map(_piped, row))} |" for row in _table_rows(of_run)]
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, *notes(runs, differences)]) + "\n"


def latex(runs: Sequence[Run], differences: Sequence[Difference]) -> str:
    r"""The same for a paper: `\input{comparison.tex}`, with `\usepackage{booktabs}`."""
    blocks = [r"% needs \usepackage{booktabs}"]
    for second in runs[1:]:
        of_run = [difference for difference in differences if difference.second == second.name]
        header = _header(runs[0].name, second.name)
        body = [" & ".join(map(_tex, row)) + r" \\" for row in _table_rows(of_run)]
        blocks.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    rf"\caption{{{_tex(' '.join(notes(runs, differences)))}}}",
                    rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
                    r"\toprule",
                    " & ".join(map(_tex, header)) + r" \\",
                    r"\midrule",
                    *body,
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(blocks) + "\n"


def notes(runs: Sequence[Run], differences: Sequence[Difference]) -> Iterator[str]:
    """How the numbers came about, in sentences: units, tests, rule, operating points."""
    subjects = len(set(runs[0].subjects.values()))
    yield (
        f"{count(len(runs[0].subjects), 'case')} of {count(subjects, 'subject')}. Means over subjects "
        "whose value is defined in both runs; cases of a subject are averaged first. Difference: second minus first, "
        "with the 95 % percentile interval of its mean, subjects resampled. p: Wilcoxon signed-rank test, "
        f"two-sided, with Holm's correction for {sum(not math.isnan(d.p) for d in differences)} tests. "
        "↑ higher is better, ↓ lower."
    )
    if runs[0].n_averaged > 1:
        yield (
            f"Each value is the mean of {runs[0].n_averaged} seeds, so that a subject counts once; "
            "precision-recall curves are of the first seed."
        )
    left_out = sum(difference.n_undefined for difference in differences)
    if left_out:
        yield f"{left_out} pairs of values left out, because one or both are undefined (column n counts subjects)."
    lowest = 2.0 ** (1 - subjects)
    if lowest > 0.05:
        yield f"With {count(subjects, 'subject')} this test cannot give a p below {min(lowest, 1):.3g}."
    rule = ", ".join(
        f"{key} {_plain(value)}"
        for key, value in runs[0].metrics["lesion_rule"].items()
        if key != OPERATING_POINT and value != ""
    )
    yield f"Lesion rule: {rule}."
    yield (
        "Operating points: "
        + "; ".join(f"{run.name} {_operating_point(run)}" for run in runs)
        + "."
    )


def write_comparison(
    runs: Sequence[Run], differences: Sequence[Difference], *, output_dir: Path
) -> None:
    """Write comparison.{md,tex,csv}, subjects.csv and pr_curves.{png,pdf}.

    Raises:
        DataError: `output_dir` cannot be written, or a pr_curve.csv cannot be read.
    """
    figure = curves_figure({run.name: read_curve(run) for run in runs})
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "comparison.md").write_text(markdown(runs, differences), encoding="utf-8")
        (output_dir / "comparison.tex").write_text(latex(runs, differences), encoding="utf-8")
        _write_rows(
            output_dir / "comparison.csv",
            [*Difference.__dataclass_fields__],
            (vars(d).values() for d in differences),
        )
        measures = list(dict.fromkeys(difference.measure for difference in differences))
        header = ("subject_id", "case_id", "class", "measure", *(run.name for run in runs))
        _write_rows(output_dir / "cases.csv", header, _case_rows(runs, measures))
        for ending in ("png", "pdf"):
            figure.savefig(
                output_dir / f"pr_curves.{ending}",
                dpi=150,
                metadata={"CreationDate": None} if ending == "pdf" else None,
            )
    except OSError as fault:
        raise DataError(
            "output", f"{output_dir} cannot be written ({fault.strerror})", "choose another"
        ) from fault


def curves_figure(
    curves: Mapping[str, Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]],
) -> Any:
    """The pooled precision-recall curves of all runs in one figure, with their step-wise areas; a panel per class."""
    from matplotlib.figure import Figure

    classes = list(dict.fromkeys(name for by_class in curves.values() for name in by_class)) or [""]
    figure = Figure(figsize=(4.6 * len(classes), 4.2), layout="constrained")
    for axes, class_name in zip(
        figure.subplots(1, len(classes), squeeze=False)[0], classes, strict=True
    ):
        for run, by_class in curves.items():
            if class_name in by_class:
                recall, precision = by_class[class_name]
                area = float((-np.diff(recall, append=0) * precision).sum())
                line = np.append(recall, 0), np.append(precision, precision[-1])
                axes.plot(*line, drawstyle="steps-post", label=f"{run}, area {area:.3f}")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="Recall (sensitivity)", ylabel="Precision")
        axes.set_title(class_name if len(classes) > 1 else "")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower left", fontsize="small")
    return figure


def _case_rows(runs: Sequence[Run], measures: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    for name, cases in runs[0].rows.items():
        for case in cases:
            for measure in measures:
                values = (run.rows[name][case][measure] for run in runs)
                yield runs[0].subjects[case], case, name, measure, *values


def _write_rows(path: Path, header: Sequence[str], rows: Any) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(["" if value != value else value for value in row] for row in rows)


def _header(first: str, second: str) -> list[str]:
    return ["Measure", first, second, "Difference [95 %]", "p", "p (Holm)", "n"]


def _table_rows(differences: Sequence[Difference]) -> Iterator[list[str]]:
    several = len({difference.class_name for difference in differences}) > 1
    for found in differences:
        label = LABELS.get(found.measure, found.measure)
        arrow = (
            ""
            if found.measure in NO_DIRECTION
            else " ↓"
            if found.measure in LOWER_IS_BETTER
            else " ↑"
        )
        mean, low, high = (
            format_value(found.measure, value, signed=True)
            for value in (found.mean, found.low, found.high)
        )
        yield [
            f"{found.class_name}: {label}{arrow}" if several else f"{label}{arrow}",
            format_value(found.measure, found.mean_first),
            format_value(found.measure, found.mean_second),
            f"{mean} [{low}, {high}]",
            _p(found.p),
            _p(found.p_holm),
            str(found.n_subjects),
        ]


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def _operating_point(run: Run) -> str:
    threshold = run.metrics.get("threshold")
    minimum = run.metrics["lesion_rule"].get(OPERATING_POINT)
    where = "masks as found" if threshold is None else f"at threshold {_plain(threshold)}"
    return where + (f" without predicted lesions below {_plain(minimum)} mm³" if minimum else "")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_plain(item)} ({name})" for name, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _piped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "³": "$^3$",
    "−": "$-$",
    "±": r"$\pm$",
    "–": "--",
}


def _tex(text: str) -> str:
    return "".join(TEX.get(character, character) for character in text)
