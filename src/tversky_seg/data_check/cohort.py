"""Findings that only the cases together show."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from tversky_seg.data.errors import DataError
from tversky_seg.data.preprocessing.pipeline import require_lesions
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.data_check.case_report import CaseReport
from tversky_seg.data_check.finding import NOTE, WARNING, Finding, name_some

logger = logging.getLogger("tversky_seg")

ANISOTROPIC = 3.0
"""Ratio of the longest to the shortest side of a voxel from which patches need thought."""
OTHER_UNIT = 1000.0
"""Ratio of the largest intensities of two cases from which their units differ."""
RAW_NORMALIZATIONS = ("none", "window", "window_minmax")
"""Normalisations that keep the intensities' units."""


def training_findings(prepared: Sequence[PreparedCase]) -> list[Finding]:
    """Find oddities of the training cases as a whole, without reading their voxels."""
    try:
        require_lesions(prepared)
    except DataError as fault:
        # Without any lesion there is nothing to train on, and nothing more to find.
        return [Finding.of_fault(one) for one in fault.faults]
    empty: list[str] = []
    for case in prepared:
        # n_lesions has one number for each class.
        if not any(case.n_lesions):
            empty.append(case.case_id)
    if not empty:
        return []
    finding = Finding(
        WARNING,
        "training set",
        f"{len(empty)} of {len(prepared)} cases hold no lesion ({name_some(empty)})",
        "they give patches without lesion only; leave them out if their labels were not drawn",
    )
    return [finding]


def check_training(prepared: Sequence[PreparedCase]) -> None:
    """Log the oddities of the training cases.

    Raises:
        DataError: No case has a lesion.
    """
    require_lesions(prepared)
    for finding in training_findings(prepared):
        logger.warning("%s", finding)


def cohort_findings(reports: Sequence[CaseReport], *, normalization: str) -> list[Finding]:
    """Find copies, other units and voxel sizes, missing modalities, classes without a lesion."""
    return [
        *_modality_sets(reports),
        *_copies(reports),
        *_other_units(reports, normalization=normalization),
        *_empty_classes(reports),
        *_voxel_sizes(reports),
    ]


def _modality_sets(reports: Sequence[CaseReport]) -> Iterator[Finding]:
    """Note which modalities how many cases have, where they differ."""
    ids_of: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for report in reports:
        ids_of[tuple(report.case.images)].append(report.case.case_id)
    if len(ids_of) < 2:
        return
    shares = []
    for names, ids in sorted(ids_of.items(), key=lambda entry: -len(entry[1])):
        shares.append(f"{' + '.join(names)} in {len(ids)} ({name_some(ids)})")
    yield Finding(
        NOTE,
        "data.require",
        f"{len(reports)} cases with {len(ids_of)} sets of modalities: {'; '.join(shares)}",
        "a missing modality is 0 throughout; metrics.json has each set's metrics (by_modalities)",
    )


def _copies(reports: Sequence[CaseReport]) -> Iterator[Finding]:
    """Find cases whose first image is the same file, byte by byte."""
    by_checksum: dict[int, list[CaseReport]] = defaultdict(list)
    for report in reports:
        if report.shape is not None:
            by_checksum[report.checksum].append(report)
    # The first of each group counts as the original: its copies are reported, it is not.
    for first, *copies in by_checksum.values():
        for copy in copies:
            yield _copy_finding(first, copy)


def _copy_finding(first: CaseReport, copy: CaseReport) -> Finding:
    found = f"is byte by byte the image of case {first.case.case_id}"
    if copy.case.subject_id != first.case.subject_id:
        found += f", though the subjects are {first.case.subject_id} and {copy.case.subject_id}"
    return Finding(
        WARNING,
        str(next(iter(copy.case.images.values()))),
        found,
        "take one out: a copy in training and test makes the result too good",
        copy.case.case_id,
    )


def _other_units(reports: Sequence[CaseReport], *, normalization: str) -> Iterator[Finding]:
    """Find modalities whose largest values lie orders of magnitude apart."""
    maxima: dict[str, dict[str, float]] = defaultdict(dict)
    for report in reports:
        for name, (_, highest) in (report.intensities or {}).items():
            maxima[name][report.case.case_id] = highest
    # Other normalisations scale each case by its own intensities.
    is_raw = normalization in RAW_NORMALIZATIONS
    remedy = "zscore" if is_raw else normalization
    for name, by_case in maxima.items():
        lowest_case = min(by_case, key=by_case.__getitem__)
        highest_case = max(by_case, key=by_case.__getitem__)
        lowest = by_case[lowest_case]
        highest = by_case[highest_case]
        # A maximum of 0 or less, as of a blank scan or of an image in HU, gives no ratio.
        if lowest <= 0 or highest / lowest < OTHER_UNIT:
            continue
        low = f"{lowest:g} ({lowest_case})"
        high = f"{highest:g} ({highest_case})"
        yield Finding(
            WARNING if is_raw else NOTE,
            f"modality {name}",
            f"maxima run from {low} to {high}",
            f"data.normalization={remedy} brings them together",
        )


def _empty_classes(reports: Sequence[CaseReport]) -> Iterator[Finding]:
    """Find classes that no label holds; of a single class, the training set tells."""
    n_labels = 0
    n_lesions: dict[str, int] = defaultdict(int)
    for report in reports:
        if report.lesion_sizes is not None:
            n_labels += 1
            for name, sizes in report.lesion_sizes.items():
                n_lesions[name] += len(sizes)
    # That a single class is empty is an error already: no lesion to train on.
    if len(n_lesions) < 2:
        return
    for name, n in n_lesions.items():
        if n == 0:
            yield Finding(
                WARNING,
                f"data.classes.{name}",
                f"no voxel in any of {n_labels} labels",
                "check the label values that data.classes gives it",
            )


def _voxel_sizes(reports: Sequence[CaseReport]) -> Iterator[Finding]:
    """Find cases that are resampled, and those with thick slices."""
    resampled: list[str] = []
    thick: list[str] = []
    for report in reports:
        if report.prepared is None or report.spacing_mm is None:
            continue
        # Sorted, because the file's axes may be in another order.
        own = np.sort(report.spacing_mm)
        network = np.sort(report.prepared.spacing_mm)
        if not np.allclose(own, network, rtol=0.01):
            resampled.append(report.case.case_id)
        if own[-1] >= ANISOTROPIC * own[0]:
            thick.append(report.case.case_id)
    if resampled:
        yield Finding(
            NOTE,
            "data.spacing_mm",
            f"{len(resampled)} of {len(reports)} cases are resampled ({name_some(resampled)})",
            "predictions come back on the grid of the file",
        )
    if thick:
        cases = f"{len(thick)} of {len(reports)} cases ({name_some(thick)})"
        yield Finding(
            WARNING,
            "data.spacing_mm",
            f"slices of {cases} are at least {ANISOTROPIC:g} times thicker than in-plane voxels",
            "use a smaller sampler.patch_size along that axis",
        )
