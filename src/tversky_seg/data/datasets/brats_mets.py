"""BraTS-METS 2023 to 2025 (Moawad et al. 2023): brain metastases.

arXiv 2306.00838. Names are those of the archives on Synapse; label values those of that paper, and
4 for the resection cavity since 2025.
"""

from __future__ import annotations

import re
from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.datasets._common import (
    find_images,
    find_nifti_each,
    folders_below,
    log_left_out,
    unlike,
)

MODALITIES = {"T1C": "t1c", "T1": "t1n", "T2": "t2w", "FLAIR": "t2f"}
MAX_DEPTH = 3  # folders between the root and that of a case
SAME_IMAGES = {"BraTS-MET-00507": "BraTS-MET-00418", "BraTS-MET-00019": "BraTS-MET-00007"}
"""Numbers under which an audit of the 2025 release found the same images: one subject here."""

LEFT_OUT = {"*-seg.*": "labels of cases without any image"}
_UNLABELLED = re.compile(r"(?<![a-z])(valid|test)", re.IGNORECASE)
_CASE = re.compile(r"(BraTS-MET-\d+)-(\d+)")


def find_brats_mets(root: Path) -> list[Case]:
    """List the examinations of an official download.

    `BraTS-MET-00001-000` is the first examination of a subject; later ones are sessions. Label
    values: 1 non-enhancing tumour core, 2 surrounding FLAIR hyperintensity, 3 enhancing tumour,
    4 resection cavity (2025 only). The challenge evaluates regions, which are nested: whole tumour
    WT [1, 2, 3], tumour core TC [1, 3], enhancing tumour ET [3].

    Cases of a folder called Validation or Testing have no labels: they are predicted only.

    Left out: nothing but labels without images. Some examinations lack T2.

    Args:
        root: Folder with `BraTS-MET-00001-000/BraTS-MET-00001-000-t1c.nii.gz`, at most three
            folders deep, as in `MICCAI-BraTS2024-MET-Challenge-Training_1`.

    Raises:
        DataError: The folder does not look like this data set.
    """
    root = Path(root)
    cases: dict[str, Case] = {}
    for folder in folders_below(root, "BraTS-MET-*", max_depth=MAX_DEPTH):
        match = _CASE.fullmatch(folder.name)
        if match:
            # Of copies, such as a set of corrected labels, the one nearest to the root stays.
            cases.setdefault(folder.name, _case(folder, *match.groups()))
    with_images = [case for case in cases.values() if case.images]
    if not with_images:
        expected = "BraTS-MET-00001-000/BraTS-MET-00001-000-t1c.nii.gz"
        raise unlike(root, "BraTS-METS", expected)
    log_left_out(root, with_images, LEFT_OUT)
    return with_images


def _case(folder: Path, subject: str, session: str) -> Case:
    stems = {name: [f"{folder.name}-{word}"] for name, word in MODALITIES.items()}
    labels = find_nifti_each(folder, [f"{folder.name}-seg"])
    is_unlabelled = _UNLABELLED.search(folder.absolute().parent.name) and not labels
    return Case(
        case_id=folder.name,
        subject_id=SAME_IMAGES.get(subject, subject),
        images=find_images(folder, stems),
        labels=labels,
        session=session,
        split="test" if is_unlabelled else None,
    )
