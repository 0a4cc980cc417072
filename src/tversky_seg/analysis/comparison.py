"""Runs judged on the same cases, set side by side: paired differences, intervals, tests, tables for a paper."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
SAME_BY_ANY_NAME = "source"  # where a rule comes from
OPERATING_POINT = "prediction_min_volume_mm3"  # chosen with the threshold, so part of a method and not of the rule
MOST_EXACT = 200  # differences; beyond, the rank sum is taken as normal
Rows = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True, eq=False)
class Run:
    """One judged run.

    Attributes:
        name: How tables and figures call it.
        folder: Holds metrics.json.
        metrics: What it says.
        subjects: Case -> subject.
        rows: Class -> case -> measure -> value, NaN where undefined.
        n_averaged: Runs of other seeds that these values are the means of.
    """

    name: str
    folder: Path
    metrics: Mapping[str, Any]
    subjects: Mapping[str, str]
    rows: Rows
    n_averaged: int = 1


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


def bootstrap_interval(
    differences: ArrayLike, *, n_bootstrap: int = 10_000, rng: np.random.Generator
) -> tuple[float, float]:
    """95 % percentile interval of the mean, drawing with replacement (Efron & Tibshirani 1993).

    Args:
        differences: (n,) one per subject.
        n_bootstrap: resamplings.
        rng: draws them.

    Returns:
        Lower and upper limit; NaN for fewer than two differences, whose spread is not known.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size < 2:
        return math.nan, math.nan
    draws = rng.multinomial(values.size, np.full(values.size, 1 / values.size), size=n_bootstrap)
    low, high = np.percentile(draws @ values / values.size, (2.5, 97.5))
    return float(low), float(high)


def wilcoxon_p(differences: ArrayLike) -> float:
    """Two-sided p of the Wilcoxon signed-rank test that differences are symmetric about 0.

    Differences of 0 are left out and tied sizes share their mean rank (Wilcoxon 1945). Up to 200 differences p is
    exact, with ties too: of all ways to give the ranks signs, the share whose rank sum lies as far out. Beyond, the
    rank sum is taken as normal with the variance of the ranks at hand.

    Args:
        differences: (n,) one per subject, without NaN.

    Returns:
        p in (0, 1]; 1 where all differences are 0, NaN for none at all.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not values.size:
        return math.nan
    values = values[values != 0]
    _, which, counts = np.unique(np.abs(values), return_inverse=True, return_counts=True)
    twice_ranks = (2 * counts.cumsum() - counts + 1)[which]  # whole numbers, ties or not
    positive, total = int(twice_ranks[values > 0].sum()), int(twice_ranks.sum())
    smaller = min(positive, total - positive)
    if values.size > MOST_EXACT:
        spread = math.sqrt(float((twice_ranks.astype(np.float64) ** 2).sum()))
        return math.erfc((total - 2 * smaller) / spread / math.sqrt(2))
    share = np.ones(1)
    for rank in twice_ranks:
        share = (np.pad(share, (0, rank)) + np.pad(share, (rank, 0))) / 2
    return min(1.0, 2 * float(share[: smaller + 1].sum()))


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """p-values corrected for their number by the step-down method of Holm (1979).

    Args:
        p: (n,) in [0, 1]; NaN is no test and stays NaN.

    Returns:
        (n,) the corrected values, at most 1, in the order given.
    """
    values = np.asarray(p, dtype=np.float64)
    tests = np.flatnonzero(~np.isnan(values))
    order = tests[np.argsort(values[tests], kind="stable")]
    corrected = values.copy()
    corrected[order] = np.maximum.accumulate(values[order] * np.arange(order.size, 0, -1)).clip(
        max=1
    )
    return corrected


def subject_means(
    first: Mapping[str, float], second: Mapping[str, float], *, subjects: Mapping[str, str]
) -> tuple[NDArray[np.float64], int]:
    """Pairs of one measure, a subject with several cases being one pair: the means of its cases.

    Args:
        first: case -> value, NaN where undefined.
        second: the same cases in the other run.
        subjects: case -> subject.

    Returns:
        (n, 2) by subject name, and how many pairs of cases were left out because either value is undefined.
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    for case, value in first.items():
        if not (math.isnan(value) or math.isnan(second[case])):
            pairs.setdefault(subjects[case], []).append((value, second[case]))
    means = [np.mean(pairs[subject], axis=0) for subject in sorted(pairs)]
    return np.array(means).reshape(-1, 2), len(first) - sum(map(len, pairs.values()))


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


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs, or evaluation directories, that were judged alike.

    Raises:
        DataError: One is missing or damaged, stands twice, or was judged otherwise than the first.
    """
    places = [_evaluation_of(folder) for folder in folders]
    for place in places:
        if sum(place.resolve() == other.resolve() for other in places) > 1:
            raise DataError(place, "stands twice", "expected different runs")
    runs = [_read_run(place, name) for place, name in zip(places, _names(places), strict=True)]
    for run in runs[1:]:
        check_alike(runs[0], run)
    return runs


def average(runs: Sequence[Run], *, name: str) -> Run:
    """Runs of one setting with other seeds as one run, so that subjects and not seeds are what a test counts.

    Args:
        runs: Judged alike; their folders' curves are not averaged, those of the first stay.
        name: Of the mean run.

    Returns:
        Each case's measures, and the operating point, as means over the runs that define them.

    Raises:
        DataError: They were judged otherwise than the first.
    """
    for run in runs[1:]:
        check_alike(runs[0], run)
    rows = {
        class_name: {
            case: {
                measure: mean_of_defined(
                    [run.rows[class_name][case].get(measure, math.nan) for run in runs]
                )
                for measure in row
            }
            for case, row in cases.items()
        }
        for class_name, cases in runs[0].rows.items()
    }
    sizes = [run.metrics["lesion_rule"].get(OPERATING_POINT) for run in runs]
    rule = {**runs[0].metrics["lesion_rule"], OPERATING_POINT: _mean_setting(sizes)}
    threshold = _mean_setting([run.metrics.get("threshold") for run in runs])
    metrics = {**runs[0].metrics, "threshold": threshold, "lesion_rule": rule}
    return replace(runs[0], name=name, metrics=metrics, rows=rows, n_averaged=len(runs))


def mean_of_defined(values: Sequence[float] | NDArray[np.float64]) -> float:
    """The mean of the values that are not NaN; NaN where all are."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def _mean_setting(values: Sequence[Any]) -> Any:
    """Of numbers, or by class; None where one is None."""
    if any(value is None for value in values):
        return None
    if isinstance(values[0], Mapping):
        return {name: _mean_setting([value[name] for value in values]) for name in values[0]}
    return float(np.mean(values))


def check_alike(first: Run, second: Run) -> None:
    """Refuse runs judged on other classes, cases, subjects or references, or by another rule.

    Thresholds and the smallest predicted lesion are part of a method and may differ.

    Raises:
        DataError: Says what differs.
    """
    if list(first.rows) != list(second.rows):
        raise _unlike(second, f"classes {', '.join(second.rows)}", first, ", ".join(first.rows))
    lacking, more = (
        sorted(a.keys() - b.keys())
        for a, b in ((first.subjects, second.subjects), (second.subjects, first.subjects))
    )
    if lacking or more:
        case, where = (lacking[0], second) if lacking else (more[0], first)
        raise DataError(
            where.folder,
            f"case {case} was not judged there ({len(lacking) + len(more)} such in all)",
            f"expected the cases of {(first if lacking else second).folder}",
        )
    for case, subject in first.subjects.items():
        if second.subjects[case] != subject:
            raise _unlike(
                second, f"case {case} is of subject {second.subjects[case]}", first, subject
            )
    rules = [
        {
            **run.metrics["lesion_rule"],
            **{key: run.metrics[key] for key in ("surface_tolerance_mm",) if key in run.metrics},
        }
        for run in (first, second)
    ]
    for key in dict.fromkeys([*rules[0], *rules[1]]):
        ours, theirs = (rule.get(key) for rule in rules)
        if key not in (OPERATING_POINT, SAME_BY_ANY_NAME) and ours != theirs:
            raise _unlike(second, f"{key}={theirs}", first, ours)
    for name, rows in first.rows.items():
        for case, row in rows.items():
            ours, theirs = (
                row["reference_volume_mm3"],
                second.rows[name][case]["reference_volume_mm3"],
            )
            if not math.isclose(ours, theirs, rel_tol=1e-6):
                raise _unlike(
                    second, f"reference of case {case} has {theirs:g} mm³", first, f"{ours:g} mm³"
                )


def _unlike(second: Run, found: str, first: Run, expected: Any) -> DataError:
    return DataError(second.folder, f"{found}", f"expected {expected} as in {first.folder}")


def _evaluation_of(folder: Path) -> Path:
    for place in (folder / "evaluation", folder):
        if (place / "metrics.json").is_file():
            return place
    raise DataError(
        folder,
        "no metrics.json, nor evaluation/metrics.json",
        "expected a finished run or its evaluation",
    )


def _names(places: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart; of a sweep's settings those that differ."""
    parts = [
        (path.parts[:-1] if path.name == "evaluation" else path.parts)
        for path in (place.resolve() for place in places)
    ]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-n:]) for part in parts]
        if len(set(names)) == len(names):
            settings = [name.split(",") for name in names]
            shared = set.intersection(*map(set, settings))
            short = [",".join(word for word in words if word not in shared) for words in settings]
            return short if all(short) else names
    return [str(place) for place in places]


def _read_run(folder: Path, name: str) -> Run:
    path = folder / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        subjects = {case["case_id"]: case["subject_id"] for case in metrics["cases"]}
        rows: dict[str, dict[str, dict[str, float]]] = {}
        for case in metrics["cases"]:
            values = {
                key: value for key, value in case.items() if key not in ("case_id", "subject_id")
            }
            by_class = {key: value for key, value in values.items() if isinstance(value, dict)} or {
                "lesion": values
            }
            for class_name, row in by_class.items():
                rows.setdefault(class_name, {})[case["case_id"]] = {
                    measure: math.nan if value is None else float(value)
                    for measure, value in row.items()
                }
        if not subjects or any(len(cases) != len(subjects) for cases in rows.values()):
            raise ValueError("no cases, or classes with other cases")
        if not all(
            "reference_volume_mm3" in row for cases in rows.values() for row in cases.values()
        ):
            raise ValueError("no reference volumes")
        dict(metrics["lesion_rule"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise DataError(path, f"cannot be read ({fault})", "evaluate again") from fault
    return Run(name, folder, metrics, subjects, rows)


def read_curve(run: Run) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Class -> recall and precision of pr_curve.csv, by falling recall; {} where there were masks only."""
    path = run.folder / "pr_curve.csv"
    points: dict[str, list[tuple[float, float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                points.setdefault(row["class"], []).append(
                    (float(row["recall"]), float(row["precision"]))
                )
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise DataError(path, f"cannot be read ({fault})", "evaluate again") from fault
    curves = {name: np.array(rows) for name, rows in points.items()}
    return {name: (curve[:, 0], curve[:, 1]) for name, curve in curves.items()}


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
