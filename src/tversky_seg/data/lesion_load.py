"""How much lesion a case holds, so that folds can be drawn alike; counted once per label file and kept."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import numpy as np

from tversky_seg.data.cache import fingerprint
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import read_label, spacing_of
from tversky_seg.runtime.progress import Reporter

FORMAT_VERSION = 1


def lesion_loads(
    cases: Sequence[Case], classes: Mapping[str, Sequence[int]], *, cache_dir: Path
) -> dict[str, float]:
    """Case id -> volume in mm3 of the class that is smallest in the cohort, of cases with a label.

    What was counted is kept in `cache_dir/label_volumes.json`, by path, size and time of the label file. A file that
    cannot be read counts as 0 here: preprocessing names its fault.
    """
    store = Path(cache_dir) / "label_volumes.json"
    known = _read(store)
    volumes: dict[str, dict[str, float]] = {}
    labelled = [(case, case.label) for case in cases if case.label is not None]
    with Reporter("lesion loads", total=len(labelled)) as reporter:
        for case, label in labelled:
            volumes[case.case_id] = _volumes(label, known)
            reporter.advance(case.case_id)
    _write(store, known)
    loads = {
        name: {
            case_id: sum(found.get(str(value), 0.0) for value in values)
            for case_id, found in volumes.items()
        }
        for name, values in classes.items()
    }
    return min(loads.values(), key=lambda load: math.fsum(load.values()) or math.inf)


def _volumes(label: Path, known: dict[str, dict[str, float]]) -> dict[str, float]:
    """Label value -> mm3, from what is known or else the file."""
    try:
        key = fingerprint({"format": FORMAT_VERSION}, [label])
        if key not in known:
            volume = read_label(label)
            values, counts = np.unique(volume.data[volume.data != 0], return_counts=True)
            voxel_mm3 = math.prod(spacing_of(volume.affine))
            sizes = zip(values.tolist(), counts.tolist(), strict=True)
            known[key] = {str(value): round(count * voxel_mm3, 3) for value, count in sizes}
    except DataError:
        return {}
    return known[key]


def _read(store: Path) -> dict[str, dict[str, float]]:
    try:
        known = json.loads(store.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(store: Path, known: Mapping[str, Mapping[str, float]]) -> None:
    """Whole or not at all; of two runs at once the last is kept, and the other's counts are counted again."""
    partial = store.with_name(f".{store.name}.{uuid4().hex}")
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(known))
        partial.replace(store)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        fault = (
            f"{store.parent}: cannot be written ({error.strerror or error}); name another cache_dir"
        )
        raise DataError(fault) from error
