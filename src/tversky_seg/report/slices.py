"""Axial slices of a case as pictures: reference and prediction outlined, errors tinted."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tversky_seg.data.affines import spacing_of
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.metrics.masks import Mask, bounding_box
from tversky_seg.metrics.surface import surface

# Colour-blind readers tell these apart, from each other and from the grey of the image.
REFERENCE_COLOUR = (0, 190, 255)
PREDICTION_COLOUR = (255, 130, 0)
TINT = 0.3
"""Share of the colour in a false negative or false positive voxel."""
PICTURE_WIDTH = 480
"""Width of a slice in pixels, roughly."""
LARGEST_SAMPLE = 500_000
"""Voxels, roughly, of which the percentiles of an image are taken."""
Picture = NDArray[np.uint8]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class ShownCase:
    """One case to draw: along R, A, S, on the grid of its label."""

    case_id: str
    images: Mapping[str, NDArray[Any]]
    """Name of a modality -> (X, Y, Z); not empty. The slices show the first of them."""
    prediction: Mask
    """(K, X, Y, Z), one mask per class."""
    reference: Mask
    """(K, X, Y, Z)."""
    classes: tuple[str, ...]
    """The K names."""
    affine: NDArray[np.float64]
    """(4, 4) voxels -> mm."""

    @property
    def image(self) -> NDArray[Any]:
        """(X, Y, Z) of the first modality."""
        return next(iter(self.images.values()))

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel size along R, A, S."""
        return tuple(spacing_of(self.affine))


def rank_cases(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Map case ids to Dice (mean over classes), lowest first; cases without a lesion are left out.

    Args:
        metrics: Content of metrics.json.
    """
    dice: dict[str, float] = {}
    for case in metrics["cases"]:
        rows = _rows_by_class(case)
        if any(row["reference_volume_mm3"] for row in rows):
            defined = [row["dice"] for row in rows if row["dice"] is not None]
            dice[case["case_id"]] = float(np.mean(defined))
    ranked = sorted(dice, key=lambda case_id: dice[case_id])
    return {case_id: dice[case_id] for case_id in ranked}


def rank_lesion_free_cases(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Map ids of cases without a lesion to the predicted volume in mm³, largest first.

    Args:
        metrics: Content of metrics.json.
    """
    false_mm3: dict[str, float] = {}
    for case in metrics["cases"]:
        rows = _rows_by_class(case)
        if not any(row["reference_volume_mm3"] for row in rows):
            false_mm3[case["case_id"]] = float(sum(row["predicted_volume_mm3"] for row in rows))
    ranked = sorted(false_mm3, key=lambda case_id: -false_mm3[case_id])
    return {case_id: false_mm3[case_id] for case_id in ranked}


def _rows_by_class(case: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """List a case's metrics of each class.

    {"case_id": "a", "dice": 0.7, …}, or {"case_id": "a", "liver": {"dice": 0.9, …}, …}.
    """
    by_class = [value for value in case.values() if isinstance(value, Mapping)]
    return by_class or [case]


def choose_cases(metrics: Mapping[str, Any], *, viewed: str = "worst") -> dict[str, str]:
    """Choose the most telling cases for slices: case_id -> title.

    Lowest and highest Dice (mean over classes) among the cases with a lesion and, among those
    without, the case with the largest false-positive volume.

    Args:
        metrics: Content of metrics.json.
        viewed: Case to add, if it was evaluated; "worst" and "none" add nothing.
    """
    dice = rank_cases(metrics)
    ranked = list(dice)
    lesion_free = list(rank_lesion_free_cases(metrics))
    chosen: dict[str, str] = {}
    if ranked:
        chosen[ranked[0]] = f"Lowest Dice ({dice[ranked[0]]:.3f})"
    if len(ranked) > 1:
        chosen[ranked[-1]] = f"Highest Dice ({dice[ranked[-1]]:.3f})"
    if lesion_free:
        chosen[lesion_free[0]] = "Lesion-free case with the largest false-positive volume"
    # A case of another name was warned of before.
    if viewed in (*ranked, *lesion_free):
        chosen.setdefault(viewed, "Chosen case")
    return chosen


def cases_to_view(metrics: Mapping[str, Any], *, viewed: str, most: int) -> list[str]:
    """List the ids of the cases in the viewer: lowest Dice first, then those without a lesion.

    Args:
        metrics: Content of metrics.json.
        viewed: Case that is shown first, "worst" for the first of the list, "none" for no viewer.
        most: Number of cases at most. The cases whose slices are drawn are always among them.
    """
    if viewed == "none":
        return []
    ranked = [*rank_cases(metrics), *rank_lesion_free_cases(metrics)]
    remaining = set(choose_cases(metrics, viewed=viewed))
    for case_id in ranked:
        if len(remaining) >= most:
            break
        remaining.add(case_id)
    return [case_id for case_id in ranked if case_id in remaining]


def slice_pictures(
    image: NDArray[Any], prediction: Mask, reference: Mask, *, spacing_mm: Sequence[float]
) -> dict[str, Picture]:
    """Draw up to three axial slices of a case: most lesion, most missed, most false positive.

    Args:
        image: (X, Y, Z) along R, A, S.
        prediction: (K, X, Y, Z) masks, one per class.
        reference: Masks of the same shape.
        spacing_mm: Voxel size.

    Returns:
        Caption -> the bare slice next to the outlined one (see `outline`); the middle slice where
        both masks are empty.
    """
    captions = _captions_by_slice(prediction, reference)
    if not captions:
        middle = image.shape[2] // 2
        captions = {middle: ["no lesion, nothing predicted"]}
    box_x, box_y, _ = drawn_box(image, prediction, reference)
    pictures: dict[str, Picture] = {}
    for z, texts in captions.items():
        predicted = prediction[:, box_x, box_y, z]
        true = reference[:, box_x, box_y, z]
        nothing = np.zeros_like(predicted)
        grey = image[box_x, box_y, z]
        # The bare slice shows what the outlines cover.
        bare = outline(grey, nothing, nothing, pixel_mm=spacing_mm[:2])
        outlined = outline(grey, predicted, true, pixel_mm=spacing_mm[:2])
        pictures[f"slice {z}: {', '.join(texts)}"] = np.concatenate([bare, outlined], axis=1)
    return pictures


def _captions_by_slice(prediction: Mask, reference: Mask) -> dict[int, list[str]]:
    """Find the slices with the largest areas: {12: ["largest lesion area"], 20: [...]}."""
    masks = {
        "largest lesion area": reference,
        "largest missed area": reference & ~prediction,
        "largest false-positive area": prediction & ~reference,
    }
    captions: dict[int, list[str]] = {}
    for caption, mask in masks.items():
        if mask.any():
            area_by_slice = mask.sum(axis=(0, 1, 2))
            z = int(area_by_slice.argmax())
            # One slice may be the first in several respects.
            captions.setdefault(z, []).append(caption)
    return captions


def drawn_box(image: NDArray[Any], prediction: Mask, reference: Mask) -> Box:
    """Find the box around all masks and all of an image but its background."""
    drawn = _in_any_class(prediction | reference)
    if np.ptp(image):
        # The corner voxel is background.
        drawn |= image != image.flat[0]
    if not drawn.any():
        return slice(None), slice(None), slice(None)
    x, y, z = bounding_box(drawn)
    return x, y, z


def outline(
    image: NDArray[Any],
    prediction: Mask,
    reference: Mask,
    *,
    pixel_mm: Sequence[float] = (1.0, 1.0),
) -> Picture:
    """Draw a slice with outlines of the reference (blue, wide) and the prediction (orange, narrow).

    False negative voxels are tinted blue, false positive ones orange.

    Args:
        image: (X, Y), x to the right and y up in the picture.
        prediction: (K, X, Y) masks, one per class.
        reference: Masks of the same shape.
        pixel_mm: Size of a pixel along x and y.

    Returns:
        (height, width, 3), several pixels for one of the slice.
    """
    n_x, n_y = image.shape
    x_mm, y_mm = pixel_mm
    pixels_per_mm = PICTURE_WIDTH / max(n_x * x_mm, n_y * y_mm)
    # Whole numbers keep voxels sharp; a voxel of 1 x 3 mm is three times as high as wide.
    zoom_x = max(1, round(pixels_per_mm * x_mm))
    zoom_y = max(1, round(pixels_per_mm * y_mm))

    def upright(part: NDArray[Any]) -> NDArray[Any]:
        enlarged = part.repeat(zoom_x, axis=0).repeat(zoom_y, axis=1)
        # Rows of a picture run down, y runs up.
        return enlarged.T[::-1]

    picture = _as_rgb(upright(to_grey(image)))
    false_negative = _in_any_class(reference & ~prediction)
    false_positive = _in_any_class(prediction & ~reference)
    _tint(picture, upright(false_negative), REFERENCE_COLOUR)
    _tint(picture, upright(false_positive), PREDICTION_COLOUR)
    for mask in reference:
        region = upright(mask)
        rim = surface(region)
        # Two rims wide, so that it shows beside the narrow prediction.
        second_rim = surface(region & ~rim)
        picture[rim | second_rim] = REFERENCE_COLOUR
    for mask in prediction:
        picture[surface(upright(mask))] = PREDICTION_COLOUR
    return picture


def thumbnail(case: PreparedCase) -> bytes:
    """Draw a small PNG of a prepared case, in which a flip or a shifted label is seen at a glance.

    It shows the axial slice with most lesion (the middle one without), the first channel, and
    lesions outlined. The patient's left is on the left, anterior is up; one pixel is one voxel.
    """
    lesions: Mask = np.zeros(case.geometry.shape, dtype=bool)
    if case.target is not None:
        lesions = _in_any_class(case.target)
    z = lesions.shape[2] // 2
    area_by_slice = lesions.sum(axis=(0, 1))
    if area_by_slice.any():
        z = int(area_by_slice.argmax())
    image = case.image[0, :, :, z].astype(np.float32)
    brain = case.foreground[:, :, z]
    picture = _as_rgb(_grey_inside(image, brain))
    inside = lesions[..., z]
    rim = inside & ~ndimage.binary_erosion(inside)
    picture[rim] = PREDICTION_COLOUR
    # Rows of a picture run down, y runs up.
    upright = picture.transpose(1, 0, 2)[::-1]
    return as_png(np.ascontiguousarray(upright))


def as_png(picture: Picture) -> bytes:
    """Encode a picture (height, width, 3) as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def to_grey(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale an image from its 1st to its 99.5th percentile to 0..255; black where constant."""
    # A few bright vessels or spikes would otherwise darken all the rest.
    # Of a volume every n-th voxel tells as much.
    sample = image.ravel()[:: max(1, image.size // LARGEST_SAMPLE)]
    low, high = np.percentile(sample, (1, 99.5))
    if not high > low:
        return np.zeros(image.shape, np.uint8)
    share = (image - np.float32(low)) / np.float32(high - low)
    scaled = 255 * share.clip(0, 1)
    grey: NDArray[np.uint8] = scaled.astype(np.uint8)
    return grey


def _grey_inside(image: NDArray[Any], brain: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Scale an image by the intensities inside a mask, and blacken the rest."""
    low, high = 0.0, 1.0
    if brain.any():
        low, high = np.percentile(image[brain], (1, 99.5))
    share = (image - low) / max(high - low, 1e-6)
    scaled = 255 * share.clip(0, 1)
    grey: NDArray[np.uint8] = (scaled * brain).astype(np.uint8)
    return grey


def _in_any_class(masks: NDArray[Any]) -> Mask:
    """Join masks (K, …) of classes into one mask (…)."""
    joined: Mask = np.asarray(masks.any(axis=0))
    return joined


def _as_rgb(grey: NDArray[np.uint8]) -> Picture:
    return np.repeat(grey[..., None], 3, axis=2)


def _tint(picture: Picture, mask: NDArray[Any], colour: tuple[int, int, int]) -> None:
    """Mix a colour into the masked pixels of a picture, in place."""
    grey = picture[mask]
    mixed = (1 - TINT) * grey + TINT * np.array(colour)
    picture[mask] = mixed.astype(np.uint8)
