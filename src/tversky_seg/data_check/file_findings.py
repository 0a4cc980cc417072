"""Findings about the files of one case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import read_label, read_volume
from tversky_seg.data.preprocessing.note import OUTSIDE_BRAIN, Note
from tversky_seg.data_check.case_report import CaseReport
from tversky_seg.data_check.finding import NOTE, WARNING, Finding

MOST_OF_THE_BRAIN = 0.5
"""Share of the brain above which a label is probably inverted."""


def background_findings(data: NDArray[np.float32], path: Path, case: Case) -> Iterator[Finding]:
    """Find a background other than 0, by the eight corners, which show no body."""
    # A step of n - 1 takes the first and the last voxel: data[::9] of 10 is [0] and [9].
    x, y, z = (max(n - 1, 1) for n in data.shape)
    corners = data[::x, ::y, ::z]
    value = float(corners.flat[0])
    has_background = np.all(corners == value)
    if case.brain_mask is not None or value == 0 or not has_background:
        return
    yield Finding(
        # A negative background is easily taken for tissue.
        WARNING if value < 0 else NOTE,
        str(path),
        f"the background is {value:g}, not 0",
        "it is recognised where it makes up most of the border; a brain_mask column is safer",
        case.case_id,
    )


def stored_label_findings(path: Path, case: Case) -> Iterator[Finding]:
    """Find labels that are whole numbers stored as something else."""
    try:
        stored = read_volume(path, dtype=None).data
        read_label(path)
    except DataError:
        return
    # An integer type without scale factor is what a label should be.
    if stored.dtype.kind != "f":
        return
    inexact = stored[stored != np.rint(stored)]
    if inexact.size:
        # A scale factor in the header decodes 1 to 0.99999997.
        example = f"{inexact.flat[0]:.9g}"
        yield Finding(
            NOTE,
            str(path),
            f"{inexact.size} label voxels decode to {example} or the like, by a scale factor",
            "they are rounded here; other tools may read an empty mask",
            case.case_id,
        )
    else:
        yield Finding(
            NOTE,
            str(path),
            f"the label is stored as {stored.dtype} or with a scale factor",
            "its values are whole numbers",
            case.case_id,
        )


def note_findings(case: Case, notes: Sequence[Note]) -> Iterator[Finding]:
    """Report the oddities that preprocessing noted."""
    for note in notes:
        # lesion_findings counts the voxels outside the brain.
        if note.kind != OUTSIDE_BRAIN:
            path = _file_of(note, case)
            yield Finding(WARNING, str(path), note.found, note.handling, case.case_id)


def lesion_findings(report: CaseReport, *, n_outside: int) -> Iterator[Finding]:
    """Find oddities of the label on the grid of the network."""
    if report.lesion_sizes is None:
        return
    path = str(report.case.label)
    case_id = report.case.case_id
    if not report.n_lesion_voxels:
        yield Finding(
            WARNING,
            path,
            "holds no lesion",
            "right if the subject has none; otherwise draw it, or leave the case out",
            case_id,
        )
    if n_outside:
        yield Finding(
            WARNING,
            path,
            f"{n_outside} of {report.n_lesion_voxels} lesion voxels lie outside the brain",
            "they are kept; check whether the brain mask cuts lesions off or the label is shifted",
            case_id,
        )
    # MS lesions take a few per cent of the brain at most.
    prevalence = report.prevalence or 0.0
    if prevalence > MOST_OF_THE_BRAIN:
        yield Finding(
            WARNING,
            path,
            f"{prevalence:.0%} of the brain is labelled",
            "check whether the mask is inverted",
            case_id,
        )
    # Often slips of the brush, and in lesion-wise metrics each counts as much as a large lesion.
    n_single = 0
    for sizes in report.lesion_sizes.values():
        n_single += int(np.count_nonzero(sizes == 1))
    if n_single:
        yield Finding(
            NOTE,
            path,
            f"{n_single} of {report.n_lesions} lesions are one voxel",
            "trained on and counted; evaluation.rule.min_volume_mm3=… leaves them out of metrics",
            case_id,
        )


def _file_of(note: Note, case: Case) -> Path | None:
    """Return the file that a note of preprocessing is about."""
    if note.volume == "label":
        return case.label
    if note.volume == "brain mask":
        return case.brain_mask
    return case.images[note.volume]
