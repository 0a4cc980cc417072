"""The open multiple sclerosis data of Ljubljana (Lesjak et al. 2018, doi 10.1007/s12021-017-9348-7), as on GitHub."""

from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError

# Names of files in each part: all before the ending, or up to an underscore.
PARTS = {
    "MNI": {"FLAIR": "FLAIR", "T1": "T1", "T2": "T2", "T1POST": "T1POST", "label": "GOLD_STANDARD"},
}
PARTS |= {part: {"FLAIR": "FLAIR", "T1": "T1W", "T2": "T2W", "T1POST": "T1WKS", "label": "consensus_gt"}
          for part in ("coregistered", "coregistered_resampled")}  # fmt: skip
MODALITIES = ("FLAIR", "T1", "T2", "T1POST")


def find_lesjak2017(root: Path, *, part: str = "MNI") -> list[Case]:
    """List the cases of a clone of open_ms_data; patients of whom only the mask is there come without images.

    Args:
        root: The clone, or its folder `cross_sectional`.
        part: "MNI" (1 mm, skull-stripped), "coregistered" (as scanned, on the FLAIR grid, with a brain mask) or
            "coregistered_resampled" (that, resampled).

    Raises:
        DataError: The folder does not look like this data set, or has no such part.
    """
    if part not in PARTS:
        raise DataError("data.importer.part", f"{part!r}", f"expected one of {', '.join(PARTS)}")
    root = Path(root)
    names = PARTS[part]
    folder = root / "cross_sectional" / part if (root / "cross_sectional").is_dir() else root / part
    cases = []
    for patient in sorted(folder.glob("patient[0-9][0-9]")):
        label = _nifti(patient, names["label"])
        found = {name: _nifti(patient, names[name]) for name in MODALITIES}
        images = {name: file for name, file in found.items() if file}
        if images or label:
            cases.append(
                Case(
                    case_id=patient.name,
                    subject_id=patient.name,
                    images=images,
                    labels=(label,) if label else (),
                    brain_mask=_nifti(patient, "brainmask"),
                )
            )
    if not cases:
        raise DataError(
            root,
            "does not look like open_ms_data (Lesjak 2017)",
            f"expected cross_sectional/{part}/patient01/{names['label']}*.nii.gz",
        )
    return cases


def _nifti(patient: Path, name: str) -> Path | None:
    """`name.nii.gz`, `name_….nii.gz` or, as for some patients, `patient01_name.nii.gz`."""
    patterns = (f"{name}.nii*", f"{patient.name}_{name}.nii*", f"{name}_*.nii*")
    return next((file for pattern in patterns for file in sorted(patient.glob(pattern))), None)
