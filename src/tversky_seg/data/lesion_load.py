"""The lesion load of each case, for stratified folds; counted once per label file."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tversky_seg.data.cache import fingerprint
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import read_label
from tversky_seg.runtime.files import read_json, write_json
from tversky_seg.runtime.progress import Reporter

logger = logging.getLogger("tversky_seg")

FORMAT_VERSION = 2  # of the store: raise it when the same label file gives other volumes

VolumesByValue = dict[str, float]
"""Label value, as text for JSON -> volume in mm3."""


def lesion_loads(
    cases: Sequence[Case], classes: Mapping[str, Sequence[int]], *, cache_dir: Path
) -> dict[str, float]:
    """Measure the volume in mm3 of the class that is smallest in the cohort, per labelled case.

    The volumes are kept in `cache_dir/label_volumes*.json`, by path, size and time of the label
    file. A file that cannot be read counts as 0 here: preprocessing names its fault.

    Args:
        cases: The cohort; cases without label are skipped.
        classes: Class name -> label values.
        cache_dir: Folder of the store.

    Returns:
        Case id -> volume in mm3.
    """
    volumes_by_case = count_volumes(cases, cache_dir=cache_dir)
    # Of nested classes, as liver and tumour, the smallest is the target.
    loads = [_loads_of_class(values, volumes_by_case) for values in classes.values()]
    return min(loads, key=_total_or_infinity)


def count_volumes(
    cases: Sequence[Case], *, cache_dir: Path, part: str = ""
) -> dict[str, VolumesByValue]:
    """Count or look up the volume of each label value, per labelled case.

    Args:
        cases: Cases; those without label are skipped.
        cache_dir: Folder of the stores.
        part: Name of the part of the cohort, for a store of its own, so that jobs which count at
            the same time keep what each other counted.
    """
    store = Path(cache_dir) / f"label_volumes{part and '-'}{part}.json"
    volumes_by_file = _read_stores(store.parent)
    n_stored = len(volumes_by_file)
    volumes_by_case: dict[str, VolumesByValue] = {}
    label_of: dict[str, Path] = {}
    for case in cases:
        if case.label is not None:
            label_of[case.case_id] = case.label
    with Reporter("lesion loads", total=len(label_of)) as reporter:
        for case_id, label in label_of.items():
            volumes_by_case[case_id] = _volumes_of(label, volumes_by_file)
            reporter.advance(case_id)
    # A cache on a read-only disk serves as long as it is complete.
    if len(volumes_by_file) > n_stored:
        _write_store(store, volumes_by_file)
    return volumes_by_case


def _loads_of_class(
    values: Sequence[int], volumes_by_case: Mapping[str, VolumesByValue]
) -> dict[str, float]:
    loads = {}
    for case_id, volumes in volumes_by_case.items():
        loads[case_id] = sum(volumes.get(str(value), 0.0) for value in values)
    return loads


def _total_or_infinity(loads: Mapping[str, float]) -> float:
    """Add up loads; a class that no case has is never the smallest."""
    return math.fsum(loads.values()) or math.inf


def _volumes_of(label: Path, volumes_by_file: dict[str, VolumesByValue]) -> VolumesByValue:
    """Look the volumes of a label file up, or count and keep them."""
    try:
        key = fingerprint({"format": FORMAT_VERSION}, [label])
        if key not in volumes_by_file:
            volumes_by_file[key] = _count(label)
    except DataError:
        return {}
    return volumes_by_file[key]


def _count(label: Path) -> VolumesByValue:
    volume = read_label(label)
    foreground = volume.data[volume.data != 0]
    values, counts = np.unique(foreground, return_counts=True)
    voxel_mm3 = math.prod(volume.spacing_mm)
    volumes = {}
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        volumes[str(value)] = round(count * voxel_mm3, 3)
    return volumes


def _read_stores(folder: Path) -> dict[str, VolumesByValue]:
    """Join what all jobs have counted."""
    volumes_by_file: dict[str, VolumesByValue] = {}
    for store in sorted(folder.glob("label_volumes*.json")):
        volumes_by_file |= _read_store(store)
    return volumes_by_file


def _read_store(store: Path) -> dict[str, VolumesByValue]:
    try:
        content = read_json(store)
    except (OSError, ValueError):  # absent or damaged: everything is counted again
        return {}
    return content if isinstance(content, dict) else {}


def _write_store(store: Path, volumes_by_file: Mapping[str, VolumesByValue]) -> None:
    """Write the store; of two runs at once the last one's stays, and the rest is counted again.

    A store that cannot be written costs the next run the count, no more.
    """
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        write_json(store, volumes_by_file)
    except OSError as error:
        logger.warning("%s: cannot be written (%s); counted again next time", store, error.strerror)
