"""MSSEG 2016 (Commowick et al. 2018): multiple sclerosis, seven raters.

doi 10.1038/s41598-018-31911-7
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.datasets._common import (
    find_images,
    find_nifti,
    find_nifti_each,
    log_left_out,
    unlike,
)

SPLITS = {"Training": "train", "Testing": "test"}
RATERS = [f"ManualSegmentation_{rater}" for rater in range(1, 8)]
PREPARED = {
    "FLAIR": ["FLAIR_preprocessed"],
    "T1": ["T1_preprocessed"],
    "T2": ["T2_preprocessed"],
    "DP": ["DP_preprocessed", "PD_preprocessed"],
    "GADO": ["GADO_preprocessed"],
}
"""Stems of the prepared images; of several the first that exists is taken."""

RAW = {
    "FLAIR": ["FLAIR", "3DFLAIR"],
    "T1": ["T1", "3DT1"],
    "T2": ["T2"],
    "DP": ["DP", "PD"],
    "GADO": ["GADO", "3DT1GADO"],
}
"""Stems of the scanner's images."""

LEFT_OUT = {
    "*": "scanner's images of which there are prepared ones, and files under other names",
}

# Names of the challenge.
PATIENT = "[0-9][0-9][0-9][0-9][0-9]*"  # 01016SACH
PREPARED_FOLDER = "Pre-processed"
RAW_FOLDERS = "Unprocessed*"
MAX_DEPTH = 3  # folders from the root to that of a patient


def find_msseg2016(root: Path) -> list[Case]:
    """List the cases of an official download, of the challenge or of the later public release.

    Public release: `{Training,Testing}/Center_xx/<patient>/{Preprocessed_Data,Raw_Data,Masks}`.
    Challenge: its two archives unpacked side by side (`Unprocessed training dataset` has the
    masks), or `Pre-processed/<id>` and `ManualSegmentation/<id>`, or folders `<id>` of raw images
    and masks together. Prepared images are taken where there are any, else the raw ones. The
    proton density image is called DP.

    Args:
        root: Folder that holds `Training`, or the archives of the challenge, or one of these.

    Returns:
        Cases with the consensus as first label, the centre as site, and the official split if the
        test set is present.

    Raises:
        DataError: The folder does not look like this data set.
    """
    root = Path(root)
    cases = list(_public_release(root)) or list(_challenge_release(root))
    if not cases:
        raise unlike(
            root,
            "MSSEG 2016",
            "Training/Center_01/<patient>/Preprocessed_Data/FLAIR_preprocessed.nii.gz "
            "or Pre-processed/<id>/FLAIR_preprocessed.nii.gz",
        )
    log_left_out(root, cases, LEFT_OUT)
    return cases


def _public_release(root: Path) -> Iterator[Case]:
    has_test_set = (root / "Testing").is_dir()
    for part, split in sorted(SPLITS.items()):
        for patient in sorted(root.glob(f"{part}/Center_*/*")):
            # Prepared images are registered to FLAIR, on which the masks were drawn.
            images = find_images(patient / "Preprocessed_Data", PREPARED)
            images = images or find_images(patient / "Raw_Data", RAW)
            if not images:
                continue
            centre = patient.parent.name
            masks = patient / "Masks"
            # Each centre numbers its patients from 1, in both parts.
            case_id = f"{part}_{centre}_{patient.name}"
            yield Case(
                case_id=case_id,
                subject_id=case_id,
                images=images,
                labels=_labels([masks]),
                brain_mask=find_nifti(masks, "Brain_Mask"),
                site=centre.removeprefix("Center_"),
                split=split if has_test_set else None,
                consensus=find_nifti(masks, "Consensus") is not None,
            )


def _challenge_release(root: Path) -> Iterator[Case]:
    for name, folders in sorted(_challenge_patients(root).items()):
        prepared = [find_images(folder, PREPARED) for folder in folders]
        raw = [find_images(folder, RAW) for folder in folders]
        images = next(filter(None, prepared + raw), None)
        if images is None:
            continue
        labels = _labels(folders)
        brain_masks = [find_nifti(folder, "Mask_registered") for folder in folders]
        yield Case(
            case_id=name,
            subject_id=name,
            images=images,
            labels=labels,
            brain_mask=next(filter(None, brain_masks), None),
            site=name[:2],
            consensus=bool(labels) and labels[0].name.startswith("Consensus"),
        )


def _challenge_patients(root: Path) -> dict[str, list[Path]]:
    """Find the folders of each patient, those of prepared images first.

    Prepared images, raw images and masks of a patient may lie in folders of one name:
    `Pre-processed training dataset/TrainingDataset_MSSEG/01016SACH` has the prepared images, and
    `Unprocessed training dataset/TrainingDataset_MSSEG/01016SACH` the masks.
    """
    roots = [root]
    # The masks are in the other archive.
    if root.name.startswith(PREPARED_FOLDER):
        roots += sorted(root.parent.glob(RAW_FOLDERS))
    patients: dict[str, list[Path]] = {}
    for depth in range(MAX_DEPTH):
        for folder in roots:
            for patient in sorted(folder.glob("*/" * depth + PATIENT)):
                if patient.is_dir():
                    patients.setdefault(patient.name, []).append(patient)
    # A stable sort: otherwise those nearest to the root come first.
    for folders in patients.values():
        folders.sort(key=lambda folder: PREPARED_FOLDER not in str(folder))
    return patients


def _labels(folders: Sequence[Path]) -> tuple[Path, ...]:
    """List consensus and raters of the first folder that holds any."""
    for folder in folders:
        labels = find_nifti_each(folder, ["Consensus", *RATERS])
        if labels:
            return labels
    return ()
