"""Nodules that LIDC's four readers outlined, from XML to a mask (Armato et al. 2011).

doi 10.1118/1.3528204
"""

from __future__ import annotations

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
        z: Place of the slice: mm in the XML, an index once it is in voxels.
        is_inside: True for an outline of nodule, False for a hole to cut out of it.
        points: (n, 2) pixels x, y; a single one for a nodule below 3 mm.
    """

    z: float
    is_inside: bool
    points: NDArray[np.int64]


Nodule = list[Contour]


def series_of(file: Path) -> str:
    """Read the series (DICOM UID) that an XML file of LIDC describes; "" for another XML file."""
    for _, element in ElementTree.iterparse(file):
        name = element.tag.rpartition("}")[2].lower()
        if name == "seriesinstanceuid":
            return (element.text or "").strip()
        # The header ends here: nothing after the first reading names a series.
        if name == "readingsession":
            break
    return ""


def read_nodules(file: Path) -> list[list[Nodule]]:
    """Read the nodules of each reader after unblinding, from an XML file of LIDC.

    Raises:
        DataError: The file is not as LIDC writes it.
    """
    readers = []
    try:
        for session in ElementTree.parse(file).getroot().findall("{*}readingSession"):
            nodules = []
            for nodule in session.findall("{*}unblindedReadNodule"):
                nodules.append([_contour(region) for region in nodule.findall("{*}roi")])
            readers.append(nodules)
    except (ElementTree.ParseError, ValueError, TypeError, OSError) as error:
        found = f"is not an XML file of LIDC ({error})"
        raise DataError(file, found, "download it again") from error
    return readers


def nodule_mask(
    readers: Sequence[Sequence[Nodule]],
    centres: NDArray[np.float64],
    shape: tuple[int, ...],
    *,
    share: float = 0.5,
    max_distance: float = 10.0,
) -> NDArray[np.bool_]:
    """Mark voxels that at least a share of the four readers drew (Shirokikh 2020 takes half).

    Args:
        readers: Nodules of each reader, contours in voxels; a reader who is not listed drew none.
        centres: (n, 3) voxels; only nodules whose mean contour point lies near one are taken.
        shape: Shape of the mask (X, Y, Z).
        share: Share of the four readers.
        max_distance: Voxels between a nodule's mean contour point and the nearest centre.

    Returns:
        (X, Y, Z) mask; empty without centres.
    """
    votes = np.zeros(shape, dtype=np.uint8)
    for nodules in readers:
        drawn = np.zeros(shape, dtype=bool)
        for nodule in nodules:
            # A nodule without outline has no place.
            has_points = any(len(contour.points) for contour in nodule)
            if has_points and _distance(nodule, centres) <= max_distance:
                _draw(nodule, drawn)
        votes += drawn
    enough: NDArray[np.bool_] = votes >= share * N_READERS
    return enough


def _contour(region: ElementTree.Element) -> Contour:
    points = []
    for edge in region.findall("{*}edgeMap"):
        points.append([int(_text(edge, "xCoord")), int(_text(edge, "yCoord"))])
    inclusion = region.findtext("{*}inclusion") or "TRUE"
    return Contour(
        z=float(_text(region, "imageZposition")),
        is_inside=inclusion.strip().upper() == "TRUE",
        points=np.array(points, dtype=np.int64).reshape(-1, 2),
    )


def _text(element: ElementTree.Element, name: str) -> str:
    text = element.findtext(f"{{*}}{name}")
    if text is None:
        raise ValueError(f"no {name}")
    return text


def _distance(nodule: Nodule, centres: NDArray[np.float64]) -> float:
    """Compute the distance in voxels from a nodule's mean contour point to the nearest centre.

    Infinite without centres.
    """
    points = []
    for contour in nodule:
        z = np.full(len(contour.points), contour.z)
        points.append(np.c_[contour.points, z])
    mean_point = np.concatenate(points).mean(axis=0)
    return float(min(np.linalg.norm(centres - mean_point, axis=1), default=np.inf))


def _draw(nodule: Nodule, mask: NDArray[np.bool_]) -> None:
    """Fill outlines, their pixels included, in a mask (X, Y, Z), in place; then cut out holes."""
    # Holes last: False sorts before True.
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
    """List the pixels inside an outline, and those on it."""
    from skimage.draw import polygon, polygon_perimeter

    x, y = points.T
    # A nodule below 3 mm is a single point, which polygon leaves empty.
    if len(points) < 3:
        inside = (x >= 0) & (x < shape[0]) & (y >= 0) & (y < shape[1])
        return [(x[inside], y[inside])]
    return [polygon(x, y, shape), polygon_perimeter(x, y, shape, clip=False)]
