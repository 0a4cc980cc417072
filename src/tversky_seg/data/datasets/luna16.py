"""LUNA16: lung nodules in CT (Setio et al. 2017, doi 10.1016/j.media.2017.06.015), drawn by the readers of LIDC."""

import csv
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tversky_seg.data.case import Case
from tversky_seg.data.datasets.luna16_lidc import Nodule, nodule_mask, read_nodules, series_of
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import write_volume
from tversky_seg.runtime.progress import Reporter

logger = logging.getLogger("tversky_seg")

FILES = ("CT", "label", "lungs")
SPLITS = {"shirokikh2020": ["train"] * 6 + ["val"] * 2 + ["test"] * 2}


@dataclass(frozen=True)
class Scan:
    """A MetaImage in memory.

    Attributes:
        data: (X, Y, Z), axes as in the file.
        affine: (4, 4) voxel indices to mm in RAS.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]

    def voxels(self, lps_mm: Sequence[Sequence[float]]) -> NDArray[np.float64]:
        """World coordinates (n, 3) as LUNA16 and LIDC give them -> voxel indices (n, 3)."""
        ras = np.asarray(lps_mm, dtype=np.float64).reshape(-1, 3) * (-1, -1, 1)
        found: NDArray[np.float64] = np.c_[ras, np.ones(len(ras))] @ np.linalg.inv(self.affine).T
        return found[:, :3]


def find_luna16(
    root: Path, *, converted: str | None = None, split: str | None = None
) -> list[Case]:
    """List the scans of an official download, converted to NIfTI with nodule and lung masks on the first call.

    A voxel belongs to a nodule if at least 2 of the 4 readers of LIDC drew it, of nodules whose centre lies within 10
    voxels of one in `annotations.csv` (Shirokikh 2020). The brain mask is that of the lungs: `seg-lungs-LUNA16` without
    the trachea, closed by 10 and grown by 3 voxels. Each scan is taken as a subject of its own; fold is the subset.

    Args:
        root: Holds `subset0` to `subset9` (or some), `seg-lungs-LUNA16`, `annotations.csv` and LIDC's XML files, as in
            `tcia-lidc-xml/157/158.xml`, each at any depth.
        converted: Folder for the converted scans, made if absent: about 80 MB a scan. What is there stays.
        split: None: the subsets are folds; "shirokikh2020": subsets 0 to 5 train, 6 and 7 validate, 8 and 9 test.

    Raises:
        DataError: The folder does not look like this data set, a setting is wrong, SimpleITK is not installed, or no
            scan could be converted. Of some that could not, a warning names the reasons.
    """
    root = Path(root)
    if split is not None and split not in SPLITS:
        raise DataError(
            "data.importer.split", f"{split!r}", f"expected null or {', '.join(SPLITS)}"
        )
    if not converted:
        raise DataError(
            "data.importer.converted", "none given", "expected a folder for the converted scans"
        )
    scans = {file.stem: file for file in sorted(root.rglob("subset[0-9]/*.mhd"))}
    lungs = {file.stem: file for file in root.rglob("seg-lungs-LUNA16/*.mhd")}
    annotations = next(iter(sorted(root.rglob("annotations.csv"))), None)
    if not scans or not lungs or annotations is None:
        raise DataError(
            root,
            "does not look like LUNA16",
            "expected subset0/<seriesuid>.mhd, seg-lungs-LUNA16/<seriesuid>.mhd and annotations.csv",
        )
    folder = Path(converted).expanduser()
    missing = {uid: file for uid, file in scans.items() if not _is_there(folder / uid)}
    if missing:
        _convert_all(missing, lungs, _centres(annotations), _drawings(root), folder)
    return [
        _case(uid, file, folder / uid, split)
        for uid, file in scans.items()
        if _is_there(folder / uid)
    ]


def _case(uid: str, file: Path, folder: Path, split: str | None) -> Case:
    subset = int(file.parent.name.removeprefix("subset"))
    return Case(
        case_id=uid,
        subject_id=uid,
        images={"CT": folder / "CT.nii.gz"},
        labels=(folder / "label.nii.gz",),
        brain_mask=folder / "lungs.nii.gz",
        split=SPLITS[split][subset] if split else None,
        fold=None if split else subset,
    )


def _is_there(folder: Path) -> bool:
    return all((folder / f"{name}.nii.gz").is_file() for name in FILES)


def _convert_all(
    scans: Mapping[str, Path],
    lungs: Mapping[str, Path],
    centres: Mapping[str, Sequence[Sequence[float]]],
    drawings: Mapping[str, Path],
    folder: Path,
) -> None:
    faults = []
    with Reporter("converting LUNA16", total=len(scans)) as reporter:
        for uid, file in scans.items():
            try:
                for needed, what in ((lungs, "lung mask"), (drawings, "LIDC XML file")):
                    if uid not in needed:
                        raise DataError(file, f"has no {what}", "expected one of this series")
                _convert(file, lungs[uid], centres.get(uid, ()), drawings[uid], folder / uid)
            except DataError as fault:
                faults.append(fault)
            reporter.advance(uid)
    if len(faults) == len(scans):
        raise DataError.gather(faults)
    for line in faults:
        logger.warning("left out: %s", line)


def _convert(
    file: Path, lung_file: Path, centres: Sequence[Sequence[float]], drawing: Path, folder: Path
) -> None:
    """Write the three files of a scan, the label last but one and each whole or not at all."""
    scan, lungs = _read_scan(file), _read_scan(lung_file)
    if lungs.data.shape != scan.data.shape:
        raise DataError(
            lung_file,
            f"has shape {lungs.data.shape}",
            f"expected that of the scan, {scan.data.shape}",
        )
    readers = [
        [_in_voxels(nodule, scan) for nodule in nodules] for nodules in read_nodules(drawing)
    ]
    label = nodule_mask(readers, scan.voxels(centres), scan.data.shape)
    write_volume(folder / "CT.nii.gz", scan.data, scan.affine)
    write_volume(folder / "label.nii.gz", label, scan.affine)
    write_volume(folder / "lungs.nii.gz", lung_mask(lungs.data), scan.affine)


def _in_voxels(nodule: Nodule, scan: Scan) -> Nodule:
    """Contours in the scan's voxels: LIDC counts x and y from the corner of the DICOM image, z is in mm.

    LUNA16 stores some scans turned by 180 degrees in the plane, which the signs of their affine show.
    """
    width, height = scan.data.shape[:2]
    turned_x, turned_y = (
        scan.affine[0, 0] > 0,
        scan.affine[1, 1] > 0,
    )  # DICOM runs to L and P, RAS is its opposite
    contours = []
    for contour in nodule:
        x, y = contour.points.T
        points = np.stack(
            [width - 1 - x if turned_x else x, height - 1 - y if turned_y else y], axis=1
        )
        z = (contour.z - scan.affine[2, 3]) / scan.affine[2, 2]
        contours.append(type(contour)(round(float(z)), contour.is_inside, points))
    return contours


def lung_mask(labels: NDArray[Any], *, closing: int = 10, growth: int = 3) -> NDArray[np.bool_]:
    """Both lungs (X, Y, Z) of a segmentation of three values: without the smallest, the trachea, closed and grown.

    Dilation and erosion are by the 6-neighbourhood, `closing` times each, then `growth` more dilations.
    """
    values, counts = np.unique(labels[labels != 0], return_counts=True)
    kept = labels != 0
    if len(values) > 2:
        kept &= labels != values[counts.argmin()]
    if not kept.any():
        raise DataError("seg-lungs-LUNA16", "a mask holds no lung", "expected two")
    padded = np.pad(kept, closing + growth + 1)
    grown = ndimage.distance_transform_cdt(~padded, "taxicab") <= closing
    closed = ndimage.distance_transform_cdt(grown, "taxicab") > closing
    grown = ndimage.distance_transform_cdt(~closed, "taxicab") <= growth
    inner = (slice(closing + growth + 1, -(closing + growth + 1)),) * 3
    return np.ascontiguousarray(grown[inner])


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
        raise DataError(
            file, f"cannot be read ({str(error).splitlines()[-1]})", "fetch it and its .raw anew"
        ) from error
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Scan(
        SimpleITK.GetArrayViewFromImage(image).T.copy(), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    )


def _centres(annotations: Path) -> dict[str, list[list[float]]]:
    """Series -> centres of its nodules in mm (LPS)."""
    centres = defaultdict(list)
    try:
        with annotations.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                centres[row["seriesuid"]].append([float(row[f"coord{axis}"]) for axis in "XYZ"])
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(
            annotations, "cannot be read", "expected seriesuid,coordX,coordY,coordZ,…"
        ) from error
    return dict(centres)


def _drawings(root: Path) -> dict[str, Path]:
    """Series -> LIDC's XML file of it."""
    found = {}
    for file in sorted(root.rglob("*.xml")):
        try:
            found[series_of(file)] = file
        except ElementTree.ParseError:
            logger.warning("%s: is no XML, passed over", file)
    if not found:
        raise DataError(
            root,
            "holds no XML file",
            "expected LIDC's, as tcia-lidc-xml/157/158.xml (LIDC-XML-only.zip)",
        )
    return found
