"""The nodules that LIDC's four readers outlined, from XML to a mask (Armato et al. 2011, doi 10.1118/1.3528204)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.errors import DataError

N_READERS = 4


@dataclass(frozen=True)
class Contour:
    """The outline of a nodule in one slice.

    Attributes:
        z: Of the slice: mm in the XML, an index once it is in voxels.
        is_inside: Whether the outline holds nodule, or what is cut out of it.
        points: (n, 2) pixels x, y; a single one for a nodule below 3 mm.
    """

    z: float
    is_inside: bool
    points: NDArray[np.int64]


Nodule = list[Contour]


def series_of(file: Path) -> str:
    """The series (DICOM UID) that an XML file of LIDC describes; "" for another XML file."""
    for _, element in ElementTree.iterparse(file):
        name = element.tag.rpartition("}")[2].lower()
        if name == "seriesinstanceuid":
            return (element.text or "").strip()
        if name == "readingsession":
            break
    return ""


def read_nodules(file: Path) -> list[list[Nodule]]:
    """The nodules of each reader after unblinding, in an XML file of LIDC.

    Raises:
        DataError: The file is not as LIDC writes it.
    """
    try:
        sessions = ElementTree.parse(file).getroot().findall("{*}readingSession")
        return [
            [
                [_contour(roi) for roi in nodule.findall("{*}roi")]
                for nodule in session.findall("{*}unblindedReadNodule")
            ]
            for session in sessions
        ]
    except (ElementTree.ParseError, ValueError, TypeError, OSError) as error:
        raise DataError(file, f"is no XML file of LIDC ({error})", "fetch it anew") from error


def _contour(roi: ElementTree.Element) -> Contour:
    points = [
        [int(_text(edge, name)) for name in ("xCoord", "yCoord")]
        for edge in roi.findall("{*}edgeMap")
    ]
    inclusion = (roi.findtext("{*}inclusion") or "TRUE").strip().upper() == "TRUE"
    return Contour(
        float(_text(roi, "imageZposition")),
        inclusion,
        np.array(points, dtype=np.int64).reshape(-1, 2),
    )


def _text(element: ElementTree.Element, name: str) -> str:
    text = element.findtext(f"{{*}}{name}")
    if text is None:
        raise ValueError(f"no {name}")
    return text


def nodule_mask(
    readers: Sequence[Sequence[Nodule]],
    centres: NDArray[np.float64],
    shape: tuple[int, ...],
    *,
    share: float = 0.5,
    max_distance: float = 10.0,
) -> NDArray[np.bool_]:
    """Where at least a share of the four readers drew a nodule (Shirokikh 2020 takes half).

    Args:
        readers: The nodules of each reader, contours in voxels; a reader who is not listed drew none.
        centres: (n, 3) voxels; only nodules whose mean contour point lies near one of them are taken.
        shape: (X, Y, Z).
        share: Of the four readers.
        max_distance: Voxels between a nodule's mean contour point and the next centre.
    """
    votes = np.zeros(shape, dtype=np.uint8)
    for nodules in readers:
        drawn = np.zeros(shape, dtype=bool)
        for nodule in nodules:
            if (
                any(len(contour.points) for contour in nodule)
                and _distance(nodule, centres) <= max_distance
            ):
                _draw(nodule, drawn)
        votes += drawn
    most: NDArray[np.bool_] = votes >= share * N_READERS
    return most


def _distance(nodule: Nodule, centres: NDArray[np.float64]) -> float:
    """Voxels from the mean contour point of a nodule to the nearest centre; infinite without any."""
    points = np.concatenate(
        [np.c_[contour.points, np.full(len(contour.points), contour.z)] for contour in nodule]
    )
    return float(min(np.linalg.norm(centres - points.mean(axis=0), axis=1), default=np.inf))


def _draw(nodule: Nodule, mask: NDArray[np.bool_]) -> None:
    """Fill the outlines, themselves included, into a mask (X, Y, Z); then cut out what was excluded."""
    for contour in sorted(nodule, key=lambda contour: not contour.is_inside):
        z = int(contour.z)
        if not 0 <= z < mask.shape[2]:
            raise DataError(
                "LIDC",
                f"an outline lies in slice {z}",
                f"expected 0 to {mask.shape[2] - 1}, of the same scan",
            )
        for x, y in _filled(contour.points, mask.shape[:2]):
            mask[x, y, z] = contour.is_inside


def _filled(points: NDArray[np.int64], shape: tuple[int, ...]) -> list[tuple[Any, Any]]:
    """Pixels inside an outline, and those on it."""
    from skimage.draw import polygon, polygon_perimeter

    x, y = points.T
    if len(points) < 3:
        inside = (x >= 0) & (x < shape[0]) & (y >= 0) & (y < shape[1])
        return [(x[inside], y[inside])]
    return [polygon(x, y, shape), polygon_perimeter(x, y, shape, clip=False)]
