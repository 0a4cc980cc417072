"""A data set in the Brain Imaging Data Structure with lesion masks among its derivatives (bids.neuroimaging.io)."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.datasets._common import ENDINGS, stem_of
from tversky_seg.data.errors import DataError

MASK_SUFFIXES = ("mask", "roi", "dseg")
NO_IMAGES = (*MASK_SUFFIXES, "probseg", "defacemask", "xfm", "warp")
SAME_SCAN = (
    "space",
    "res",
)  # entities by which a derived image is told from another of the same examination


def find_bids(root: Path, *, lesion: str = "lesion", derivative: str | None = None) -> list[Case]:
    """List the examinations (subject and session) with images in `anat`, and their lesion masks where there are any.

    A lesion mask is a file of suffix `mask`, `roi` or `dseg` below `derivatives/` with an entity that holds the word
    `lesion`, as in `sub-01_space-T1w_label-lesion_mask.nii.gz` or `…_desc-lesions_mask.nii.gz`. Several masks of one
    examination are several raters; one whose name holds `consensus` comes first. Images are called by their suffix
    (FLAIR, T1w, T2w, with contrast agent T1wce). They are taken from the folder of the mask where it holds images of
    the mask's space, else from the raw data. A brain mask is one with `desc-brain` beside the images.

    Args:
        root: The folder with `sub-…` folders and `derivatives`.
        lesion: What an entity of lesion masks holds.
        derivative: Folder below `derivatives` to look for masks in; None: all of them.

    Raises:
        DataError: The folder does not look like BIDS, holds no lesion mask, or masks in several derivatives.
    """
    root = Path(root)
    raw = _by_examination(
        [file for pattern in ("anat", "ses-*/anat") for file in root.glob(f"sub-*/{pattern}/*")]
    )
    pipelines = sorted(
        path for path in root.glob(f"derivatives/{derivative or '*'}") if path.is_dir()
    )
    found = {pipeline: _by_examination([*pipeline.rglob("sub-*")]) for pipeline in pipelines}
    with_masks = [
        p for p, files in found.items() if any(_lesion_masks(f, lesion) for f in files.values())
    ]
    if len(with_masks) > 1:
        raise DataError(root, f"lesion masks in derivatives {', '.join(p.name for p in with_masks)}", 'expected one of them as data.importer.derivative')  # fmt: skip
    if not with_masks:
        raise DataError(root, 'does not look like BIDS with lesion masks', f'expected derivatives/<pipeline>/sub-01/anat/sub-01_label-{lesion}_mask.nii.gz')  # fmt: skip
    derived, site = found[with_masks[0]], _sites(root / "participants.tsv")
    cases = [
        _case(key, raw.get(key, []), derived.get(key, []), lesion, site)
        for key in sorted({*raw, *derived})
    ]
    return [case for case in cases if case.images]


def _case(
    key: tuple[str, str],
    raw: Sequence[Path],
    derived: Sequence[Path],
    lesion: str,
    site: Mapping[str, str],
) -> Case:
    subject, session = key
    masks = _lesion_masks(derived, lesion)
    images = _images([file for file in derived if _scan(file) == _scan(masks[0])]) if masks else {}
    images = images or _images(raw)
    brains = [
        file
        for file in (*derived, *raw)
        if _suffix(file) == "mask" and _entities(file).get("desc") == "brain"
    ]
    fitting = [file for file in brains if not masks or _scan(file) == _scan(masks[0])]
    return Case(
        case_id="_".join(part for part in key if part),
        subject_id=subject,
        images=images,
        labels=tuple(masks),
        brain_mask=fitting[0] if fitting else None,
        site=site.get(subject),
        session=session.removeprefix("ses-") or None,
        consensus=len(masks) > 1 and "consensus" in masks[0].name.lower(),
    )


def _by_examination(files: Sequence[Path]) -> dict[tuple[str, str], list[Path]]:
    """("sub-01", "ses-02" or "") -> its NIfTI files, sorted."""
    found: dict[tuple[str, str], list[Path]] = {}
    for file in sorted(files):
        entities = _entities(file)
        if file.name.endswith(ENDINGS) and "sub" in entities and file.is_file():
            session = f"ses-{entities['ses']}" if "ses" in entities else ""
            found.setdefault((f"sub-{entities['sub']}", session), []).append(file)
    return found


def _lesion_masks(files: Sequence[Path], lesion: str) -> list[Path]:
    """Those files whose name says so; a consensus first."""
    masks = [
        file
        for file in files
        if _suffix(file) in MASK_SUFFIXES
        and any(lesion.lower() in value.lower() for value in _entities(file).values())
    ]
    return sorted(masks, key=lambda file: ("consensus" not in file.name.lower(), file.name))


def _images(files: Sequence[Path]) -> dict[str, Path]:
    """Modality -> file; of several runs or acquisitions the first in the order of names."""
    images: dict[str, Path] = {}
    for file in files:
        suffix = _suffix(file)
        if suffix not in NO_IMAGES and suffix[:1].isupper():
            images.setdefault(suffix + "ce" * ("ce" in _entities(file)), file)
    return images


def _scan(file: Path) -> tuple[str, ...]:
    entities = _entities(file)
    return tuple(entities.get(name, "") for name in SAME_SCAN)


def _entities(file: Path) -> dict[str, str]:
    """`sub-01_ses-02_T1w.nii.gz` -> {"sub": "01", "ses": "02"}."""
    parts = (part.partition("-") for part in stem_of(file).split("_"))
    return {name: value for name, dash, value in parts if dash}


def _suffix(file: Path) -> str:
    return stem_of(file).rpartition("_")[2]


def _sites(participants: Path) -> dict[str, str]:
    """Subject -> the column `site` of participants.tsv, where there is one."""
    try:
        rows = list(
            csv.DictReader(
                participants.read_text(encoding="utf-8-sig").splitlines(), delimiter="\t"
            )
        )
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}
    return {row["participant_id"]: row["site"] for row in rows
            if row.get("participant_id") and row.get("site") not in (None, "", "n/a")}  # fmt: skip
