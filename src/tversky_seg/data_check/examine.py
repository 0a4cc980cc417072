"""Look at every file of a cohort before a training does: facts of each case, and what is wrong with it.

Errors are what preprocessing refuses, in its own words, since it is preprocessing that is run here; so a training stops
at the same. Warnings it would work with, though the result may not be what was meant; notes it puts right by itself.
"""

import logging
import multiprocessing
import os
import re
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.affines import affine_shift_voxels, axis_codes, spacing_of
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import file_and_frame
from tversky_seg.data.nifti import read_grid, read_label, read_volume
from tversky_seg.data.preprocessing.note import OUTSIDE_BRAIN, Note
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocess, require_lesions
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.report.slices import thumbnail
from tversky_seg.runtime.progress import Reporter

logger = logging.getLogger("tversky_seg")

LEVELS = ("error", "warning", "note")
SECONDS_WORTH_WORKERS = 10.0
N_PICTURES = 60
ANISOTROPIC = 3.0  # longest over shortest side of a voxel
MOST_OF_THE_BRAIN = 0.5  # a label that covers more is likely to be inverted
OTHER_UNIT = 1000.0  # ratio of the largest intensities of two cases
_NON_FINITE = re.compile(r": (\d+) voxels are NaN")


@dataclass(frozen=True)
class Finding:
    """One thing about one file or setting: what was found, and what to do.

    Attributes:
        level: "error": training refuses it. "warning": training goes on, but look at it. "note": it is handled.
        where: File, manifest line or key.
        found: What is there.
        remedy: What to do, or what is done.
        case_id: Of the case it is about, or None.
    """

    level: str
    where: str
    found: str
    remedy: str
    case_id: str | None = None

    @classmethod
    def of_fault(
        cls, fault: DataError, *, case_id: str | None = None, level: str = "error"
    ) -> "Finding":
        """Make a finding of one fault of the data."""
        where, found, remedy = fault.where, fault.found, fault.expected
        if not found:  # the whole line stands in `where`
            where, _, rest = where.partition(": ")
            found, _, remedy = rest.partition("; ")
        return cls(level, where, found, remedy, case_id)

    def __str__(self) -> str:
        return f"{self.where}: {self.found}; {self.remedy}"


@dataclass(frozen=True, eq=False)
class CaseReport:
    """What the files of one case hold; a few hundred bytes and a small picture, whatever the size of the volumes.

    Attributes:
        case: Which.
        shape: Voxels of the file of the first modality; None where it cannot be read.
        spacing_mm: Voxel size along the axes of that file.
        orientation: Where its axes run to, as "RAS".
        affine_shift: The most that any other file's affine puts a voxel elsewhere, in voxels; None without another file
            of this shape.
        intensities: Modality -> smallest and largest value.
        n_non_finite: Voxels that are NaN or infinite.
        checksum: Of the file of the first modality: the same for copies.
        prepared: The case as training sees it, without its voxels (`lesion_offsets` stays); None where it is refused.
        lesion_sizes: Class -> voxels of each of its lesions on the network's grid.
        n_foreground: Voxels of the brain on that grid.
        n_lesion_voxels: In any class.
        cache_bytes: What the case takes in the cache.
        peak_bytes: The most memory that the process which prepared it has held so far.
        seconds: Of a processor, to look at it and to prepare it.
        picture: PNG of the slice with most lesion, or None.
        findings: About its files.
    """

    case: Case
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    orientation: str = ""
    affine_shift: float | None = None
    intensities: Mapping[str, tuple[float, float]] | None = None
    n_non_finite: int = 0
    checksum: int = 0
    prepared: PreparedCase | None = None
    lesion_sizes: Mapping[str, NDArray[np.int64]] | None = None
    n_foreground: int = 0
    n_lesion_voxels: int = 0
    cache_bytes: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0
    picture: bytes | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def prevalence(self) -> float | None:
        """Share of the brain that is lesion; None without label."""
        labelled = self.prepared is not None and self.lesion_sizes is not None
        return self.n_lesion_voxels / max(self.n_foreground, 1) if labelled else None

    @property
    def n_lesions(self) -> int | None:
        """Lesions of all classes; None without label."""
        return None if self.lesion_sizes is None else sum(map(len, self.lesion_sizes.values()))

    @property
    def volumes_mm3(self) -> dict[str, NDArray[np.float64]]:
        """Class -> volume of each lesion."""
        if self.prepared is None or self.lesion_sizes is None:
            return {}
        voxel = float(np.prod(self.prepared.spacing_mm))
        return {
            name: (sizes * voxel).astype(np.float64) for name, sizes in self.lesion_sizes.items()
        }


def examine_cases(
    cases: Sequence[Case], settings: Preprocessing, *, n_workers: int | None = None
) -> list[CaseReport]:
    """Examine cases in parallel, with progress; each worker holds one case at a time.

    Args:
        cases: The cohort.
        settings: Those of the training.
        n_workers: Processes; 1 works in this one; None: one per core, at most 8, if the work takes longer than their
            start.

    Returns:
        One report per case, in their order.

    Raises:
        DataError: A worker process died.
    """
    reports: dict[int, CaseReport] = {}
    with Reporter("looking at the cases", total=len(cases)) as reporter:
        for number, report in _as_they_come(cases, settings, n_workers):
            reports[number] = report
            reporter.advance(report.case.case_id)
    return [reports[number] for number in range(len(cases))]


def examine(case: Case, settings: Preprocessing, *, with_picture: bool = False) -> CaseReport:
    """Read every file of a case, and prepare it as a training would, in memory.

    Whatever is wrong with it stands in the report: nothing is raised for it.
    """
    start = time.process_time()
    report, findings = _facts(case)
    with _silent():
        try:
            prepared = preprocess(case, settings)
        except DataError as fault:
            faults = [*fault.faults, *_other_faults(case, settings)]
            different = {str(each): each for each in faults}.values()
            errors = [Finding.of_fault(each, case_id=case.case_id) for each in different]
            findings = errors + findings
        else:
            report, about = _with_prepared(report, prepared, settings, with_picture=with_picture)
            findings += about
        for path in case.labels[1:]:
            rated = replace(case, labels=(path,), images=_first(case))
            rater_fault = _fault_of(rated, replace(settings, modalities=settings.modalities[:1]))
            if rater_fault and not any(finding.level == "error" for finding in findings):
                warning = Finding.of_fault(rater_fault, case_id=case.case_id, level="warning")
                findings.append(warning)
    n_non_finite = sum(int(n[1]) for finding in findings if (n := _NON_FINITE.search(str(finding))))
    return replace(
        report,
        n_non_finite=n_non_finite,
        findings=tuple(findings),
        peak_bytes=peak_bytes(),
        seconds=time.process_time() - start,
    )


def training_findings(prepared: Sequence[PreparedCase]) -> list[Finding]:
    """What is odd about the cases to train on as a whole; all that can be told without their voxels."""
    try:
        require_lesions(prepared)
    except DataError as fault:
        return [Finding.of_fault(each) for each in fault.faults]
    empty = [case.case_id for case in prepared if not any(case.n_lesions)]
    return (
        [
            Finding(
                "warning",
                "training set",
                f"{len(empty)} of {len(prepared)} cases hold no lesion ({_some(empty)})",
                "they give patches without lesion only; leave them out if their labels were not drawn",
            )
        ]
        if empty
        else []
    )


def check_training(prepared: Sequence[PreparedCase]) -> None:
    """Say what is odd about the cases to train on, and refuse what cannot be trained on.

    Raises:
        DataError: No lesion in any case.
    """
    require_lesions(prepared)
    for finding in training_findings(prepared):
        logger.warning("%s", finding)


def cohort_findings(reports: Sequence[CaseReport], *, normalization: str) -> list[Finding]:
    """What only the cases together show: copies, other units, other voxel sizes, classes without a lesion."""
    return [
        *_copies(reports),
        *_other_units(reports, normalization=normalization),
        *_empty_classes(reports),
        *_resampled(reports),
    ]


def peak_bytes() -> int:
    """The most memory that this process has held; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _facts(case: Case) -> tuple[CaseReport, list[Finding]]:
    """What the files say of themselves, one volume in memory at a time; preprocessing tells what cannot be read."""
    findings: list[Finding] = []
    intensities: dict[str, tuple[float, float]] = {}
    report = CaseReport(case)
    for name, path in case.images.items():
        try:
            volume = read_volume(path)
        except DataError:
            continue
        intensities[name] = (float(volume.data.min()), float(volume.data.max()))
        findings += _about_background(volume.data, path, case)
    try:
        path = next(iter(case.images.values()))
        report = replace(report, checksum=_checksum(file_and_frame(path)[0]))
        shape, affine = read_grid(path)
        report = replace(
            report,
            shape=shape,
            spacing_mm=spacing_of(affine),
            orientation=axis_codes(affine),
            affine_shift=_affine_shift(case, shape, affine),
        )
    except (DataError, OSError):
        pass
    if case.label is not None:
        findings += _about_label(case.label, case)
    return replace(report, intensities=intensities), findings


def _affine_shift(
    case: Case, shape: tuple[int, int, int], affine: NDArray[np.float64]
) -> float | None:
    shifts = []
    for path in [
        *list(case.images.values())[1:],
        *case.labels,
        *([case.brain_mask] if case.brain_mask else []),
    ]:
        try:
            other_shape, other = read_grid(path)
        except DataError:
            continue
        if other_shape == shape:
            shifts.append(affine_shift_voxels(affine, other, shape))
    return max(shifts, default=None)


def _about_background(data: NDArray[np.float32], path: Path, case: Case) -> list[Finding]:
    """A background other than 0; told from the corners, which show no body."""
    corners = data[
        :: max(data.shape[0] - 1, 1), :: max(data.shape[1] - 1, 1), :: max(data.shape[2] - 1, 1)
    ]
    value = float(corners.flat[0])
    if case.brain_mask is not None or value == 0 or not np.all(corners == value):
        return []
    return [
        Finding(
            "warning" if value < 0 else "note",
            str(path),
            f"the background is {value:g}, not 0",
            "taken as background where it makes up most of the border; a brain_mask column would say it surely",
            case.case_id,
        )
    ]


def _about_label(path: Path, case: Case) -> list[Finding]:
    """Whole numbers that are stored as something else."""
    try:
        stored = read_volume(path, dtype=None).data
        read_label(path)
    except DataError:
        return []
    if stored.dtype.kind != "f":
        return []
    odd = stored[stored != np.rint(stored)]
    if odd.size:
        return [
            Finding(
                "note",
                str(path),
                f"{odd.size} label voxels decode to no whole number, as {odd.flat[0]:.9g}, by a scale factor",
                "they are rounded here; other tools may read an empty mask",
                case.case_id,
            )
        ]
    return [
        Finding(
            "note",
            str(path),
            f"the label is stored as {stored.dtype} or with a scale factor",
            "its values are whole numbers",
            case.case_id,
        )
    ]


def _with_prepared(
    report: CaseReport, prepared: PreparedCase, settings: Preprocessing, *, with_picture: bool
) -> tuple[CaseReport, list[Finding]]:
    """The report with what training will see, and what is odd about that."""
    offsets = np.asarray(prepared.lesion_offsets)
    sizes = np.diff(offsets)
    by_class = np.split(sizes, np.cumsum(prepared.n_lesions)[:-1]) if prepared.n_lesions else []
    lesion_sizes = (
        dict(zip(settings.classes, by_class, strict=True)) if prepared.n_lesions else None
    )
    target, foreground = prepared.target, prepared.foreground
    lesions = None if target is None else np.asarray(target.any(axis=0))
    report = replace(
        report,
        prepared=replace(prepared, arrays={"lesion_offsets": offsets}),
        lesion_sizes=lesion_sizes,
        n_foreground=len(prepared.foreground_voxels),
        n_lesion_voxels=0 if lesions is None else int(np.count_nonzero(lesions)),
        cache_bytes=sum(array.nbytes + 128 for array in prepared.arrays.values()),
        picture=thumbnail(prepared) if with_picture else None,
    )
    n_outside = 0 if lesions is None else int(np.count_nonzero(lesions & ~foreground))
    return report, [
        *_about_notes(report, prepared.notes),
        *_about_lesions(report, n_outside=n_outside),
    ]


def _about_notes(report: CaseReport, notes: Sequence[Note]) -> Iterator[Finding]:
    """Report what preprocessing itself found odd."""
    for note in notes:
        # _about_lesions counts the voxels outside the brain.
        if note.kind != OUTSIDE_BRAIN:
            path = _file_of(note, report.case)
            yield Finding("warning", str(path), note.found, note.handling, report.case.case_id)


def _about_lesions(report: CaseReport, *, n_outside: int) -> Iterator[Finding]:
    """What the label shows on the grid of the network."""
    if report.lesion_sizes is None:
        return
    where, case_id = str(report.case.label), report.case.case_id
    if not report.n_lesion_voxels:
        yield Finding(
            "warning",
            where,
            "holds no lesion",
            "right if the subject has none; else draw it, or take the case out",
            case_id,
        )
    if n_outside:
        yield Finding(
            "warning",
            where,
            f"{n_outside} of {report.n_lesion_voxels} lesion voxels lie outside the brain",
            "they are kept; look whether the brain mask cuts lesions off or the label is shifted",
            case_id,
        )
    if (report.prevalence or 0) > MOST_OF_THE_BRAIN:
        yield Finding(
            "warning",
            where,
            f"{report.prevalence:.0%} of the brain is labelled",
            "look whether the mask is inverted",
            case_id,
        )
    n_single = sum(int(np.count_nonzero(sizes == 1)) for sizes in report.lesion_sizes.values())
    if n_single:
        yield Finding(
            "note",
            where,
            f"{n_single} of {report.n_lesions} lesions are one voxel",
            "trained on and counted; evaluation.rule.min_volume_mm3=… leaves them out of lesion measures",
            case_id,
        )


def _other_faults(case: Case, settings: Preprocessing) -> Iterator[DataError]:
    """What preprocessing refuses besides the first: each file beside the first modality, or alone where that is bad."""
    first = settings.modalities[0]
    alone = replace(case, labels=(), brain_mask=None)
    good_first = first in case.images and not _fault_of(
        alone, replace(settings, modalities=(first,))
    )
    for name in settings.modalities:
        if name in case.images:
            names = (first, name) if good_first and name != first else (name,)
            yield from filter(None, [_fault_of(alone, replace(settings, modalities=names))])
    for part in (replace(case, brain_mask=None), replace(case, labels=())):
        if good_first:
            yield from filter(None, [_fault_of(part, replace(settings, modalities=(first,)))])
    if not good_first:
        readers: list[tuple[Callable[[Path], object], Path | None]] = [(read_label, case.label)]
        for read, path in [*readers, (read_volume, case.brain_mask)]:
            try:
                if path is not None:
                    read(path)
            except DataError as fault:
                yield fault


def _fault_of(case: Case, settings: Preprocessing) -> DataError | None:
    try:
        preprocess(case, settings)
    except DataError as fault:
        return fault
    return None


def _first(case: Case) -> dict[str, Path]:
    return dict(list(case.images.items())[:1])


def _file_of(note: Note, case: Case) -> Path | None:
    """Return the file that a note of preprocessing is about."""
    if note.volume == "label":
        return case.label
    if note.volume == "brain mask":
        return case.brain_mask
    return case.images[note.volume]


def _copies(reports: Sequence[CaseReport]) -> Iterator[Finding]:
    """Cases whose first image is the same file, byte by byte."""
    same: dict[int, list[CaseReport]] = defaultdict(list)
    for report in reports:
        if report.shape is not None:
            same[report.checksum].append(report)
    for first, *copies in same.values():
        for copy in copies:
            of_subjects = first.case.subject_id != copy.case.subject_id
            yield Finding(
                "warning",
                str(next(iter(copy.case.images.values()))),
                f"is byte by byte the image of case {first.case.case_id}"
                + f", though the subjects are {first.case.subject_id} and {copy.case.subject_id}"
                * of_subjects,
                "take one out: a copy in training and test makes the result too good",
                copy.case.case_id,
            )


def _other_units(reports: Sequence[CaseReport], *, normalization: str) -> Iterator[Finding]:
    """Modalities whose largest values lie orders of magnitude apart."""
    for name in dict.fromkeys(name for report in reports for name in report.intensities or {}):
        tops = {
            r.case.case_id: r.intensities[name][1]
            for r in reports
            if r.intensities and name in r.intensities
        }
        low, high = min(tops, key=tops.__getitem__), max(tops, key=tops.__getitem__)
        if tops[low] > 0 and tops[high] / tops[low] >= OTHER_UNIT:
            is_raw = normalization in ("none", "ct")
            yield Finding(
                "warning" if is_raw else "note",
                f"modality {name}",
                f"maxima run from {tops[low]:g} ({low}) to {tops[high]:g} ({high})",
                "data.normalization=zscore brings them together"
                if is_raw
                else f"data.normalization={normalization} brings them together",
            )


def _empty_classes(reports: Sequence[CaseReport]) -> Iterator[Finding]:
    labelled = [report.lesion_sizes for report in reports if report.lesion_sizes is not None]
    for name in labelled[0] if labelled else ():
        if len(labelled[0]) > 1 and not any(len(sizes[name]) for sizes in labelled):
            yield Finding(
                "warning",
                f"data.classes.{name}",
                f"no voxel in any of {len(labelled)} labels",
                "check the label values that data.classes gives it",
            )


def _resampled(reports: Sequence[CaseReport]) -> Iterator[Finding]:
    """Voxels of another size than most, and long ones."""
    changed, long = [], []
    for report in reports:
        if report.prepared is not None and report.spacing_mm is not None:
            own, network = np.sort(report.spacing_mm), np.sort(report.prepared.spacing_mm)
            changed += [report.case.case_id] * (not np.allclose(own, network, rtol=0.01))
            long += [report.case.case_id] * bool(own[-1] >= ANISOTROPIC * own[0])
    if changed:
        yield Finding(
            "note",
            "data.spacing_mm",
            f"{len(changed)} of {len(reports)} cases are resampled ({_some(changed)})",
            "predictions come back on the grid of the file",
        )
    if long:
        yield Finding(
            "warning",
            "data.spacing_mm",
            f"voxels of {len(long)} of {len(reports)} cases are {ANISOTROPIC:g} times "
            f"as long as wide or more ({_some(long)})",
            "choose sampler.patch_size with fewer voxels that way",
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + ", …" * (len(names) > 5)


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


@contextmanager
def _silent() -> Iterator[None]:
    """What preprocessing says of a case stands in its report."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _as_they_come(
    cases: Sequence[Case], settings: Preprocessing, n_workers: int | None
) -> Iterator[tuple[int, CaseReport]]:
    """Number and report; in other processes if told to, or if that saves more than their start."""
    start = time.monotonic()
    for number, case in enumerate(cases):
        left = len(cases) - number
        seconds_left = (time.monotonic() - start) / max(number, 1) * left
        if left > 1 and (
            (n_workers or 1) > 1 or (n_workers is None and seconds_left > SECONDS_WORTH_WORKERS)
        ):
            yield from _in_workers(
                cases, number, settings, min(n_workers or min(n_cores(), 8), left)
            )
            return
        yield number, examine(case, settings, with_picture=number < N_PICTURES)


def _in_workers(
    cases: Sequence[Case], first: int, settings: Preprocessing, n_workers: int
) -> Iterator[tuple[int, CaseReport]]:
    has_forkserver = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if has_forkserver else "spawn")
    if (
        has_forkserver
    ):  # import once what every worker needs, also for the script that it finds itself in
        context.set_forkserver_preload(
            [name for name in ("torch", __name__) if name in sys.modules]
        )
    pool = ProcessPoolExecutor(n_workers, mp_context=context)
    try:
        pending = {
            pool.submit(examine, cases[number], settings, with_picture=number < N_PICTURES): number
            for number in range(first, len(cases))
        }
        for future in as_completed(pending):
            yield pending.pop(future), future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "n_workers", "a process died, out of memory perhaps", "try n_workers=1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def n_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
