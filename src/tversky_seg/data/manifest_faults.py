"""Faults that show once the lines of a manifest are cases: other cases and files that they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import file_and_frame, why_absent


def baseline_faults(cases: Sequence[Case], manifest: Path) -> list[DataError]:
    """List baselines that are no other case of the same subject, or follow one another in a ring.

    Examinations that each come after the next have no first one.
    """
    baselines = {case.case_id: case.baseline for case in cases}
    expected = "expected the case_id of an earlier examination"
    faults = _reference_faults(cases, baselines, "baseline", manifest, expected=expected)
    if faults:
        return faults
    for case in cases:
        ring = [case.case_id]
        earlier = case.baseline
        while earlier is not None and earlier not in ring:
            ring.append(earlier)
            earlier = baselines[earlier]
        # Told once, at the first of its cases; one that only leads into a ring is no part of it.
        if earlier == case.case_id and case.case_id == min(ring):
            found = f"baselines in a ring: {', '.join([*ring, earlier])}"
            faults.append(DataError(manifest, found, expected, case_id=case.case_id))
    return faults


def repeat_faults(cases: Sequence[Case], manifest: Path) -> list[DataError]:
    """List repeats of what is no other case of the same subject."""
    firsts = {case.case_id: case.repeat_of for case in cases}
    expected = "expected the case_id of the first scan"
    return _reference_faults(cases, firsts, "repeat_of", manifest, expected=expected)


def _reference_faults(
    cases: Sequence[Case],
    other_of: Mapping[str, str | None],
    column: str,
    manifest: Path,
    *,
    expected: str,
) -> list[DataError]:
    """List cells that name no other case of the same subject."""
    subject_of = {case.case_id: case.subject_id for case in cases}
    faults = []
    for case in cases:
        other = other_of[case.case_id]
        if other is None:
            continue
        if other == case.case_id or subject_of.get(other) != case.subject_id:
            found = f"case {case.case_id} has {column} {other!r}"
            of_subject = f"{expected} of {case.subject_id}"
            faults.append(DataError(manifest, found, of_subject, case_id=case.case_id))
    return faults


def missing_file_faults(case: Case, manifest: Path) -> list[DataError]:
    """List the files of a case that do not exist."""
    faults = []
    for path in case.paths:
        file, _ = file_and_frame(path)
        fault = why_absent(file)
        if fault is not None:
            expected = f"{manifest} names it for case {case.case_id}"
            faults.append(DataError(path, fault, expected, case_id=case.case_id))
    return faults
