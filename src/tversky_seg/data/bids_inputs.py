"""A BIDS folder as input of a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import image_stem, is_nifti, is_other_image, other_format
from tversky_seg.data.unused_images import log_images_outside_anat

BIDS_SUFFIXES = {
    "FLAIR": ("FLAIR",),
    "T1": ("T1w",),
    "T2": ("T2w",),
    "PD": ("PDw", "PD"),
    "DP": ("PDw", "PD"),
}
CONTRASTED = ("GADO", "GD", "T1GD", "T1_GD", "T1GADO", "T1C", "T1CE")
"""Names of a T1 after contrast agent: in BIDS a T1w with the entity ce-<agent>."""


def is_bids(folder: Path) -> bool:
    """Tell whether a folder holds subjects as BIDS names them."""
    return folder.is_dir() and bool(_anatomy_folders(folder))


def cases_in_bids(folder: Path, modalities: Sequence[str]) -> list[Case]:
    """List a case for each session that has at least one of the modalities.

    Args:
        folder: `sub-*/[ses-*/]anat/*_<suffix>.nii[.gz]`.
        modalities: Names of the network's channels; `BIDS_SUFFIXES` gives the suffix of those that
            BIDS names otherwise.

    Raises:
        DataError: A session has two files of one modality, or no session has any.
    """
    log_images_outside_anat(folder)
    cases = []
    for anatomy in _anatomy_folders(folder):
        case = _case_of_session(folder, anatomy, modalities)
        if case.images:
            cases.append(case)
    if not cases:
        patterns: list[str] = []
        for name in modalities:
            suffix, *_ = _suffixes(name)
            patterns.append(f"*_{suffix}.nii.gz")
        fault = f"BIDS subjects without any of {', '.join(modalities)}"
        raise DataError(folder, fault, f"expected anat/{', '.join(patterns)}")
    return cases


def _anatomy_folders(folder: Path) -> list[Path]:
    paths = [*folder.glob("sub-*/anat"), *folder.glob("sub-*/ses-*/anat")]
    return sorted(path for path in paths if path.is_dir())


def _case_of_session(folder: Path, anatomy: Path, modalities: Sequence[str]) -> Case:
    # sub-01/anat, or sub-01/ses-2/anat
    subject, *session = anatomy.relative_to(folder).parts[:-1]
    images = {}
    for name in modalities:
        file = _file_of_modality(anatomy, name)
        if file is not None:
            images[name] = file
    # Of several masks, none is the obvious one.
    brain_masks = sorted(anatomy.glob("*_desc-brain_mask.nii*"))
    return Case(
        case_id="_".join([subject, *session]),
        subject_id=subject,
        images=images,
        brain_mask=brain_masks[0] if len(brain_masks) == 1 else None,
        session=session[0].removeprefix("ses-") if session else None,
    )


def _file_of_modality(anatomy: Path, modality: str) -> Path | None:
    """Return the one file of a modality, or None."""
    endings = tuple(f"_{suffix}" for suffix in _suffixes(modality))
    is_contrasted = _is_contrasted(modality)
    files = []
    others = []  # in other formats
    for path in sorted(anatomy.iterdir()):
        if image_stem(path).endswith(endings) and ("_ce-" in path.name) == is_contrasted:
            if is_nifti(path):
                files.append(path)
            elif is_other_image(path):
                others.append(path)
    if others and not files:
        raise other_format(others[0])
    if len(files) > 1:
        names = ", ".join(path.name for path in files[:3])
        fault = f"{len(files)} files of {modality} ({names})"
        raise DataError(anatomy, fault, "list the right one in a manifest CSV")
    return files[0] if files else None


def _suffixes(modality: str) -> tuple[str, ...]:
    if _is_contrasted(modality):
        return ("T1w",)
    # "T1w" is a modality name too, and means the same as "T1".
    return BIDS_SUFFIXES.get(modality.upper().removesuffix("W"), (modality,))


def _is_contrasted(modality: str) -> bool:
    return modality.upper() in CONTRASTED
