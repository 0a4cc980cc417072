"""Tables of the sections of an evaluation's page, as rows of cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tversky_seg.report.charts import of_class
from tversky_seg.report.labels import LABELS, UNDEFINED, format_value, split_by_class

RATER_METRICS = ("dice", "precision", "sensitivity", "lesion_tpr", "lesion_fpr", "assd_mm")
GROUP_METRICS = (
    *("dice", "precision", "sensitivity", "pr_auc"),
    *("lesion_tpr", "lesion_fpr", "lesion_f1", "volume_difference"),
)
RATE_NAMES = {"tpr": "TPR", "fpr": "FPR", "f1": "F1"}


def rater_rows(metrics: Mapping[str, Any], name: str) -> Iterator[tuple[str, ...]]:
    """List agreement with each rater and their consensus; nothing for a single label.

    Last come the raters against each other: what a human rater would get.
    """
    raters = of_class(metrics, "raters", name)
    # A single rater is the reference itself.
    if raters is None or len(raters) < 2:
        return
    for rater in raters:
        number = rater["label"]
        yield _rater_row("label" if number == 1 else f"label_{number}", rater)
    consensus = of_class(metrics, "consensus", name)
    if consensus:
        yield _rater_row("consensus", consensus)
    humans = of_class(metrics, "between_raters", name)
    if humans:
        # Of pairs of raters there is only a mean.
        row = {"volume_correlation": None, "isbi_score": None, "n_cases": None, **humans}
        yield _rater_row("a rater against another", row)


def _rater_row(title: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    n_cases = row["n_cases"]
    return (
        title,
        UNDEFINED if n_cases is None else str(n_cases),
        *(format_value(name, row["mean"][name]) for name in RATER_METRICS),
        format_value("volume_correlation", row["volume_correlation"]),
        format_value("isbi_score", row["isbi_score"]),
    )


def group_tables(metrics: Mapping[str, Any], name: str) -> dict[str, list[tuple[str, ...]]]:
    """Lay out the groups of cases, by site and so on."""
    tables: dict[str, list[tuple[str, ...]]] = {}
    # Absent from a metrics.json of an earlier version.
    for column in metrics.get("groups", ()):
        tables[f"By {column}"] = list(_group_rows(of_class(metrics, f"by_{column}", name)))
    return tables


def _group_rows(groups: Sequence[Mapping[str, Any]] | None) -> Iterator[tuple[str, ...]]:
    for group in groups or ():
        yield (
            "not given" if group["value"] is None else group["value"],
            str(group["n_cases"]),
            *(format_value(name, group["mean"][name]) for name in GROUP_METRICS),
        )


def doubtful_rows(retention: Mapping[str, Any] | None) -> Iterator[tuple[str, ...]]:
    """List the most doubtful lesions, and whether each is false."""
    if retention is None:
        return
    for lesion in retention["doubtful_lesions"]:
        yield (
            lesion["case_id"],
            f"{lesion['mean_entropy']:.3f}",
            format_value("mm3", lesion["volume_mm3"]),
            f"{lesion['x_mm']:.0f}, {lesion['y_mm']:.0f}, {lesion['z_mm']:.0f}",
            "false" if lesion["is_false"] else "touches a reference lesion",
        )


def new_lesions(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Lay out the new lesions of each pair of sessions, and their rates."""
    if summary is None:
        return None
    rates: list[str] = []
    for key, label in RATE_NAMES.items():
        rates.append(f"{label} {format_value(key, summary[key])}")
    rows: list[tuple[str, ...]] = []
    for pair in summary["pairs"]:
        row = (
            f"{pair['subject_id']}: {pair['from_case']} to {pair['to_case']}",
            str(pair["n_reference"]),
            str(pair["n_detected"]),
            str(pair["n_predicted"]),
            str(pair["n_unmatched"]),
        )
        rows.append(row)
    return {"rates": ", ".join(rates), "rows": rows}


def regions(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Lay out the lesions by region of the brain, and by case."""
    if summary is None:
        return None
    rows: list[tuple[str, ...]] = []
    for region, counts in summary["by_region"].items():
        row = (
            region.replace("_", " "),
            str(counts["n_reference"]),
            format_value("lesion_tpr", counts["recall"]),
            str(counts["n_predicted"]),
            str(counts["n_false"]),
            format_value("reference_volume_mm3", counts["reference_volume_mm3"]),
            format_value("predicted_volume_mm3", counts["predicted_volume_mm3"]),
        )
        rows.append(row)
    case_rows: list[tuple[str, ...]] = []
    for case in summary["cases"]:
        n_reference = [str(case[region]["n_reference"]) for region in summary["by_region"]]
        n_predicted = [str(case[region]["n_predicted"]) for region in summary["by_region"]]
        pairs = [f"{a} / {b}" for a, b in zip(n_reference, n_predicted, strict=True)]
        mcdonald = f"{case['n_mcdonald_reference']} / {case['n_mcdonald_predicted']}"
        case_rows.append((case["case_id"], *pairs, mcdonald))
    return {**summary, "rows": rows, "case_rows": case_rows}


def repeatability(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Lay out how alike scans and their repeats are measured."""
    if summary is None:
        return None
    limits = summary["bland_altman"]
    bias = format_value("signed_volume_difference_mm3", limits["bias_mm3"])
    # One pair has no spread, and so no limits.
    if limits["sd_mm3"] is not None:
        lowest = format_value("signed_volume_difference_mm3", limits["lowest_mm3"])
        highest = format_value("signed_volume_difference_mm3", limits["highest_mm3"])
        bias += f" ({lowest} to {highest})"
    facts = [
        ("Volume CV within a subject", format_value("cv", summary["volume_cv"])),
        ("ICC(2,1), absolute agreement", format_value("icc", summary["icc_agreement"])),
        ("ICC(3,1), consistency", format_value("icc", summary["icc_consistency"])),
        ("Repeat minus first (mm³): mean, 95 % limits", bias),
        ("Lesions seen in both scans", format_value("matched_share", summary["matched_share"])),
        ("Dice of both masks", format_value("dice", summary["dice"])),
    ]
    rows: list[tuple[str, ...]] = []
    for pair in summary["pairs"]:
        row = (
            f"{pair['subject_id']}: {pair['first_case']}, {pair['repeat_case']}",
            format_value("volume_mm3", pair["first_volume_mm3"]),
            format_value("volume_mm3", pair["repeat_volume_mm3"]),
            format_value("cv", pair["cv"]),
            format_value("n_lesions", pair["n_first_lesions"]),
            format_value("n_lesions", pair["n_repeat_lesions"]),
            format_value("matched_share", pair["matched_share"]),
            format_value("dice", pair["dice"]),
        )
        rows.append(row)
    return {**summary, "facts": facts, "rows": rows}


def case_headers(metrics: Mapping[str, Any]) -> list[str]:
    """List the headers of the table of all cases."""
    # The first column holds the case ids.
    headers = [""]
    for name in _metric_names(metrics):
        headers.append(LABELS[name])
    return headers


def case_rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """List the metrics of each case and class."""
    for class_name in split_by_class(metrics):
        for case in metrics["cases"]:
            row = case[class_name] if class_name else case
            values = [format_value(name, row[name]) for name in _metric_names(metrics)]
            yield f"{case['case_id']} {class_name}".strip(), *values


def _metric_names(metrics: Mapping[str, Any]) -> list[str]:
    first_class = next(iter(split_by_class(metrics).values()))
    return list(first_class["mean"])
