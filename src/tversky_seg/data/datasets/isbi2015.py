"""ISBI 2015, longitudinal multiple sclerosis (Carass et al. 2017, doi 10.1016/j.neuroimage.2016.12.064)."""

import re
from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.datasets._common import ENDINGS, nifti
from tversky_seg.data.errors import DataError

MODALITIES = {"FLAIR": "flair", "T1": "mprage", "T2": "t2", "PD": "pd"}
N_RATERS = 2
_SCAN = re.compile(r"((?:training|test)\d\d)_(\d\d)_[a-z0-9]+_pp")


def find_isbi2015(root: Path) -> list[Case]:
    """List the preprocessed scans of an official download: time points as sessions, both raters.

    `training/training01/{preprocessed,masks}` and `testdata_website/test01/preprocessed`, either alone or beside each
    other, at any depth of at most four folders. There is no consensus: `label` is the first rater's. The scans of the
    14 test subjects have no labels: they are predicted, not judged.

    Args:
        root: The folder with `training` and, if downloaded, `testdata_website`.

    Raises:
        DataError: The folder does not look like this data set.
    """
    cases: dict[str, Case] = {}
    for folder in _subjects(Path(root)):
        names = {
            found[0] for file in sorted(folder.glob("preprocessed/*")) if (found := _scan_of(file))
        }
        for case_id in sorted(names):
            images = {
                m: nifti(folder / "preprocessed", f"{case_id}_{name}_pp")
                for m, name in MODALITIES.items()
            }
            masks = (
                nifti(folder / "masks", f"{case_id}_mask{rater}")
                for rater in range(1, N_RATERS + 1)
            )
            subject, session = case_id.split("_")
            cases.setdefault(
                case_id,
                Case(
                    case_id=case_id,
                    subject_id=subject,
                    images={m: file for m, file in images.items() if file},
                    labels=tuple(file for file in masks if file),
                    session=session,
                    split="test" if subject.startswith("test") else None,
                ),
            )
    if not cases:
        raise DataError(
            root,
            "does not look like ISBI 2015",
            "expected training/training01/preprocessed/training01_01_flair_pp.nii or testdata_website/test01/preprocessed/test01_01_flair_pp.nii",
        )
    return list(cases.values())


def _subjects(root: Path) -> list[Path]:
    """Folders `trainingNN` and `testNN`, those nearest to the root first."""
    patterns = [
        "*/" * depth + kind
        for depth in range(4)
        for kind in ("training[0-9][0-9]", "test[0-9][0-9]")
    ]
    return [folder for pattern in patterns for folder in sorted(root.glob(pattern))]


def _scan_of(file: Path) -> tuple[str] | None:
    """`training01_02` of `training01_02_flair_pp.nii`, or None for another file."""
    if not file.name.endswith(ENDINGS):
        return None
    found = _SCAN.match(file.name)
    return (f"{found[1]}_{found[2]}",) if found else None
