"""Slices of a case with what was found, missed and invented, for the report."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import resample
from tversky_seg.data.nifti import Volume, ras_grid, read_label, read_volume, spacing_of
from tversky_seg.metrics.masks import Mask, bounding_box
from tversky_seg.metrics.surface import surface

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tversky_seg.evaluation.saved_predictions import Predictions

REFERENCE_COLOUR, PREDICTION_COLOUR = (
    (0, 190, 255),
    (255, 130, 0),
)  # told apart by colour-blind readers too
FILLED = 0.3  # how much of the colour a missed or invented voxel takes
PICTURE_WIDTH = 480  # pixels, about, of one slice
logger = logging.getLogger("tversky_seg")


@dataclass(frozen=True, eq=False)
class ShownCase:
    """One case as it is drawn: along R, A, S, on the grid of its label."""

    case_id: str
    image: NDArray[Any]
    """(X, Y, Z) its first modality; 0 where it is not to be had on this grid."""
    prediction: Mask
    """(K, X, Y, Z), one mask per class."""
    reference: Mask
    """(K, X, Y, Z)."""
    classes: tuple[str, ...]
    """The K names."""
    affine: NDArray[np.float64]
    """(4, 4) voxels -> mm."""


def choose_cases(metrics: Mapping[str, Any], *, viewed: str = "worst") -> dict[str, str]:
    """Which cases tell most: title -> case_id.

    Lowest and highest Dice (mean over classes) among the cases with lesion, and, apart from them, the lesion-free case
    with most false volume.

    Args:
        metrics: What metrics.json holds.
        viewed: A case_id is chosen as well where it was judged; "worst" and "none" add nothing.
    """
    dice: dict[str, float] = {}
    invented: dict[str, float] = {}
    for case in metrics["cases"]:
        rows = [value for value in case.values() if isinstance(value, Mapping)] or [case]
        if any(row["reference_volume_mm3"] for row in rows):
            dice[case["case_id"]] = float(
                np.mean([row["dice"] for row in rows if row["dice"] is not None])
            )
        else:
            invented[case["case_id"]] = float(sum(row["predicted_volume_mm3"] for row in rows))
    ranked = sorted(dice, key=lambda case: dice[case])
    chosen = {f"Lowest Dice ({dice[case]:.3f})": case for case in ranked[:1]}
    chosen |= {f"Highest Dice ({dice[case]:.3f})": case for case in ranked[1:][-1:]}
    if invented:
        chosen["Lesion-free case with most false volume"] = max(
            invented, key=lambda case: invented[case]
        )
    if viewed not in ("worst", "none", *chosen.values()):
        chosen |= {"Chosen case": viewed} if viewed in dice or viewed in invented else {}
    return chosen


def viewed_case(chosen: Mapping[str, str], viewer: str) -> str | None:
    """The case_id to be walked through: the first chosen for "worst", none for "none", else the one named."""
    return {"worst": next(iter(chosen.values()), None), "none": None}.get(viewer, viewer)


def show_case(case: Case, source: Predictions) -> ShownCase:
    """Read a judged case and turn it upright."""
    assert case.label is not None
    reference = read_label(case.label)
    shape, affine = ras_grid(reference.shape, reference.affine)
    prediction = [source.read(case, name, reference=reference).mask for name in source.classes]
    target = [np.isin(reference.data, values) for values in source.classes.values()]
    image, *masks = (
        resample(data, reference.affine, affine, shape)
        for data in (_background(case, reference), *prediction, *target)
    )
    n = len(target)
    return ShownCase(
        case.case_id, image, np.stack(masks[:n]), np.stack(masks[n:]), tuple(source.classes), affine
    )


def slice_pictures(
    image: NDArray[Any], prediction: Mask, reference: Mask, *, spacing_mm: Sequence[float]
) -> dict[str, NDArray[np.uint8]]:
    """Up to three axial slices of a case: where most is reference, most is missed, and most is invented.

    Args:
        image: (X, Y, Z) along R, A, S.
        prediction: (K, X, Y, Z) masks, one per class.
        reference: masks of the same shape.
        spacing_mm: voxel size.

    Returns:
        Caption -> the bare slice beside the outlined one (see `outline`); the middle slice where both masks are empty.
    """
    areas = {
        "most reference": reference,
        "most missed": reference & ~prediction,
        "most invented": prediction & ~reference,
    }
    shown: dict[int, list[str]] = {}
    for caption, masks in areas.items():
        if masks.any():
            shown.setdefault(int(masks.sum(axis=(0, 1, 2)).argmax()), []).append(caption)
    box = drawn_box(image, prediction, reference)[:2]
    pictures = {}
    for z, captions in (
        shown or {image.shape[2] // 2: ["nothing there, nothing predicted"]}
    ).items():
        at = (*box, z)
        found, there = prediction[(slice(None), *at)], reference[(slice(None), *at)]
        nothing = np.zeros_like(found)
        both = [
            outline(image[at], *masks, pixel_mm=spacing_mm[:2])
            for masks in ((nothing, nothing), (found, there))
        ]
        pictures[f"slice {z}: {', '.join(captions)}"] = np.concatenate(both, axis=1)
    return pictures


def drawn_box(image: NDArray[Any], prediction: Mask, reference: Mask) -> tuple[slice, slice, slice]:
    """The box that holds all of an image but its background, and all masks."""
    drawn: Mask = np.asarray((prediction | reference).any(axis=0))
    if np.ptp(image):
        drawn |= image != image.flat[0]
    x, y, z = bounding_box(drawn) if drawn.any() else (slice(None),) * 3
    return x, y, z


def outline(
    image: NDArray[Any],
    prediction: Mask,
    reference: Mask,
    *,
    pixel_mm: Sequence[float] = (1.0, 1.0),
) -> NDArray[np.uint8]:
    """A slice as a picture with the outlines of the reference (blue, wide) and the prediction (orange, narrow).

    What is missed is tinted blue and what is invented orange.

    Args:
        image: (X, Y), x to the right and y up in the picture.
        prediction: (K, X, Y) masks, one per class.
        reference: masks of the same shape.
        pixel_mm: size of a pixel along x and y.

    Returns:
        (height, width, 3) uint8, several pixels for one of the slice.
    """
    unit = PICTURE_WIDTH / max(n * size for n, size in zip(image.shape, pixel_mm, strict=True))
    zoom_x, zoom_y = (max(1, round(unit * size)) for size in pixel_mm)

    def upright(part: NDArray[Any]) -> NDArray[Any]:
        return part.repeat(zoom_x, axis=0).repeat(zoom_y, axis=1).T[::-1]

    picture: NDArray[np.uint8] = np.repeat(upright(to_grey(image))[..., None], 3, axis=2)
    for colour, masks in (
        (REFERENCE_COLOUR, reference & ~prediction),
        (PREDICTION_COLOUR, prediction & ~reference),
    ):
        inside = upright(np.asarray(masks.any(axis=0)))
        picture[inside] = ((1 - FILLED) * picture[inside] + FILLED * np.array(colour)).astype(
            np.uint8
        )
    for mask in map(upright, reference):
        rim = surface(mask)
        picture[rim | surface(mask & ~rim)] = REFERENCE_COLOUR
    for mask in map(upright, prediction):
        picture[surface(mask)] = PREDICTION_COLOUR
    return picture


def png(picture: Figure | NDArray[np.uint8]) -> bytes:
    """A figure, or an array (height, width, 3), as a PNG file."""
    buffer = io.BytesIO()
    if isinstance(picture, np.ndarray):
        from matplotlib.image import imsave

        imsave(buffer, picture, format="png")
    else:
        picture.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def to_grey(image: NDArray[Any]) -> NDArray[np.uint8]:
    """The image from its 1st to its 99.5th percentile as 0 to 255; black where it is constant."""
    low, high = np.percentile(image, (1, 99.5))
    if not high > low:
        return np.zeros(image.shape, np.uint8)
    scaled: NDArray[np.uint8] = (255 * ((image - low) / (high - low)).clip(0, 1)).astype(np.uint8)
    return scaled


def spacing_of_case(case: ShownCase) -> tuple[float, ...]:
    """Voxel size in mm along R, A, S."""
    return tuple(spacing_of(case.affine))


def _background(case: Case, reference: Volume) -> NDArray[Any]:
    """The case's first image, or nothing where it is not to be had on this grid."""
    path: Path | None = next(iter(case.images.values()), None)
    if path is not None:
        try:
            image = read_volume(path)
        except DataError as fault:
            logger.warning("no picture of case %s: %s", case.case_id, fault)
        else:
            if image.shape == reference.shape:
                return image.data
    return np.zeros(reference.shape, np.float32)
