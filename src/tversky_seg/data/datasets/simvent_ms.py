"""Public subjects of Bashiri Bawil et al. 2025: multiple sclerosis, thick clinical slices.

arXiv 2506.07123. Names are those of the repository Mahdi-Bashiri/Sim-Vent-WMH-Seg, in its folder
`src/comparison/final_data_for_models/subjects`.
"""

from __future__ import annotations

import re
from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.datasets._common import (
    find_images,
    find_nifti,
    find_nifti_each,
    log_left_out,
    unlike,
)
from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import image_stem

LABELS = ("abWMHmask", "manual_4labels")
LEFT_OUT = {
    "*_nWMHmask.*": "normal rims of the ventricles, which are no lesions",
    "*_WMHmask.*": "lesions and normal rims in one mask",
    "*_VENTmask.*": "ventricles",
    "*_abWMHmask.*": "another label was asked for",
    "*_manual_4labels.*": "the same manual masks in one file; data.importer.label reads it",
    "*_FLAIR_brain.*": "the FLAIR image again, without the skull",
    "*_AXFLAIR_*": "the FLAIR image before it was scaled",
    "*_to_MNI.*": "images in MNI space, where no mask is",
    "*": "copies, and masks of other programs",
}
_FLAIR = re.compile(r"(\d+)_FLAIR")


def find_simvent_ms(root: Path, *, label: str = "abWMHmask") -> list[Case]:
    """List the subjects of a clone.

    Images are FLAIR and the T1 image on its grid, `T1_to_FLAIR`, whose voxels are stored in
    another order (flipped in y) and whose affine says so. The brain mask is that of FLAIR; some
    lesion voxels lie outside it, and are kept with a warning.

    Left out: normal rims, ventricles and both kinds of hyperintensities in one mask (`nWMHmask`,
    `VENTmask`, `WMHmask`), the FLAIR image without the skull, images in MNI space, and what other
    programs made.

    Args:
        root: The clone, or any folder with `104252_FLAIR.nii.gz` and the masks beside it.
        label: "abWMHmask" (lesions, 1) or "manual_4labels" (ventricles 16448, normal rims 49087,
            lesions 65535).

    Raises:
        DataError: The folder does not look like this data set, or the label is another.
    """
    if label not in LABELS:
        expected = f"expected one of {', '.join(LABELS)}"
        raise DataError("data.importer.label", repr(label), expected)
    root = Path(root)
    cases: dict[str, Case] = {}
    for flair in sorted(root.rglob("*_FLAIR.nii*")):
        match = _FLAIR.fullmatch(image_stem(flair))
        # The repository also has folders of inputs, one for each of the compared programs.
        if match and find_nifti(flair.parent, *[f"{match[1]}_{name}" for name in LABELS]):
            cases.setdefault(match[1], _case(flair.parent, match[1], label))
    if not cases:
        raise unlike(root, "Sim-Vent-WMH-Seg", "104252_FLAIR.nii.gz beside 104252_abWMHmask.nii.gz")
    log_left_out(root, list(cases.values()), LEFT_OUT)
    return list(cases.values())


def _case(folder: Path, name: str, label: str) -> Case:
    stems = {"FLAIR": [f"{name}_FLAIR"], "T1": [f"{name}_T1_to_FLAIR"]}
    return Case(
        case_id=name,
        subject_id=name,
        images=find_images(folder, stems),
        labels=find_nifti_each(folder, [f"{name}_{label}"]),
        brain_mask=find_nifti(folder, f"{name}_FLAIR_brain_mask"),
    )
