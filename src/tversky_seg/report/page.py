"""The page of an evaluation: one HTML file that needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from tversky_seg.metrics.lesion_rule import ANY_OVERLAP, LesionRule
from tversky_seg.report import section_tables as tables
from tversky_seg.report.by_lesion import ByLesionSection, by_lesion_section
from tversky_seg.report.charts import Chart, draw_charts, of_class
from tversky_seg.report.labels import (
    FEWEST_FOR_INTERVAL,
    LABELS,
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
        case_headers=tables.case_headers(metrics),
        case_rows=list(tables.case_rows(metrics)),
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
    # Named on the page, so that nobody takes those that are shown for all.
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
        raters=list(tables.rater_rows(metrics, name)),
        groups=tables.group_tables(metrics, name),
        new_lesions=tables.new_lesions(of_class(metrics, "new_lesions", name)),
        regions=tables.regions(of_class(metrics, "regions", name)),
        repeatability=tables.repeatability(of_class(metrics, "repeatability", name)),
        retention=of_class(metrics, "retention", name),
        doubtful_rows=list(tables.doubtful_rows(of_class(metrics, "retention", name))),
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
