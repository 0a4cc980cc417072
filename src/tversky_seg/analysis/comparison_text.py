"""A comparison as text: its tables, and how its numbers came about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tversky_seg.analysis.differences import Difference
from tversky_seg.analysis.power import LEVEL, POWER
from tversky_seg.analysis.runs import LOWEST_PEAK, OPERATING_POINT, SMALLEST_LESION, Run
from tversky_seg.analysis.tables import latex_float, latex_tabular, markdown_table
from tversky_seg.report.labels import FEWEST_FOR_INTERVAL, LABELS, UNDEFINED, count, format_value

# The arrows in the tables; a metric in neither set is better the higher it is.
LOWER_IS_BETTER = {
    "lesion_fpr",
    "assd_mm",
    "hd95_mm",
    "hd_mm",
    "cc_hd95_mm",
    "lesion_hd95_brats_mm",
    "recall80_mm3",
    "volume_difference",
    "absolute_volume_difference_mm3",
    "calibration_error",
    "n_false_lesions",
    "n_split_lesions",
    "n_merged_lesions",
}
# Sizes of a case, and errors with a sign: neither more nor less is better.
NO_DIRECTION = {
    "reference_volume_mm3",
    "predicted_volume_mm3",
    "n_reference_lesions",
    "n_predicted_lesions",
    "signed_volume_difference",
    "signed_volume_difference_mm3",
}


def comparison_markdown(runs: Sequence[Run], differences: Sequence[Difference]) -> str:
    """Write a table for each run that is compared with the first, and notes below."""
    blocks: list[str] = []
    for second in runs[1:]:
        header = _header(runs[0], second, differences)
        blocks.append(markdown_table(header, _table_rows(second, differences)))
    return "\n\n".join(blocks + notes(runs, differences)) + "\n"


def comparison_latex(runs: Sequence[Run], differences: Sequence[Difference]) -> str:
    r"""Write the same for a paper: `\input{comparison.tex}`, with `\usepackage{booktabs}`."""
    caption = " ".join(notes(runs, differences))
    blocks = [r"% needs \usepackage{booktabs}"]
    for second in runs[1:]:
        header = _header(runs[0], second, differences)
        tabular = latex_tabular(header, _table_rows(second, differences))
        blocks.append(latex_float(tabular, caption=caption))
    return "\n\n".join(blocks) + "\n"


def notes(runs: Sequence[Run], differences: Sequence[Difference]) -> list[str]:
    """Tell in sentences how the numbers came about: units, tests, rule, operating points."""
    first = runs[0]
    n_subjects = len(set(first.subjects.values()))
    # A metric without subjects has no test, and needs no correction.
    n_tests = sum(not math.isnan(difference.p) for difference in differences)
    sentences = [
        f"{count(len(first.subjects), 'case')} of {count(n_subjects, 'subject')}. Means over "
        "subjects whose value is defined in both runs; cases of a subject are averaged first. "
        "Difference: second minus first, with the 95 % percentile interval of its mean, subjects "
        "resampled. p: Wilcoxon signed-rank test, two-sided, with Holm's correction for "
        f"{count(n_tests, 'test')}. ↑ higher is better, ↓ lower."
    ]
    if any(0 < difference.n_subjects < FEWEST_FOR_INTERVAL for difference in differences):
        sentences.append(f"No interval is given for fewer than {FEWEST_FOR_INTERVAL} subjects.")
    if first.n_averaged > 1:
        sentences.append(
            f"Each value is the mean of {first.n_averaged} seeds, so that a subject counts once; "
            "precision-recall curves are of the first seed."
        )
    n_undefined = sum(difference.n_undefined for difference in differences)
    if n_undefined:
        sentences.append(
            f"{count(n_undefined, 'pair')} of values left out, because one or both are undefined "
            "(column n counts subjects)."
        )
    # All differences of one sign are 2 of the 2^n ways to give n differences signs. Of 5 subjects
    # p is at least 2/32 = 0.0625, so they can never show a difference at 0.05.
    lowest_p = min(1.0, 2.0 ** (1 - n_subjects))
    if lowest_p > 0.05:
        sentences.append(
            f"With {count(n_subjects, 'subject')} this test cannot give a p below {lowest_p:.3g}."
        )
    sentences += _power_notes(differences)
    if _has_margins(differences):
        sentences.append(
            "p not inferior: one-sided signed-rank test that the second run is worse by less than "
            "the margin, corrected by Holm over this column; not inferior at p ≤ 0.025."
        )
    sentences += _seed_notes(runs, differences)
    sentences.append(f"Lesion rule: {_describe_rule(first)}.")
    points: list[str] = []
    for run in runs:
        points.append(f"{run.name} {_describe_operating_point(run)}")
    sentences.append(f"Operating points: {'; '.join(points)}.")
    return sentences


def _power_notes(differences: Sequence[Difference]) -> list[str]:
    return [
        "r: rank-biserial effect size of the test, -1 to 1. Detectable: smallest true difference "
        f"that the test finds in {POWER:.0%} of such studies (single test at {LEVEL}, normal "
        "differences with this spread); a smaller one may exist unseen, so p above "
        f"{LEVEL} does not show equality."
    ]


def _seed_notes(runs: Sequence[Run], differences: Sequence[Difference]) -> list[str]:
    """Tell what the seeds' spread says of the differences, or that it is unknown."""
    if not _has_seeds(differences):
        if max(run.n_averaged for run in runs) > 1:
            return []
        return ["One seed each: how much another seed would change is unknown."]
    sentences = [
        "SD of seeds: standard deviation of a method's mean between its seeds. p with seeds: mixed "
        "model with subjects and seeds at random, corrected by Holm over this column."
    ]
    fewer: list[str] = []
    for difference in differences:
        if difference.n_seed_subjects < difference.n_subjects:
            subjects = f"{difference.n_seed_subjects} of {difference.n_subjects}"
            fewer.append(f"{_name(difference)} {subjects}")
    if fewer:
        sentences.append(
            "SD of seeds and p with seeds need a value in every seed, which fewer subjects than in "
            f"column n have: {', '.join(fewer)}."
        )
    within: list[str] = []
    for difference in differences:
        if difference.is_within_seeds:
            within.append(_name(difference))
    if within:
        sentences.append(
            f"Warning: smaller than the spread of seeds (!): {', '.join(within)}. Another seed may "
            "turn these differences around."
        )
    return sentences


def _name(difference: Difference) -> str:
    label = LABELS.get(difference.metric, difference.metric)
    return f"{label} ({difference.second})"


def _header(first: Run, second: Run, differences: Sequence[Difference]) -> list[str]:
    header = ["Metric", first.name, second.name, "Difference [95 %]", "p", "p (Holm)", "n"]
    header += ["r", "Detectable"]
    if _has_margins(differences):
        header += ["Margin", "p not inferior"]
    if _has_seeds(differences):
        header += ["SD of seeds", "p with seeds"]
    return header


def _has_margins(differences: Sequence[Difference]) -> bool:
    return any(not math.isnan(difference.margin) for difference in differences)


def _has_seeds(differences: Sequence[Difference]) -> bool:
    return any(not math.isnan(difference.seed_sd) for difference in differences)


def _table_rows(second: Run, differences: Sequence[Difference]) -> list[list[str]]:
    """Write the cells of one run's table."""
    # A class is named only where there is another to confuse it with.
    has_classes = len({difference.class_name for difference in differences}) > 1
    rows: list[list[str]] = []
    for difference in differences:
        if difference.second != second.name:
            continue
        metric = difference.metric
        label = LABELS.get(metric, metric) + _direction(metric)
        if has_classes:
            label = f"{difference.class_name}: {label}"
        row = [
            label,
            format_value(metric, difference.mean_first),
            format_value(metric, difference.mean_second),
            _format_difference(difference),
            _format_p(difference.p),
            _format_p(difference.p_holm),
            str(difference.n_subjects),
            _format_effect(difference.rank_biserial),
            format_value(metric, difference.detectable),
        ]
        if _has_margins(differences):
            row.append(format_value(metric, difference.margin))
            row.append(_format_p(difference.p_noninferior_holm))
        if _has_seeds(differences):
            row.append(_format_seed_sd(difference))
            row.append(_format_p(difference.p_seeds_holm))
        rows.append(row)
    return rows


def _direction(metric: str) -> str:
    if metric in NO_DIRECTION:
        return ""
    if metric in LOWER_IS_BETTER:
        return " ↓"
    return " ↑"


def _format_difference(difference: Difference) -> str:
    metric = difference.metric
    mean = format_value(metric, difference.mean, signed=True)
    if difference.n_subjects < FEWEST_FOR_INTERVAL:
        return mean
    low = format_value(metric, difference.low, signed=True)
    high = format_value(metric, difference.high, signed=True)
    return f"{mean} [{low}, {high}]"


def _format_seed_sd(difference: Difference) -> str:
    text = format_value(difference.metric, difference.seed_sd)
    # The reader's eye should stop here: the note below the table says why.
    return f"{text} !" if difference.is_within_seeds else text


def _format_effect(r: float) -> str:
    return UNDEFINED if math.isnan(r) else f"{r:+.2f}"


def _format_p(p: float) -> str:
    if math.isnan(p):
        return UNDEFINED
    # Rounded to 0.000, a p would claim that chance is impossible.
    if p < 0.001:
        return "<0.001"
    return f"{p:.3f}"


def _describe_rule(run: Run) -> str:
    # "connectivity 26, min_overlap 0.1, min_volume_mm3 3"
    parts: list[str] = []
    for key, value in run.evaluation["lesion_rule"].items():
        # The operating point is named for each run; a rule without a source has "" there.
        if key not in OPERATING_POINT and value != "":
            parts.append(f"{key} {_format_setting(value)}")
    return ", ".join(parts)


def _describe_operating_point(run: Run) -> str:
    threshold = run.evaluation.get("threshold")
    rule = run.evaluation["lesion_rule"]
    min_volume_mm3 = rule.get(SMALLEST_LESION)
    min_peak = rule.get(LOWEST_PEAK)
    # Predictions of other software may be masks, which have no threshold.
    text = "with masks as saved"
    if threshold is not None:
        text = f"at threshold {_format_setting(threshold)}"
    if min_volume_mm3:
        text += f" without predicted lesions below {_format_setting(min_volume_mm3)} mm³"
    if min_peak:
        text += f" without predicted lesions below probability {_format_setting(min_peak)}"
    return text


def _format_setting(value: Any) -> str:
    """Write a setting, or the setting of each class: `0.4 (liver), 0.7 (tumour)`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_format_setting(item)} ({name})" for name, item in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
