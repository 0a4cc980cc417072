"""Examination of every file of a dataset, before a training reads them.

The check runs preprocessing itself, so its errors are exactly those that would stop a training.
"""

from __future__ import annotations

import logging
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.affines import affine_shift_voxels, axis_codes, ras_grid, spacing_of
from tversky_seg.data.case import Case, modalities_of
from tversky_seg.data.errors import DataError, NonFiniteError
from tversky_seg.data.image_files import file_and_frame
from tversky_seg.data.nifti import read_grid, read_label, read_volume
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocess
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.data_check.case_report import CaseReport
from tversky_seg.data_check.file_findings import (
    background_findings,
    lesion_findings,
    note_findings,
    stored_label_findings,
)
from tversky_seg.data_check.finding import WARNING, Finding
from tversky_seg.report.slices import thumbnail
from tversky_seg.runtime.progress import Reporter
from tversky_seg.runtime.workers import WorkerDied, map_in_processes

logger = logging.getLogger("tversky_seg")

N_PICTURES = 60
"""Cases with a picture on the page."""
ARRAY_HEADER_BYTES = 128


def examine_cases(
    cases: Sequence[Case], settings: Preprocessing, *, n_workers: int | None = None
) -> list[CaseReport]:
    """Examine cases in parallel, with progress; each worker holds one case at a time.

    Args:
        cases: Cases of the dataset.
        settings: Preprocessing of the training.
        n_workers: Processes; 1 works in this one. None: one per core, at most 8, if that saves
            time.

    Returns:
        One report per case, in their order.

    Raises:
        DataError: A worker process died.
    """
    # Workers finish in any order: the number of a case finds its place in the list again.
    reports: dict[int, CaseReport] = {}
    items = list(enumerate(cases))
    work = partial(_examine_item, settings=settings)
    with Reporter("checking cases", total=len(cases)) as reporter:
        try:
            for number, report in map_in_processes(work, items, n_workers=n_workers):
                reports[number] = report
                reporter.advance(report.case.case_id)
        except WorkerDied as error:
            raise DataError("n_workers", "a worker process died", "try n_workers=1") from error
    return [reports[number] for number in range(len(cases))]


def _examine_item(item: tuple[int, Case], settings: Preprocessing) -> CaseReport:
    number, case = item
    return examine(case, settings, with_picture=number < N_PICTURES)


def examine(case: Case, settings: Preprocessing, *, with_picture: bool = False) -> CaseReport:
    """Read every file of a case, and prepare the case in memory as a training would.

    Faults of the data become findings of the report; none is raised.
    """
    # Processor time: what a case takes should not depend on how busy the machine is.
    start = time.process_time()
    report, findings = _examine_files(case)
    faults: list[DataError] = []
    with _silent_logger():
        try:
            prepared = preprocess(case, settings)
        except DataError as fault:
            # A file at fault is read again with others, and then says the same again.
            faults = _distinct([*fault.faults, *_other_faults(case, settings)])
            findings = [Finding.of_fault(one, case_id=case.case_id) for one in faults] + findings
        else:
            report = _add_prepared(report, prepared, settings, with_picture=with_picture)
            findings += note_findings(case, prepared.notes)
            findings += lesion_findings(report, n_outside=_count_outside_brain(prepared))
            findings += _rater_findings(case, settings)
    n_non_finite = 0
    for one_fault in faults:
        if isinstance(one_fault, NonFiniteError):
            n_non_finite += one_fault.n_voxels
    return replace(
        report,
        n_non_finite=n_non_finite,
        findings=tuple(findings),
        peak_bytes=peak_bytes(),
        seconds=time.process_time() - start,
    )


def peak_bytes() -> int:
    """Return the largest memory that this process has held; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, Linux KiB.
    return peak if sys.platform == "darwin" else peak * 1024


def _distinct(faults: Sequence[DataError]) -> list[DataError]:
    """Drop faults that read the same."""
    by_text = {str(fault): fault for fault in faults}
    return list(by_text.values())


def _examine_files(case: Case) -> tuple[CaseReport, list[Finding]]:
    """Collect facts of the files, one volume in memory at a time.

    A file that cannot be read is passed over here, because preprocessing reports it.
    """
    # As the files are, in their own units and voxels; the case after preprocessing comes later.
    report = CaseReport(case)
    findings: list[Finding] = []
    intensities: dict[str, tuple[float, float]] = {}
    for name, path in case.images.items():
        try:
            volume = read_volume(path)
        except DataError:
            continue
        # Before normalisation, to tell other units apart.
        intensities[name] = (float(volume.data.min()), float(volume.data.max()))
        findings += background_findings(volume.data, path, case)
    report = replace(report, intensities=intensities)
    if case.images:
        report = _add_geometry(report, next(iter(case.images.values())))
    if case.label is not None:
        findings += stored_label_findings(case.label, case)
    return report, findings


def _add_geometry(report: CaseReport, path: Path) -> CaseReport:
    """Add checksum, shape, voxel size and axes of a file, as far as it can be read."""
    try:
        report = replace(report, checksum=_checksum(file_and_frame(path)[0]))
        shape, affine = read_grid(path)
    except (DataError, OSError):
        return report
    shift, is_stored_flipped = _affine_shift(report.case, shape, affine)
    return replace(
        report,
        shape=shape,
        spacing_mm=spacing_of(affine),
        orientation=axis_codes(affine),
        affine_shift=shift,
        is_stored_flipped=is_stored_flipped,
    )


def _affine_shift(
    case: Case, shape: tuple[int, int, int], affine: NDArray[np.float64]
) -> tuple[float | None, bool]:
    """Measure how far the other files of a case lie off, in voxels; None without another.

    A file whose axes run otherwise is turned first.

    Returns:
        The largest shift, and whether the axes of a file run otherwise.
    """
    turned_shape, turned_affine = ras_grid(shape, affine)
    # The first image defines the grid.
    paths = list(case.images.values())[1:] + list(case.labels)
    if case.brain_mask is not None:
        paths.append(case.brain_mask)
    shifts: list[float] = []
    is_stored_flipped = False
    for path in paths:
        try:
            other_shape, other_affine = read_grid(path)
        except DataError:
            continue
        turned = ras_grid(other_shape, other_affine)
        if turned[0] == turned_shape:
            shifts.append(affine_shift_voxels(turned_affine, turned[1], turned_shape))
            is_stored_flipped |= axis_codes(other_affine) != axis_codes(affine)
    return max(shifts, default=None), is_stored_flipped


def _add_prepared(
    report: CaseReport, prepared: PreparedCase, settings: Preprocessing, *, with_picture: bool
) -> CaseReport:
    """Add the case as training will see it, without its voxels."""
    offsets = np.asarray(prepared.lesion_offsets)
    n_lesion_voxels = 0
    if prepared.target is not None:
        n_lesion_voxels = int(np.count_nonzero(prepared.target.any(axis=0)))
    picture = None
    if with_picture:
        picture = thumbnail(prepared)
    # An array of the cache is a .npy file: its numbers behind a header of 128 bytes.
    cache_bytes = 0
    for array in prepared.arrays.values():
        cache_bytes += array.nbytes + ARRAY_HEADER_BYTES
    return replace(
        report,
        # Volumes stay behind: reports of a thousand cases are kept.
        prepared=replace(prepared, arrays={"lesion_offsets": offsets}),
        lesion_sizes=_lesion_sizes(prepared, settings),
        n_foreground=len(prepared.foreground_voxels),
        n_lesion_voxels=n_lesion_voxels,
        cache_bytes=cache_bytes,
        picture=picture,
    )


def _lesion_sizes(
    prepared: PreparedCase, settings: Preprocessing
) -> dict[str, NDArray[np.int64]] | None:
    """Split the sizes of all lesions by class; None without label."""
    if not prepared.n_lesions:
        return None
    sizes = np.diff(prepared.lesion_offsets)
    # Lesions are listed class by class: with n_lesions (2, 3) the sizes are split after 2 of 5.
    ends = np.cumsum(prepared.n_lesions)
    by_class = np.split(sizes, ends[:-1])
    return dict(zip(settings.classes, by_class, strict=True))


def _count_outside_brain(prepared: PreparedCase) -> int:
    if prepared.target is None:
        return 0
    lesions = np.asarray(prepared.target.any(axis=0))
    return int(np.count_nonzero(lesions & ~prepared.foreground))


def _rater_findings(case: Case, settings: Preprocessing) -> list[Finding]:
    """Find faults of the further raters' labels, which training does not read."""
    findings: list[Finding] = []
    first = modalities_of(case, settings.modalities)[0]
    for path in case.labels[1:]:
        # As if the rater were the only one: the label meets the checks of a training label.
        rated = replace(case, labels=(path,), images={first: case.images[first]})
        fault = _fault_of(rated, replace(settings, modalities=(first,), require=None))
        if fault is not None:
            findings.append(Finding.of_fault(fault, case_id=case.case_id, level=WARNING))
    return findings


def _other_faults(case: Case, settings: Preprocessing) -> Iterator[DataError]:
    """Find the faults that stand behind the first one.

    Preprocessing stops at the first bad file. Here each other file is read together with the
    first modality, whose grid it has to fit, or alone where the first modality itself is bad.
    """
    present = modalities_of(case, settings.modalities) or settings.modalities
    first = present[0]
    # Only files are looked at from here on: a required modality that is missing was said.
    settings = replace(settings, require=None)
    images_alone = replace(case, labels=(), brain_mask=None)
    first_only = replace(settings, modalities=(first,))
    is_first_good = first in case.images and _fault_of(images_alone, first_only) is None
    faults: list[DataError | None] = []
    for name in settings.modalities:
        if name not in case.images:
            continue
        names = [name]
        if is_first_good and name != first:
            names = [first, name]
        faults.append(_fault_of(images_alone, replace(settings, modalities=tuple(names))))
    if is_first_good:
        # The label without the brain mask, then the brain mask without the label.
        faults.append(_fault_of(replace(case, brain_mask=None), first_only))
        faults.append(_fault_of(replace(case, labels=()), first_only))
    else:
        faults.append(_fault_of_file(case.label, read_label))
        faults.append(_fault_of_file(case.brain_mask, read_volume))
    for fault in faults:
        if fault is not None:
            yield fault


def _fault_of(case: Case, settings: Preprocessing) -> DataError | None:
    try:
        preprocess(case, settings)
    except DataError as fault:
        return fault
    return None


def _fault_of_file(path: Path | None, read: Callable[[Path], object]) -> DataError | None:
    if path is None:
        return None
    try:
        read(path)
    except DataError as fault:
        return fault
    return None


def _checksum(path: Path) -> int:
    """Compute a CRC of a file, block by block."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


@contextmanager
def _silent_logger() -> Iterator[None]:
    """Keep preprocessing quiet: its words about a case stand in the report."""
    was_disabled = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = was_disabled
