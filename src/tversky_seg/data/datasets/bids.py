"""A data set in the Brain Imaging Data Structure (bids.neuroimaging.io) with lesion masks."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import image_stem, is_nifti
from tversky_seg.data.unused_images import log_images_outside_anat

MASK_SUFFIXES = ("mask", "roi", "dseg", "seg")
MASK_SUFFIXES_ALONE = ("roi", "msk")
"""Suffixes of lesion masks that no entity tells: of OpenNeuro's raw data and of ISLES 2022."""

OTHER_SUFFIXES = ("probseg", "defacemask", "xfm", "warp")
SPACE_ENTITIES = ("space", "res")  # which tell the grid of a derived image


@dataclass(frozen=True)
class Examination:
    """Files of one subject and session.

    Attributes:
        subject: Name as `sub-01`.
        session: Name as `ses-02`; "" without sessions.
    """

    subject: str
    session: str


Files = dict[Examination, list[Path]]


@dataclass(frozen=True)
class BidsName:
    """Name of a BIDS file: `sub-01_ses-02_ce-gad_T1w.nii.gz`.

    Attributes:
        entities: `{"sub": "01", "ses": "02", "ce": "gad"}`.
        suffix: "T1w".
    """

    entities: dict[str, str] = field(default_factory=dict)
    suffix: str = ""

    @classmethod
    def of(cls, file: Path) -> BidsName:
        """Take the name of a file apart."""
        parts = image_stem(file).split("_")
        entities = {}
        for part in parts:
            name, dash, value = part.partition("-")
            if dash:
                entities[name] = value
        return cls(entities, parts[-1])

    @property
    def space(self) -> tuple[str, ...]:
        """Values of the entities that tell the grid."""
        return tuple(self.entities.get(name, "") for name in SPACE_ENTITIES)

    @property
    def modality(self) -> str | None:
        """Suffix as the name of a modality, with "ce" after contrast agent; None for no image."""
        is_image = self.suffix[:1].isupper() and self.suffix not in OTHER_SUFFIXES
        if not is_image:
            return None
        return f"{self.suffix}ce" if "ce" in self.entities else self.suffix

    def is_lesion_mask(self, word: str) -> bool:
        """Tell whether a file is a mask of what the word names.

        sub-01_label-lesion_mask     BIDS: a suffix of masks, and an entity with the word
        sub-01_FLAIR_lesion-manual   ivadomed: the word in the last part
        sub-01_FLAIR_roi             a suffix that means a lesion if nothing else is said
        """
        is_described = "label" in self.entities or "desc" in self.entities
        if self.suffix in MASK_SUFFIXES_ALONE and not is_described:
            return True
        word = word.lower()
        if self.suffix not in MASK_SUFFIXES:
            return word in self.suffix.lower()
        return any(word in value.lower() for value in self.entities.values())


def find_bids(root: Path, *, lesion: str = "lesion", derivative: str | None = None) -> list[Case]:
    """List the examinations with images in `anat`, and their lesion masks.

    Lesion masks lie in one folder below `derivatives/`, in `derivatives/` itself or, if these hold
    none, among the raw images. Their names are as in `sub-01_space-T1w_label-lesion_mask.nii.gz`,
    `…_desc-lesions_roi`, `…_label-lesion_seg` (Spinal Cord Toolbox), `…_lesion-manual` (ivadomed),
    `…_FLAIR_roi` or `…_msk` (ISLES 2022). Several masks of one examination are several raters; one
    whose name holds `consensus` comes first. Images are called by their suffix (FLAIR, T1w, T2w,
    with contrast agent T1wce). They are taken from the folder of the mask if it holds images of
    the mask's space, else from the raw data. A brain mask is one with `desc-brain`.

    Args:
        root: Folder with `sub-…` folders and `derivatives`.
        lesion: Word in the names of lesion masks.
        derivative: Folder below `derivatives` to look for masks in; None: all of them.

    Raises:
        DataError: The folder does not look like BIDS, holds no lesion mask, or holds some in
            several derivatives.
    """
    root = Path(root)
    log_images_outside_anat(root)
    raw = _by_examination([*root.glob("sub-*/anat/*"), *root.glob("sub-*/ses-*/anat/*")])
    derived = _derivative_with_masks(root, lesion, derivative)
    if not derived and not _has_masks(raw, lesion):
        example = f"derivatives/<pipeline>/sub-01/anat/sub-01_label-{lesion}_mask.nii.gz"
        raise DataError(root, "does not look like BIDS with lesion masks", f"expected {example}")
    sites = _sites(root / "participants.tsv")
    cases = []
    examinations = {*raw, *derived}
    for examination in sorted(examinations, key=lambda each: (each.subject, each.session)):
        raw_files = raw.get(examination, [])
        derived_files = derived.get(examination, [])
        site = sites.get(examination.subject)
        case = _case(examination, raw_files, derived_files, lesion=lesion, site=site)
        if case.images:
            cases.append(case)
    return cases


def _derivative_with_masks(root: Path, lesion: str, derivative: str | None) -> Files:
    """Return the files of the only derivative that holds lesion masks; none if none does.

    Raises:
        DataError: Several hold masks.
    """
    with_masks: dict[str, Files] = {}
    for pipeline in sorted(root.glob(f"derivatives/{derivative or '*'}/")):
        if not pipeline.name.startswith("sub-"):
            with_masks[pipeline.name] = _by_examination([*pipeline.rglob("sub-*")])
    if derivative is None:
        # ISLES 2022 has the subjects in derivatives/ itself.
        with_masks["."] = _by_examination([*root.glob("derivatives/sub-*/**/sub-*")])
    # Most derivatives hold something else: segmentations of tissue, registrations.
    for name, files in list(with_masks.items()):
        if not _has_masks(files, lesion):
            del with_masks[name]
    if len(with_masks) > 1:
        found = f"lesion masks in derivatives {', '.join(with_masks)}"
        raise DataError(root, found, "expected one of them as data.importer.derivative")
    return next(iter(with_masks.values()), {})


def _has_masks(files: Files, lesion: str) -> bool:
    return any(_lesion_masks(group, lesion) for group in files.values())


def _case(
    examination: Examination,
    raw: Sequence[Path],
    derived: Sequence[Path],
    *,
    lesion: str,
    site: str | None,
) -> Case:
    masks = _lesion_masks(derived, lesion) or _lesion_masks(raw, lesion)
    images: dict[str, Path] = {}
    brain_masks = [file for file in (*derived, *raw) if _is_brain_mask(file)]
    if masks:
        # An image on another grid than the mask would be resampled, or refused with it.
        space = BidsName.of(masks[0]).space
        images = _images([file for file in derived if BidsName.of(file).space == space])
        brain_masks = [file for file in brain_masks if BidsName.of(file).space == space]
    has_consensus = bool(masks) and _names_consensus(masks[0])
    names = [name for name in (examination.subject, examination.session) if name]
    return Case(
        case_id="_".join(names),
        subject_id=examination.subject,
        images=images or _images(raw),
        labels=tuple(masks),
        brain_mask=brain_masks[0] if brain_masks else None,
        site=site,
        session=examination.session.removeprefix("ses-") or None,
        consensus=has_consensus and len(masks) > 1,
    )


def _by_examination(files: Sequence[Path]) -> Files:
    """Group the NIfTI files of a folder by subject and session, each group sorted."""
    groups: Files = {}
    for file in sorted(files):
        # Sidecars (.json) and folders have names of the same form.
        entities = BidsName.of(file).entities
        if is_nifti(file) and "sub" in entities and file.is_file():
            session = f"ses-{entities['ses']}" if "ses" in entities else ""
            examination = Examination(f"sub-{entities['sub']}", session)
            groups.setdefault(examination, []).append(file)
    return groups


def _lesion_masks(files: Sequence[Path], lesion: str) -> list[Path]:
    """List the lesion masks among files, a consensus first."""
    # False sorts before True.
    masks = [file for file in files if BidsName.of(file).is_lesion_mask(lesion)]
    return sorted(masks, key=lambda file: (not _names_consensus(file), file.name))


def _names_consensus(file: Path) -> bool:
    return "consensus" in file.name.lower()


def _is_brain_mask(file: Path) -> bool:
    name = BidsName.of(file)
    return name.suffix == "mask" and name.entities.get("desc") == "brain"


def _images(files: Sequence[Path]) -> dict[str, Path]:
    """Return modality -> file; of several runs or acquisitions the first by name."""
    images: dict[str, Path] = {}
    for file in files:
        modality = BidsName.of(file).modality
        if modality:
            images.setdefault(modality, file)
    return images


def _sites(participants: Path) -> dict[str, str]:
    """Read subject -> site of participants.tsv; empty without this file or column."""
    try:
        with participants.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}
    sites = {}
    for row in rows:
        subject, site = row.get("participant_id"), row.get("site")
        # BIDS writes n/a for an empty cell.
        if subject and site and site != "n/a":
            sites[subject] = site
    return sites
