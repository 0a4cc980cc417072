"""LUNA16: lung nodules in CT (Setio et al. 2017), drawn by the readers of LIDC.

doi 10.1016/j.media.2017.06.015
"""

from __future__ import annotations

import csv
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tversky_seg.data.case import Case
from tversky_seg.data.datasets._common import check_split
from tversky_seg.data.datasets.luna16_lidc import Nodule, nodule_mask, read_nodules, series_of
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import write_volume
from tversky_seg.runtime.one_line import message_lines
from tversky_seg.runtime.progress import Reporter

logger = logging.getLogger("tversky_seg")

FILES = ("CT.nii.gz", "nodules.nii.gz", "lungs.nii.gz")
"""Files of a converted scan. An earlier `label.nii.gz` is not used: those of turned scans were
empty."""

SPLITS = {"shirokikh2020": ["train"] * 6 + ["val"] * 2 + ["test"] * 2}
"""Part of each of the ten subsets."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
Centres = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Scan:
    """A MetaImage in memory.

    Attributes:
        data: (X, Y, Z), axes as in the file.
        affine: (4, 4) voxel indices to mm in RAS.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]

    def voxels(self, lps_mm: Centres) -> NDArray[np.float64]:
        """Convert world coordinates (n, 3), as LUNA16 and LIDC give them, to voxels (n, 3)."""
        lps = np.asarray(lps_mm, dtype=np.float64).reshape(-1, 3)
        ras = np.c_[lps * (-1, -1, 1), np.ones(len(lps))]
        voxels: NDArray[np.float64] = ras @ np.linalg.inv(self.affine).T
        return voxels[:, :3]


@dataclass(frozen=True)
class Download:
    """Files of a download.

    Attributes:
        scans: Series -> .mhd of the scan.
        lungs: Series -> .mhd of the lung segmentation.
        centres: Series -> centres of its nodules in mm (LPS).
        drawings: Series -> XML file of the readers' outlines.
    """

    scans: Mapping[str, Path]
    lungs: Mapping[str, Path]
    centres: Mapping[str, Centres]
    drawings: Mapping[str, Path]


def find_luna16(
    root: Path, *, converted: str | None = None, split: str | None = None
) -> list[Case]:
    """List the scans of an official download, converted to NIfTI with masks on the first call.

    A voxel belongs to a nodule if at least 2 of the 4 readers of LIDC drew it; only nodules count
    whose centre lies within 10 voxels of one in `annotations.csv` (Shirokikh 2020). The brain mask
    is that of the lungs: `seg-lungs-LUNA16` without the trachea, closed by 10 and grown by 3
    voxels. Each scan is taken as a subject of its own. Its fold is the subset.

    Args:
        root: Folder with `subset0` to `subset9` (or some), `seg-lungs-LUNA16`, `annotations.csv`
            and the XML files of LIDC, as in `tcia-lidc-xml/157/158.xml`, each at any depth.
        converted: Folder of the converted scans, made if absent: about 80 MB a scan. Files that
            it holds are kept.
        split: None: the subsets are folds. "shirokikh2020": subsets 0 to 5 train, 6 and 7
            validate, 8 and 9 test.

    Raises:
        DataError: The folder does not look like this data set, a setting is wrong, SimpleITK is
            not installed, or no scan could be converted. If only some could not, a warning tells
            why.
    """
    root = Path(root)
    check_split(split, SPLITS)
    if not converted:
        expected = "expected a folder for the converted scans"
        raise DataError("data.importer.converted", "none given", expected)
    scans = {file.stem: file for file in sorted(root.rglob("subset[0-9]/*.mhd"))}
    lungs = {file.stem: file for file in root.rglob("seg-lungs-LUNA16/*.mhd")}
    # With candidates.csv and others beside it, this one has the nodules that readers agreed on.
    annotations = sorted(root.rglob("annotations.csv"))
    if not (scans and lungs and annotations):
        raise DataError(
            root,
            "does not look like LUNA16",
            "expected subset0/<seriesuid>.mhd, seg-lungs-LUNA16/<seriesuid>.mhd "
            "and annotations.csv",
        )
    folder = Path(converted).expanduser()
    missing = {uid: file for uid, file in scans.items() if not _is_converted(folder / uid)}
    if missing:
        centres = _read_centres(annotations[0])
        _convert_all(Download(missing, lungs, centres, _find_drawings(root)), folder)
    cases = []
    for uid, file in scans.items():
        # A scan that could not be converted is left out; a warning named it.
        if _is_converted(folder / uid):
            subset = int(file.parent.name.removeprefix("subset"))
            cases.append(_case(uid, subset, folder / uid, split))
    return cases


def lung_mask(labels: NDArray[Any], *, closing: int = 10, growth: int = 3) -> NDArray[np.bool_]:
    """Make one mask of both lungs: without the trachea, closed and grown.

    Dilation and erosion use the 6-neighbourhood.

    Args:
        labels: (X, Y, Z) with three values: both lungs and, the smallest, the trachea.
        closing: Number of dilations, then of erosions.
        growth: Number of dilations afterwards.

    Returns:
        (X, Y, Z) mask.

    Raises:
        DataError: There is no lung.
    """
    lungs = labels != 0
    values, counts = np.unique(labels[lungs], return_counts=True)
    if len(values) > 2:
        # The label values differ between scans, but the trachea is always the smallest.
        trachea = values[counts.argmin()]
        lungs &= labels != trachea
    if not lungs.any():
        raise DataError("seg-lungs-LUNA16", "a mask holds no lung", "expected two")
    # n dilations by the 6-neighbourhood reach a taxicab distance of n: one transform does all.
    margin = closing + growth + 1
    padded = np.pad(lungs, margin)
    dilated = ndimage.distance_transform_cdt(~padded, "taxicab") <= closing
    closed = ndimage.distance_transform_cdt(dilated, "taxicab") > closing
    grown = ndimage.distance_transform_cdt(~closed, "taxicab") <= growth
    return np.ascontiguousarray(grown[margin:-margin, margin:-margin, margin:-margin])


def _case(uid: str, subset: int, folder: Path, split: str | None) -> Case:
    ct, label, lungs = (folder / name for name in FILES)
    return Case(
        case_id=uid,
        subject_id=uid,
        images={"CT": ct},
        labels=(label,),
        brain_mask=lungs,
        split=SPLITS[split][subset] if split else None,
        fold=None if split else subset,
    )


def _is_converted(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _convert_all(download: Download, folder: Path) -> None:
    """Convert all scans of a download; log why some could not be converted."""
    faults = []
    with Reporter("converting LUNA16", total=len(download.scans)) as reporter:
        for uid in download.scans:
            try:
                _convert(uid, download, folder / uid)
            except DataError as fault:
                faults.append(fault)
            reporter.advance(uid)
    # Nothing is left to train on: most likely one cause for all.
    if len(faults) == len(download.scans):
        raise DataError.gather(faults)
    for each in faults:
        logger.warning("left out: %s", each)


def _convert(uid: str, download: Download, folder: Path) -> None:
    """Write the files of a scan, each whole or not at all."""
    file = download.scans[uid]
    if uid not in download.lungs:
        raise DataError(file, "has no lung mask", "expected one of this series")
    if uid not in download.drawings:
        raise DataError(file, "has no LIDC XML file", "expected one of this series")
    scan = _read_scan(file)
    lungs = _read_scan(download.lungs[uid])
    if lungs.data.shape != scan.data.shape:
        found = f"has shape {lungs.data.shape}"
        raise DataError(download.lungs[uid], found, f"expected that of the scan, {scan.data.shape}")
    readers = []
    for nodules in read_nodules(download.drawings[uid]):
        readers.append([_in_voxels(nodule, scan) for nodule in nodules])
    centres = scan.voxels(download.centres.get(uid, ()))
    label = nodule_mask(readers, centres, scan.data.shape)
    ct_file, label_file, lungs_file = (folder / name for name in FILES)
    write_volume(label_file, label, scan.affine)
    # An earlier version may have written these two already.
    if not ct_file.is_file():
        write_volume(ct_file, scan.data, scan.affine)
    if not lungs_file.is_file():
        write_volume(lungs_file, lung_mask(lungs.data), scan.affine)


def _in_voxels(nodule: Nodule, scan: Scan) -> Nodule:
    """Convert the place of contours from mm to slices.

    x and y are columns and rows of the DICOM image. LUNA16 keeps this order of voxels, also where
    the patient lay turned (TransformMatrix -1 0 0 0 -1 0 0 0 1), so they are indices already.
    """
    contours = []
    for contour in nodule:
        z = (contour.z - scan.affine[2, 3]) / scan.affine[2, 2]
        contours.append(replace(contour, z=round(float(z))))
    return contours


def _read_scan(file: Path) -> Scan:
    try:
        import SimpleITK
    except ImportError as error:
        raise DataError(
            "data=luna16", "needs SimpleITK to read .mhd", "pip install 'tversky-seg[luna16]'"
        ) from error
    try:
        image = SimpleITK.ReadImage(str(file))
    except RuntimeError as error:
        reason = message_lines(error)[-1]
        raise DataError(
            file, f"cannot be read ({reason})", "download it and its .raw again"
        ) from error
    # ITK keeps direction, spacing and origin apart, in LPS.
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    data = SimpleITK.GetArrayViewFromImage(image).T.copy()
    return Scan(data, LPS_TO_RAS @ affine)


def _read_centres(annotations: Path) -> dict[str, list[list[float]]]:
    """Read series -> centres of its nodules in mm (LPS)."""
    centres = defaultdict(list)
    try:
        with annotations.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                centre = [float(row[f"coord{axis}"]) for axis in "XYZ"]
                centres[row["seriesuid"]].append(centre)
    except (OSError, KeyError, ValueError, TypeError) as error:
        expected = "expected seriesuid,coordX,coordY,coordZ,…"
        raise DataError(annotations, "cannot be read", expected) from error
    return dict(centres)


def _find_drawings(root: Path) -> dict[str, Path]:
    """Find series -> XML file of LIDC."""
    drawings = {}
    for file in sorted(root.rglob("*.xml")):
        try:
            drawings[series_of(file)] = file
        except ElementTree.ParseError:
            logger.warning("%s: skipped, it is not XML", file)
    if not drawings:
        raise DataError(
            root,
            "holds no XML file",
            "expected LIDC's, as tcia-lidc-xml/157/158.xml (LIDC-XML-only.zip)",
        )
    return drawings
