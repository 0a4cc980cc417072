"""From files to what training reads: RAS, one voxel size, cropped to the brain, normalised, lesions listed; cached."""

import ctypes
import logging
import math
import multiprocessing
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.cache import fingerprint, read_entry, write_entry
from tversky_seg.data.case import Case, check_case_id
from tversky_seg.data.dataset import (
    Dataset,
    check_classes,
    check_crop,
    check_limits,
    check_modalities,
    check_rater,
    check_spacing,
)
from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import Bools, Geometry, Shape, network_grid, to_input_grid
from tversky_seg.data.nifti import MAX_VOXELS, ras_grid, read_grid, spacing_of
from tversky_seg.data.preprocessing.modality import (
    Box,
    Channel,
    Reference,
    bounding_box,
    box_around,
    lesion_arrays,
    majority,
    read_brain,
    read_channel,
    read_target,
)
from tversky_seg.data.preprocessing.prepared_case import (
    PreparedCase,
    forget_opened,
    one_case_per_rater,
    rater_array,
)
from tversky_seg.runtime.progress import Reporter

__all__ = [
    "Geometry",
    "PreparedCase",
    "Preprocessing",
    "common_spacing",
    "median_spacing",
    "one_case_per_rater",
    "prepare",
    "prepare_all",
    "preprocess",
    "preprocessing_of",
    "require_lesions",
    "to_input_grid",
]

logger = logging.getLogger("tversky_seg")

FORMAT_VERSION = 2  # of the cache: raise it when the same files and settings give other arrays
SECONDS_WORTH_WORKERS = 10.0
_M_MMAP_THRESHOLD = -3  # of malloc.h


@dataclass(frozen=True)
class Preprocessing:
    """What is done to every case, in training and in prediction.

    Attributes:
        modalities: Channels in order.
        classes: Class name -> label values that belong to it.
        spacing_mm: Voxel size along R, A, S, None for an axis that keeps the file's own; None: all of them.
        normalization: "zscore": mean 0, standard deviation 1 in the brain. "robust": median 0, interquartile range
            1.349 (as of a normal distribution of standard deviation 1), which large lesion loads move less.
            "percentile": from two percentiles of the brain to [0, 1], cut there. "window": from two values of the file
            (HU in CT, Shirokikh 2020) to [0, 1], cut there. "none".
        limits: The two percentiles (None: 0.5 and 99.5) or values (None: -300 and 300).
        crop_values: Label values around which a labelled case is cropped, as Shirokikh 2020 crops LiTS to the liver;
            what lies beyond the box is neither trained on nor predicted. A case without label is not cropped by it.
            Empty: the crop is the box around brain and label.
        crop_margin: Network voxels around that box.
        rater: Whose label the target is: None the first, "consensus" the first where it is one, 1, 2, … that rater's,
            "majority" what more than half of the raters drew, "random" the first with those of all raters beside
            (`one_case_per_rater`).

    Raises:
        DataError: A setting is out of range.
    """

    modalities: tuple[str, ...]
    classes: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"lesion": (1,)})
    spacing_mm: tuple[float | None, float | None, float | None] | None = None
    normalization: str = "zscore"
    limits: tuple[float, float] | None = None
    crop_values: tuple[int, ...] = ()
    crop_margin: int = 5
    rater: int | str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", check_modalities(self.modalities))
        object.__setattr__(self, "classes", check_classes(self.classes))
        object.__setattr__(self, "spacing_mm", check_spacing(self.spacing_mm))
        object.__setattr__(self, "limits", check_limits(self.limits, self.normalization))
        object.__setattr__(self, "crop_values", check_crop(self.crop_values, self.crop_margin))
        object.__setattr__(self, "rater", check_rater(self.rater))
        if not self.modalities:
            raise DataError("data.modalities", "none", "expected at least one")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints and keys."""
        return {
            "modalities": list(self.modalities),
            "classes": {name: list(values) for name, values in self.classes.items()},
            "spacing_mm": None if self.spacing_mm is None else list(self.spacing_mm),
            "normalization": self.normalization,
            "limits": None if self.limits is None else list(self.limits),
            "crop_values": list(self.crop_values),
            "crop_margin": self.crop_margin,
            "rater": self.rater,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of `as_dict`."""
        return cls(**values)


def preprocessing_of(dataset: Dataset, cases: Sequence[Case]) -> Preprocessing:
    """What a data set asks for; where it leaves the voxel size to the cases, that of all labelled ones among these.

    Test cases have a say too, so that the folds of a cohort see alike and can predict as one ensemble.

    Raises:
        DataError: A header cannot be read.
    """
    spacing_mm = dataset.spacing_mm
    listed = sorted(cases, key=lambda case: case.case_id)  # ties are broken alike in every fold
    labelled = [case for case in listed if case.labels] or listed
    if spacing_mm is None:
        spacing_mm = common_spacing(labelled)
    elif spacing_mm == "median":
        spacing_mm = median_spacing(labelled)
    return Preprocessing(
        modalities=dataset.modalities,
        classes=dataset.classes,
        spacing_mm=None if spacing_mm == "native" else check_spacing(spacing_mm),
        normalization=dataset.normalization,
        limits=dataset.limits,
        crop_values=dataset.crop_values,
        crop_margin=dataset.crop_margin,
        rater=dataset.rater,
    )


def preprocess(case: Case, settings: Preprocessing) -> PreparedCase:
    """Prepare one case in memory; without label it can be predicted.

    Oddities of the files that were put right are logged, once in a process.

    Raises:
        DataError: A fault of a file, or files that do not fit each other or the settings.
    """
    prepared = _preprocess(case, settings)
    for note in prepared.notes:
        _say_once(note)
    return prepared


def prepare(case: Case, settings: Preprocessing, *, cache_dir: Path) -> PreparedCase:
    """Prepare one case, or take it from the cache if its files and the settings are as they were.

    An entry is a directory that appears whole under its final name; one that is damaged is built anew.

    Raises:
        DataError: As `preprocess`, or the cache cannot be written.
    """
    prepared = _prepare(case, settings, cache_dir)
    for note in prepared.notes:
        _say_once(note)
    return prepared


def prepare_all(
    cases: Sequence[Case], settings: Preprocessing, *, cache_dir: Path, n_workers: int | None = None
) -> list[PreparedCase]:
    """Prepare cases in parallel, with progress; what is cached is only checked.

    Args:
        cases: The cohort.
        settings: The same for all.
        cache_dir: Where prepared cases are kept.
        n_workers: Processes; 1 works in this one; None: one per core, at most 8, if the work takes longer than their
            start.

    Returns:
        The prepared cases, in the order of `cases`.

    Raises:
        DataError: The faults of all cases in one; what could be prepared is in the cache.
    """
    prepared: dict[str, PreparedCase] = {}
    faults: dict[str, DataError] = {}
    for case in cases:
        try:
            if (cached := _cached(_entry(case, settings, cache_dir), case)) is not None:
                prepared[case.case_id] = cached
        except DataError as fault:
            faults[case.case_id] = fault
    missing = [
        case for case in cases if case.case_id not in prepared and case.case_id not in faults
    ]
    for case_id, result in _with_progress(
        _as_they_get_ready(missing, settings, cache_dir, n_workers), len(missing)
    ):
        if isinstance(result, DataError):
            faults[case_id] = result
        else:
            prepared[case_id] = result
    if faults:
        raise DataError.gather([faults[case.case_id] for case in cases if case.case_id in faults])
    _say_notes(list(prepared.values()))
    return [prepared[case.case_id] for case in cases]


def require_lesions(cases: Sequence[PreparedCase]) -> None:
    """Refuse cases to train on of which none holds a lesion.

    Raises:
        DataError: No voxel of any class in any case.
    """
    if not any(sum(case.n_lesions) for case in cases):
        raise DataError(
            "training set",
            f"no lesion in any of {len(cases)} cases",
            "expected a label that is not empty",
        )


def common_spacing(cases: Sequence[Case]) -> tuple[float, float, float]:
    """The voxel size of most cases, along R, A, S in mm, from the headers of their first modality.

    Sizes that agree to 0.01 mm count as one; among equally frequent ones the first seen is taken.

    Raises:
        DataError: A header cannot be read.
    """
    found = _spacings(cases)
    groups = Counter(tuple(np.round(spacing, 2)) for spacing in found)
    most = groups.most_common(1)[0][0]
    x, y, z = next(
        np.round(spacing, 4).tolist() for spacing in found if tuple(np.round(spacing, 2)) == most
    )
    return (x, y, z)


def median_spacing(cases: Sequence[Case]) -> tuple[float, float, float]:
    """The median voxel size along each of R, A, S in mm, from the headers of the cases' first modality.

    Raises:
        DataError: A header cannot be read.
    """
    x, y, z = np.round(np.median(_spacings(cases), axis=0), 4).tolist()
    return (x, y, z)


def _spacings(cases: Sequence[Case]) -> list[tuple[float, float, float]]:
    """Along R, A, S of each case; the faults of all cases in one error."""
    found, faults = [], []
    for case in cases:
        try:
            found.append(spacing_of(ras_grid(*read_grid(next(iter(case.images.values()))))[1]))
        except DataError as fault:
            faults.append(fault)
    if faults or not found:
        raise DataError.gather(faults or [DataError("data", "no case", "expected at least one")])
    return found


def _preprocess(case: Case, settings: Preprocessing) -> PreparedCase:
    _sources(case, settings)
    notes: list[str] = []
    reference = _reference(case, settings)
    brain = None if case.brain_mask is None else read_brain(case.brain_mask, reference, notes)
    channels = [
        read_channel(
            case.images[name],
            name,
            reference,
            brain,
            settings.normalization,
            notes,
            limits=settings.limits,
        )
        for name in settings.modalities
    ]
    foreground = _union(channels, reference.shape) if brain is None else brain
    targets = _targets(case, settings, reference, notes)
    box = _crop(case, settings, reference, foreground, targets)
    inside = np.ascontiguousarray(foreground[box])
    del foreground
    scales = np.array([channel.scale for channel in channels], dtype=np.float32)
    image = np.empty((len(channels), *inside.shape), dtype=np.int16)
    for plane in image[::-1]:
        np.multiply(channels.pop().within(box), inside, out=plane)
    foreground_voxels = _flat_indices(inside)
    if any((target[:, *box].any(axis=0) & ~inside).any() for target in targets):
        notes.append("lesion voxels outside the brain (kept)")
    if any(np.count_nonzero(target[:, *box]) < np.count_nonzero(target) for target in targets):
        notes.append("lesion voxels beyond the box around data.crop_values (cut off)")
    start, shape = (box[0].start, box[1].start, box[2].start), inside.shape
    targets = [np.ascontiguousarray(target[:, *box]) for target in targets]
    del inside
    arrays: dict[str, Any] = {}
    n_lesions: list[tuple[int, ...]] = []
    for rater, target in enumerate(targets or [None]):
        lesions, counts = lesion_arrays(target)
        arrays |= {rater_array(name, rater): array for name, array in lesions.items()}
        n_lesions.append(counts)
    return PreparedCase(
        case_id=case.case_id,
        subject_id=case.subject_id,
        geometry=Geometry(
            reference.input_shape,
            reference.input_affine,
            reference.shape,
            reference.affine,
            start,
            shape,
        ),
        image_scale=scales,
        n_lesions=n_lesions[0],
        notes=tuple(dict.fromkeys(notes)),
        rater_lesions=tuple(n_lesions[1:]),
        arrays={"image": image, "foreground_voxels": foreground_voxels, **arrays},
    )


def _flat_indices(mask: Bools) -> NDArray[np.int32]:
    """Linear indices (C order) of the true voxels of (X, Y, Z), made slab by slab."""
    found = [
        np.flatnonzero(slab).astype(np.int32) + np.int32(i * slab.size)
        for i, slab in enumerate(mask)
    ]
    return np.concatenate(found)


def _targets(
    case: Case, settings: Preprocessing, reference: Reference, notes: list[str]
) -> list[Bools]:
    """The target (K, X, Y, Z) on the network's grid, then those of each rater where one is to be drawn; or none."""
    files = _label_files(case, settings.rater)
    if settings.rater == "majority" and files:
        return [
            majority(files, reference, settings.classes, notes, other_values=settings.crop_values)
        ]
    return [
        read_target(file, reference, settings.classes, notes, other_values=settings.crop_values)
        for file in files
    ]


def _label_files(case: Case, rater: int | str | None) -> tuple[Path, ...]:
    """The labels that a target is made of; none of a case without label."""
    if case.label is None or rater is None:
        return case.labels[:1]
    if rater == "consensus" and (case.consensus or len(case.labels) == 1):
        return case.labels[:1]
    if rater == "majority" and case.raters:
        return case.raters
    if rater == "random" and case.raters:
        return (case.label, *case.raters)
    if isinstance(rater, int) and rater <= len(case.raters):
        return (case.raters[rater - 1],)
    raise DataError(
        "data.rater",
        f"{rater}, but case {case.case_id} has labels of {len(case.raters)} single raters and {('a' if case.consensus else 'no')} consensus",
        "expected one that every case has, or null for the first label",
    )


def _crop(
    case: Case,
    settings: Preprocessing,
    reference: Reference,
    foreground: Bools,
    targets: Sequence[Bools],
) -> Box:
    if settings.crop_values and case.label is not None:
        return box_around(case.label, reference, settings.crop_values, margin=settings.crop_margin)
    return bounding_box(
        foreground | np.logical_or.reduce([target.any(axis=0) for target in targets], axis=0)
    )


def _reference(case: Case, settings: Preprocessing) -> Reference:
    first = settings.modalities[0]
    input_shape, input_affine = read_grid(case.images[first])
    shape, affine = network_grid(input_shape, input_affine, spacing_mm=settings.spacing_mm)
    if math.prod(shape) > MAX_VOXELS:
        raise DataError(
            "data.spacing_mm",
            f"{settings.spacing_mm} makes {shape} voxels of {case.images[first]}",
            f"expected at most {MAX_VOXELS}",
        )
    return Reference(first, input_shape, input_affine, shape, affine)


def _union(channels: Sequence[Channel], shape: Shape) -> Bools:
    """What is foreground in any channel."""
    foreground = np.zeros(shape, dtype=bool)
    for channel in channels:
        foreground[channel.box] |= channel.foreground
    return foreground


def _sources(case: Case, settings: Preprocessing) -> list[Path]:
    missing = [name for name in settings.modalities if name not in case.images]
    if missing:
        raise DataError(
            case.case_id,
            f"has no {', '.join(missing)}",
            f"expected {', '.join(settings.modalities)}",
        )
    labels = dict.fromkeys((*case.labels[:1], *_label_files(case, settings.rater)))
    optional = [path for path in (*labels, case.brain_mask) if path is not None]
    return [*(case.images[name] for name in settings.modalities), *optional]


def _entry(case: Case, settings: Preprocessing, cache_dir: Path) -> Path:
    check_case_id(case.case_id)
    key = fingerprint({"format": FORMAT_VERSION, **settings.as_dict()}, _sources(case, settings))
    return Path(cache_dir).absolute() / f"{case.case_id}-{key}"


def _cached(entry: Path, case: Case) -> PreparedCase | None:
    facts = read_entry(entry)
    if facts is None:
        return None
    return PreparedCase(
        case_id=case.case_id,
        subject_id=case.subject_id,
        geometry=Geometry.from_dict(facts["geometry"]),
        image_scale=np.array(facts["image_scale"], dtype=np.float32),
        n_lesions=tuple(facts["n_lesions"]),
        notes=tuple(facts["notes"]),
        rater_lesions=tuple(map(tuple, facts["rater_lesions"])),
        folder=entry,
    )


def _prepare(case: Case, settings: Preprocessing, cache_dir: Path) -> PreparedCase:
    entry = _entry(case, settings, cache_dir)
    prepared = _cached(entry, case)
    if prepared is None:
        built = _preprocess(case, settings)
        facts = {
            "geometry": built.geometry.as_dict(),
            "image_scale": built.image_scale.tolist(),
            "n_lesions": built.n_lesions,
            "notes": built.notes,
            "rater_lesions": built.rater_lesions,
        }
        write_entry(entry, built.arrays, facts)
        forget_opened()
        prepared = _cached(entry, case)
    if prepared is None:
        raise DataError(
            entry, "changed while it was written", "expected no other program to write to the cache"
        )
    return prepared


def _prepared_or_fault(
    case: Case, settings: Preprocessing, cache_dir: Path
) -> PreparedCase | DataError:
    """As `_prepare`, with a fault of the data as a value, so that one case does not stop the others."""
    try:
        return _prepare(case, settings, cache_dir)
    except DataError as fault:
        return fault
    except Exception as error:
        error.add_note(f"while preprocessing case {case.case_id}")
        raise


def _as_they_get_ready(
    cases: Sequence[Case], settings: Preprocessing, cache_dir: Path, n_workers: int | None
) -> Iterator[tuple[str, PreparedCase | DataError]]:
    """Case id and prepared case or fault; in other processes if told to, or if that saves more than their start."""
    start = time.monotonic()
    for n_done, case in enumerate(cases):
        left = len(cases) - n_done
        seconds_left = (time.monotonic() - start) / max(n_done, 1) * left
        if left > 1 and (
            (n_workers or 1) > 1 or (n_workers is None and seconds_left > SECONDS_WORTH_WORKERS)
        ):
            yield from _in_workers(
                cases[n_done:], settings, cache_dir, min(n_workers or min(_n_cores(), 8), left)
            )
            return
        yield case.case_id, _prepared_or_fault(case, settings, cache_dir)


def _in_workers(
    cases: Sequence[Case], settings: Preprocessing, cache_dir: Path, n_workers: int
) -> Iterator[tuple[str, PreparedCase | DataError]]:
    forkserver = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forkserver else "spawn")
    if (
        forkserver
    ):  # import once what every worker needs, also for the script that it finds itself in
        context.set_forkserver_preload(
            [name for name in ("torch", __name__) if name in sys.modules]
        )
    pool = ProcessPoolExecutor(n_workers, mp_context=context, initializer=return_memory)
    try:
        pending = {
            pool.submit(_prepared_or_fault, case, settings, cache_dir): case.case_id
            for case in cases
        }
        for future in as_completed(pending):
            yield pending[future], future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "preprocessing",
            "a worker process died, out of memory or because the script starts work outside `if __name__ == '__main__':`",
            "try n_workers=1",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def return_memory() -> None:
    """Have glibc give freed arrays back at once, which else keeps up to 32 MB of each: for processes that only prepare.

    Without glibc nothing happens.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20)


def _with_progress(
    results: Iterator[tuple[str, PreparedCase | DataError]], n_cases: int
) -> Iterator[tuple[str, PreparedCase | DataError]]:
    if n_cases:
        with Reporter("preprocessing", total=n_cases) as reporter:
            for case_id, result in results:
                reporter.advance(case_id)
                yield case_id, result


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _say_notes(cases: Sequence[PreparedCase]) -> None:
    """One warning for each oddity, with the cases that have it."""
    found: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        for note in case.notes:
            found[note].append(case.case_id)
    for note, ids in found.items():
        logger.warning(
            "%s in %d of %d cases: %s%s",
            note,
            len(ids),
            len(cases),
            ", ".join(ids[:5]),
            ", …" * (len(ids) > 5),
        )


@cache
def _say_once(note: str) -> None:
    logger.warning("%s", note)
