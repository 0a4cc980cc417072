"""Findings about two examinations of a subject: whether they lie on each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tversky_seg.data.alignment import measure_alignment
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import read_volume
from tversky_seg.data.time_points import EARLIER, LATER, pairs_of
from tversky_seg.data_check.finding import NOTE, WARNING, Finding

N_MEASURED = 100
"""Pairs that are measured: each takes a second."""
REMEDY = "register the earlier image to the later one; nothing is registered here"


def pair_findings(cases: Sequence[Case]) -> Iterator[Finding]:
    """Measure whether the images of each pair lie on each other, by their affines.

    A pair is a case with images of two times (`FLAIR@1`, `FLAIR@2`), or a case and its baseline or
    the session before.
    """
    pairs = list(_image_pairs(cases))
    for case, earlier, later in pairs[:N_MEASURED]:
        try:
            fault = measure_alignment(read_volume(earlier), read_volume(later)).fault
        except DataError:
            continue  # named by the check of its case
        if fault is not None:
            found = f"and {later.name}: {fault}"
            yield Finding(WARNING, str(earlier), found, REMEDY, case.case_id)
    if len(pairs) > N_MEASURED:
        found = f"{N_MEASURED} of {len(pairs)} pairs measured, whether they lie on each other"
        yield Finding(NOTE, "time points", found, "the others are not measured")


def _image_pairs(cases: Sequence[Case]) -> Iterator[tuple[Case, Path, Path]]:
    """List the later case, the earlier and the later image of each pair."""
    for case in cases:
        for name, later in case.images.items():
            earlier = case.images.get(name.removesuffix(LATER) + EARLIER)
            if name.endswith(LATER) and earlier is not None:
                yield case, earlier, later
                break  # the first modality of both times
    for before, after in pairs_of(cases):
        for name, later in after.images.items():
            if name in before.images:
                yield after, before.images[name], later
                break
