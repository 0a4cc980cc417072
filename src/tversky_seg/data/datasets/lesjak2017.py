"""The open multiple sclerosis data of Ljubljana (Lesjak et al. 2018), as on GitHub.

doi 10.1007/s12021-017-9348-7
"""

from __future__ import annotations

from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.datasets._common import log_left_out, unlike
from tversky_seg.data.errors import DataError

NATIVE_NAMES = {
    "FLAIR": "FLAIR",
    "T1": "T1W",
    "T2": "T2W",
    "T1POST": "T1WKS",
    "label": "consensus_gt",
}
PARTS = {
    "MNI": {
        "FLAIR": "FLAIR",
        "T1": "T1",
        "T2": "T2",
        "T1POST": "T1POST",
        "label": "GOLD_STANDARD",
    },
    "coregistered": NATIVE_NAMES,
    "coregistered_resampled": NATIVE_NAMES,
}
"""Names of the files in each part: the whole stem, or its beginning up to an underscore."""

MODALITIES = ("FLAIR", "T1", "T2", "T1POST")
LEFT_OUT = {
    "*longitudinal/*": "two time points; data=lesjak2016 reads them",
    "*": "other versions of the images and masks; data.importer.part chooses one",
}


def find_lesjak2017(root: Path, *, part: str = "MNI") -> list[Case]:
    """List the cases of a clone of open_ms_data.

    Patients of whom only the mask is published come without images.

    Args:
        root: The clone, or its folder `cross_sectional`.
        part: "MNI" (1 mm, skull-stripped), "coregistered" (as scanned, on the FLAIR grid, with a
            brain mask) or "coregistered_resampled" (the same, resampled).

    Raises:
        DataError: The folder does not look like this data set, or has no such part.
    """
    if part not in PARTS:
        raise DataError("data.importer.part", repr(part), f"expected one of {', '.join(PARTS)}")
    names = PARTS[part]
    parts_folder = Path(root)
    if (parts_folder / "cross_sectional").is_dir():
        parts_folder = parts_folder / "cross_sectional"
    cases = []
    for patient in sorted((parts_folder / part).glob("patient[0-9][0-9]")):
        case = _case(patient, names)
        # A folder with neither is no patient.
        if case.images or case.labels:
            cases.append(case)
    if not cases:
        expected = f"cross_sectional/{part}/patient01/{names['label']}*.nii.gz"
        raise unlike(Path(root), "open_ms_data (Lesjak 2017)", expected)
    log_left_out(Path(root), cases, LEFT_OUT)
    return cases


def _case(patient: Path, names: dict[str, str]) -> Case:
    images = {}
    for modality in MODALITIES:
        file = _find(patient, names[modality])
        if file:
            images[modality] = file
    label = _find(patient, names["label"])
    return Case(
        case_id=patient.name,
        subject_id=patient.name,
        images=images,
        labels=(label,) if label else (),
        brain_mask=_find(patient, "brainmask"),
    )


def _find(patient: Path, name: str) -> Path | None:
    """Find `name.nii.gz`, `patient01_name.nii.gz` (some patients) or `name_….nii.gz`."""
    for pattern in (f"{name}.nii*", f"{patient.name}_{name}.nii*", f"{name}_*.nii*"):
        files = sorted(patient.glob(pattern))
        if files:
            return files[0]
    return None
