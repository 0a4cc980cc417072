"""The page of an evaluation: one HTML file that needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from tversky_seg.metrics.lesion_rule import ANY_OVERLAP, LesionRule
from tversky_seg.report.by_lesion import ByLesionSection, by_lesion_section
from tversky_seg.report.charts import Chart, draw_charts, of_class
from tversky_seg.report.labels import (
    FEWEST_FOR_INTERVAL,
    LABELS,
    UNDEFINED,
    count,
    count_subjects,
    describe_rule,
    format_interval,
    format_value,
    split_by_class,
    summary_rows,
)
from tversky_seg.report.slices import (
    ShownCase,
    as_png,
    rank_cases,
    rank_lesion_free_cases,
    slice_pictures,
)
from tversky_seg.report.summary_sentence import summary_sentence
from tversky_seg.report.viewer import (
    CASE_BYTES,
    PAGE_BYTES,
    PackedCase,
    Viewer,
    ViewerCase,
    pack_case,
)
from tversky_seg.runtime.files import write_text

HEADLINE = ("dice", "pr_auc", "lesion_tpr", "lesion_fpr", "lesion_f1")
RATER_METRICS = ("dice", "precision", "sensitivity", "lesion_tpr", "lesion_fpr", "assd_mm")
GROUP_METRICS = (
    *("dice", "precision", "sensitivity", "pr_auc"),
    *("lesion_tpr", "lesion_fpr", "lesion_f1", "volume_difference"),
)
RATE_NAMES = {"tpr": "TPR", "fpr": "FPR", "f1": "F1"}


@dataclass(frozen=True)
class Tile:
    """A headline metric."""

    label: str
    value: str
    interval: str


@dataclass(frozen=True)
class Section:
    """All that the page says of one class."""

    name: str
    """"" where there is a single class."""
    sentence: str
    """What was found, missed and false, in one sentence."""
    tiles: list[Tile]
    rows: list[tuple[str, ...]]
    further_rows: list[tuple[str, ...]]
    by_lesion: ByLesionSection | None
    charts: list[Chart]
    lesion_free: Mapping[str, Any] | None
    raters: list[tuple[str, ...]]
    groups: dict[str, list[tuple[str, ...]]]
    """Title, as "By site" -> rows of its table."""
    new_lesions: Mapping[str, Any] | None
    regions: Mapping[str, Any] | None
    """Lesions by region of the brain, for cases in MNI space."""
    repeatability: Mapping[str, Any] | None
    """Scans compared with their repeats."""
    retention: Mapping[str, Any] | None
    doubtful_rows: list[tuple[str, ...]]


@dataclass(frozen=True)
class SlicesOfCase:
    """Pictures of one case: caption -> PNG as a data URL."""

    title: str
    pictures: dict[str, str]


def write_report(
    folder: Path,
    metrics: Mapping[str, Any],
    *,
    shown: Iterable[ShownCase],
    titles: Mapping[str, str],
    viewed: Sequence[str] = (),
    first: str | None = None,
    rule: LesionRule = ANY_OVERLAP,
    origin: Mapping[str, str] | None = None,
) -> None:
    """Write report.html.

    Args:
        folder: Folder for the page. It holds pr_curve.csv, froc.csv and threshold_curve.csv; a
            chart whose file is missing or empty is left out.
        metrics: Content of metrics.json.
        shown: Cases of the slices and of the viewer, each once; taken one by one.
        titles: Ids of the cases whose slices are drawn -> heading, in the order of the page.
        viewed: Ids of the cases in the viewer, in the order of its list; none: no viewer.
        first: The one of them that is shown first; None: the first of the list.
        rule: Rule by which the viewer tells missed and false lesions.
        origin: Name -> value, what the header says of run, data and program.
    """
    sections: list[Section] = []
    for name in split_by_class(metrics):
        sections.append(_section(folder, metrics, name))
    slices: dict[str, SlicesOfCase] = {}
    packed: dict[str, PackedCase] = {}
    # All cases share the size of a page.
    largest_bytes = min(CASE_BYTES, PAGE_BYTES // max(1, len(viewed)))
    # Cases come one by one: their volumes are not all in memory at once.
    for case in shown:
        if case.case_id in titles:
            slices[case.case_id] = _slices(titles[case.case_id], case)
        if case.case_id in viewed:
            packed[case.case_id] = pack_case(case, rule=rule, largest_bytes=largest_bytes)
    page = environment().get_template("report.html.j2")
    text = page.render(
        metrics=metrics,
        n_subjects=count_subjects(metrics),
        fewest_for_interval=FEWEST_FOR_INTERVAL,
        rule=describe_rule(metrics),
        origin=origin or {},
        faults=metrics.get("faults", []),
        sections=sections,
        slices=[slices[case_id] for case_id in titles if case_id in slices],
        viewer=_viewer(metrics, packed, viewed, first=first),
        class_names=list(split_by_class(metrics)),
        case_headers=_case_headers(metrics),
        case_rows=list(_case_rows(metrics)),
    )
    write_text(folder / "report.html", text)


def _viewer(
    metrics: Mapping[str, Any],
    packed: Mapping[str, PackedCase],
    viewed: Sequence[str],
    *,
    first: str | None,
) -> Viewer | None:
    if not packed:
        return None
    dice = rank_cases(metrics)
    false_mm3 = rank_lesion_free_cases(metrics)
    cases: list[ViewerCase] = []
    for case_id in viewed:
        caption = case_id
        if case_id in dice:
            caption += f": Dice {dice[case_id]:.3f}"
        # Without a lesion Dice is no measure; the false volume is.
        elif case_id in false_mm3:
            caption += f": no lesion, {format_value('mm3', false_mm3[case_id])} mm³ false"
        cases.append(ViewerCase(case_id, caption, packed[case_id].content))
    start = 0
    if first is not None and first in viewed:
        start = list(viewed).index(first)
    left_out = [case_id for case_id in (*dice, *false_mm3) if case_id not in packed]
    return Viewer(cases, start, left_out)


def environment() -> jinja2.Environment:
    """Make the environment of the page templates: every value is escaped unless marked safe."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("tversky_seg.report"),
        # A case id is text of the user's, and must not become part of the page's code.
        autoescape=True,
        # A misspelt name in a template is an error, not a blank.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["count"] = count
    templates.filters["metric"] = _format_metric
    return templates


def _format_metric(value: float | None, name: str) -> str:
    return format_value(name, value)


def _section(folder: Path, metrics: Mapping[str, Any], name: str) -> Section:
    parts = split_by_class(metrics)[name]
    n_subjects = count_subjects(metrics)
    further_rows: list[tuple[str, ...]] = []
    # A metrics.json of an earlier version may lack sections; the page then leaves them out.
    if metrics.get("further"):
        further = split_by_class(metrics["further"])[name]
        further_rows.extend(summary_rows(further, n_subjects=n_subjects))
    return Section(
        name=name,
        sentence=summary_sentence(metrics, name),
        tiles=list(_tiles(parts, n_subjects=n_subjects)),
        rows=list(summary_rows(parts, n_subjects=n_subjects)),
        further_rows=further_rows,
        by_lesion=by_lesion_section(metrics, name),
        charts=list(draw_charts(folder, metrics, name)),
        lesion_free=of_class(metrics, "lesion_free", name),
        raters=list(_rater_rows(metrics, name)),
        groups=_groups(metrics, name),
        new_lesions=_new_lesions(of_class(metrics, "new_lesions", name)),
        regions=_regions(of_class(metrics, "regions", name)),
        repeatability=_repeatability(of_class(metrics, "repeatability", name)),
        retention=of_class(metrics, "retention", name),
        doubtful_rows=list(_doubtful_rows(of_class(metrics, "retention", name))),
    )


def _tiles(parts: Mapping[str, Any], *, n_subjects: int) -> Iterator[Tile]:
    for name in HEADLINE:
        mean = parts["mean"].get(name)
        if mean is not None:
            low, high = parts["ci95"][name]
            interval = ""
            # Of fewer subjects an interval says less than it seems to.
            if n_subjects >= FEWEST_FOR_INTERVAL:
                interval = format_interval(name, low, high, n_subjects=n_subjects)
            yield Tile(LABELS[name], format_value(name, mean), interval)


def _rater_rows(metrics: Mapping[str, Any], name: str) -> Iterator[tuple[str, ...]]:
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


def _groups(metrics: Mapping[str, Any], name: str) -> dict[str, list[tuple[str, ...]]]:
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


def _doubtful_rows(retention: Mapping[str, Any] | None) -> Iterator[tuple[str, ...]]:
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


def _new_lesions(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
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


def _regions(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
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


def _repeatability(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
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


def _slices(title: str, case: ShownCase) -> SlicesOfCase:
    pictures = slice_pictures(
        case.image, case.prediction, case.reference, spacing_mm=case.spacing_mm
    )
    urls: dict[str, str] = {}
    for caption, picture in pictures.items():
        # Inside the page, which can then be sent as one file.
        encoded = base64.b64encode(as_png(picture)).decode("ascii")
        urls[caption] = f"data:image/png;base64,{encoded}"
    return SlicesOfCase(f"{title}: {case.case_id}", urls)


def _case_headers(metrics: Mapping[str, Any]) -> list[str]:
    # The first column holds the case ids.
    headers = [""]
    for name in _metric_names(metrics):
        headers.append(LABELS[name])
    return headers


def _case_rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for class_name in split_by_class(metrics):
        for case in metrics["cases"]:
            row = case[class_name] if class_name else case
            values = [format_value(name, row[name]) for name in _metric_names(metrics)]
            yield f"{case['case_id']} {class_name}".strip(), *values


def _metric_names(metrics: Mapping[str, Any]) -> list[str]:
    first_class = next(iter(split_by_class(metrics).values()))
    return list(first_class["mean"])
