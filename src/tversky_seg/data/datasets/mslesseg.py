"""MSLesSeg (Guarnera et al. 2025): multiple sclerosis, 75 patients, 115 scans.

doi 10.1038/s41597-025-05250-y. Names, grid and split are those of the archive on Figshare
(article 27919209): every image is in MNI space at 1 mm and skull-stripped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.datasets._common import (
    find_images,
    find_nifti_each,
    folders_below,
    log_left_out,
    unlike,
    with_baselines,
)

MODALITIES = ("FLAIR", "T1", "T2")
SPLITS = ("train", "test")
MAX_DEPTH = 2  # folders between the root and `train`
LEFT_OUT = {
    "*MSLesSeg_RAW/*": "raw scans, each on its own grid and without a mask",
}


def find_mslesseg(root: Path) -> list[Case]:
    """List the scans of an official download.

    A patient of the training set has one to four examinations, called T1 to T4: they are sessions
    of one subject, and each names the one before it as its baseline. `P14_T2_T1.nii.gz` is the
    T1-weighted image of the second. A patient of the test set has one, whose files lie in the
    patient's folder. The label is the consensus that the data set publishes; those of single
    raters are not published.

    Left out: the raw scans (`MSLesSeg_RAW`), which have no masks, and `clinical_data.csv`.

    Args:
        root: Folder with `train/P1/T1/P1_T1_FLAIR.nii.gz` and `test/P54/P54_FLAIR.nii.gz`, or
            with one of both, at most two folders deep.

    Returns:
        Cases with the official split if both of its parts are present.

    Raises:
        DataError: The folder does not look like this data set.
    """
    root = Path(root)
    # With one part alone, folds are drawn.
    is_whole = all(folders_below(root, split, max_depth=MAX_DEPTH) for split in SPLITS)
    cases: list[Case] = []
    for split in SPLITS:
        for patient in _patients(root, split):
            cases += _cases(patient, split if is_whole else None)
    if not cases:
        raise unlike(root, "MSLesSeg", "train/P1/T1/P1_T1_FLAIR.nii.gz")
    log_left_out(root, cases, LEFT_OUT)
    return with_baselines(cases)


def _patients(root: Path, split: str) -> list[Path]:
    parts = folders_below(root, split, max_depth=MAX_DEPTH)
    if root.absolute().name == split:
        parts.append(root)
    patients: list[Path] = []
    for part in parts:
        patients += part.glob("P[0-9]*/")
    # P2 before P10.
    return sorted(patients, key=lambda patient: (len(patient.name), patient.name))


def _cases(patient: Path, split: str | None) -> Iterator[Case]:
    for folder in (patient, *sorted(patient.glob("T[0-9]/"))):
        session = None if folder == patient else folder.name
        case_id = f"{patient.name}_{session}" if session else patient.name
        images = find_images(folder, {name: [f"{case_id}_{name}"] for name in MODALITIES})
        labels = find_nifti_each(folder, [f"{case_id}_MASK"])
        if images or labels:
            yield Case(
                case_id=case_id,
                subject_id=patient.name,
                images=images,
                labels=labels,
                session=session,
                split=split,
            )
