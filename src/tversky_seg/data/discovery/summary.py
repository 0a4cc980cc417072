"""What a draft of a manifest holds and leaves out, as plain text."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tversky_seg.data.discovery.draft import Draft
from tversky_seg.data.discovery.make import manifest_text

N_NAMED = 5
"""Names listed of many."""
N_SOURCES = 8
"""Patterns or kinds of names shown for a column."""


def describe_draft(draft: Draft, output: Path) -> str:
    """Write the columns, the cases, what is ambiguous, missing or unused, and the first case."""
    parts = [
        _columns(draft),
        _counts(draft),
        "\n".join(_gaps(draft)),
        _first_case(draft, output) if draft.cases else "",
    ]
    return "\n\n".join(part for part in parts if part)


def name_first(names: Sequence[object]) -> str:
    """List the first five names: "a, b, c, d, e and 7 more"."""
    text = ", ".join(map(str, names[:N_NAMED]))
    if len(names) > N_NAMED:
        text += f" and {len(names) - N_NAMED} more"
    return text


def _columns(draft: Draft) -> str:
    rows = [("column", "cases", "from")]
    for column in draft.columns:
        n_cases = sum(column in found.files for found in draft.search.cases)
        first, *others = draft.search.sources[column]
        rows.append((column, str(n_cases), first))
        rows.extend(("", "", source) for source in others[: N_SOURCES - 1])
        if len(others) >= N_SOURCES:
            rows.append(("", "", f"and {len(others) - N_SOURCES + 1} more"))
    return "\n".join(_aligned(rows))


def _counts(draft: Draft) -> str:
    cases = draft.cases
    subjects = {case.subject_id for case in cases}
    n_labelled = len(cases) - len(draft.without_label)
    text = f"{count(cases, 'case')} of {count(subjects, 'subject')}, {n_labelled} with a label"
    lines = [text]
    for title, values in (
        ("sessions", [case.session for case in cases]),
        ("sites", [case.site for case in cases]),
        ("splits", [case.split for case in cases]),
    ):
        n_of = Counter(value for value in values if value is not None)
        if n_of:
            shares = [f"{value} ({n})" for value, n in sorted(n_of.items())]
            lines.append(f"{title}: {name_first(shares)}")
    extra: dict[str, None] = {}
    for of_case in draft.metadata.values():
        extra.update(dict.fromkeys(of_case))
    if extra:
        lines.append(f"metadata: {', '.join(extra)}")
    return "\n".join(lines)


def _gaps(draft: Draft) -> Iterator[str]:
    yield from draft.notes
    if draft.without_label:
        names = name_first(draft.without_label)
        yield f"without label, hence predicted and not evaluated: {names}"
    for modality in draft.modalities:
        missing = draft.cases_without(modality)
        if missing:
            yield f"without {modality}: {name_first(missing)}"
    yield from _ambiguities(draft)
    if draft.without_image:
        yield f"a label or mask without an image, left out: {name_first(draft.without_image)}"
    unmatched = draft.search.unmatched
    if unmatched:
        yield f"{count(unmatched, 'image')} not used: {name_first(unmatched)}"
    for reason, paths in draft.search.skipped.items():
        if paths:
            yield f"{len(paths)} {reason}: {name_first(paths)}"


def _ambiguities(draft: Draft) -> Iterator[str]:
    if not draft.ambiguous:
        return
    yield "two or more files for one cell, or one for two; these cases are left out:"
    for one in draft.ambiguous[:N_NAMED]:
        names = name_first([path.name for path in one.files])
        # Files of one name lie in different folders.
        if len({path.name for path in one.files}) < len(one.files):
            names = name_first(one.files)
        yield f"  {one.case_id}, {one.column}: {names}"
    if len(draft.ambiguous) > N_NAMED:
        yield f"  and {len(draft.ambiguous) - N_NAMED} more"
    # Each column once: its remedy is the same for all cases.
    columns = dict.fromkeys(one.column for one in draft.ambiguous)
    for column in columns:
        yield f"  {column}: {draft.advice(column)}"


def _first_case(draft: Draft, output: Path) -> str:
    """Write the first line of the CSV, one cell below the other: paths are long."""
    header, first, *_ = csv.reader(manifest_text(draft, output).splitlines(keepends=True))
    rows = list(zip(header, first, strict=True))
    return "\n".join(["first case", *(f"  {line}" for line in _aligned(rows))])


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def count(things: Sequence[object] | set[str], name: str) -> str:
    """Write how many there are: "1 case", "2 cases"."""
    return f"{len(things)} {name}" + ("" if len(things) == 1 else "s")
