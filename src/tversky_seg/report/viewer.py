"""Cases to walk through in three planes, packed into the page: images as WebP, lesions numbered."""

from __future__ import annotations

import base64
import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.metrics.components import Components, find_components
from tversky_seg.metrics.lesion_rule import (
    LesionRule,
    detected_lesions,
    match_by_rule,
    matched_lesions,
)
from tversky_seg.metrics.masks import Mask, bounding_box
from tversky_seg.report.slices import Box, ShownCase, drawn_box, to_grey

N_CASES = 20
"""Cases in the viewer of a page, at most."""
PAGE_BYTES = 24_000_000
"""Size of all cases of a page together, as text."""
CASE_BYTES = 6_000_000
"""Size of one case, as text."""
N_MODALITIES = 4
MOST_VOXELS = 16_000_000
"""Voxels of an image, so that a telephone can hold them."""
COARSENESS = (1, 2, 3, 4, 6, 8)
QUALITY = 75
"""Of WebP, in percent: errors of 1 or 2 grey levels of 256."""
SHEET_WIDTH = 2048
"""Width in pixels of a picture of many slices, roughly."""
ASSETS = files("tversky_seg.report") / "assets"


@dataclass(frozen=True)
class PackedCase:
    """A case in the page."""

    case_id: str
    content: str
    """JSON, safe inside a script element."""


@dataclass(frozen=True)
class ViewerCase:
    """A case in the list of the viewer."""

    case_id: str
    caption: str
    """Its text in the list: `p19: Dice 0.512`."""
    content: str
    """JSON, safe inside a script element."""


@dataclass(frozen=True)
class Viewer:
    """The parts of the viewer that the page's template fills in."""

    cases: list[ViewerCase]
    start: int
    """Index of the case that is shown first."""
    left_out: list[str]
    """Ids of evaluated cases that the page does not hold."""

    @property
    def script(self) -> str:
        """The program of the viewer."""
        return (ASSETS / "viewer.js").read_text(encoding="utf-8")


def pack_case(case: ShownCase, *, rule: LesionRule, largest_bytes: int = CASE_BYTES) -> PackedCase:
    """Pack a case for the viewer.

    Images are cropped to their content and stored in 8 bits; lesions are numbered by the rule. A
    case that is larger than `largest_bytes` is stored with voxels 2 (3, 4, …) times as large: mean
    intensities, and a lesion wherever one of the voxels holds it, so that none disappears.

    Args:
        case: Case along R, A, S.
        rule: Rule of what a lesion is and when it counts as detected.
        largest_bytes: Size of the case in the page.
    """
    box = drawn_box(case.image, case.prediction, case.reference)
    greys: dict[str, NDArray[np.uint8]] = {}
    for name, image in list(case.images.items())[:N_MODALITIES]:
        greys[name] = to_grey(image[box])
    classes = _classes(case, box, rule=rule)
    text = ""
    for step in COARSENESS:
        steps = _steps(case.spacing_mm, step)
        # Nothing is compressed in vain.
        if next(iter(greys.values())).size > MOST_VOXELS * int(np.prod(steps)):
            continue
        content = _content(case, box, greys, classes, steps=steps)
        # No "</script>" may end the element early.
        text = json.dumps(content).replace("<", "\\u003c")
        if len(text) <= largest_bytes:
            break
    return PackedCase(case.case_id, text)


def _content(
    case: ShownCase,
    box: Box,
    greys: dict[str, NDArray[np.uint8]],
    classes: list[dict[str, Any]],
    *,
    steps: Sequence[int],
) -> dict[str, Any]:
    """Lay out a case at one coarseness, as plain values for JSON."""
    # The first stored voxel is the middle of the first block of the box.
    first = np.array([part.start or 0 for part in box]) + (np.array(steps) - 1) / 2
    affine = case.affine @ np.diag([*steps, 1.0])
    affine[:3, 3] = (case.affine @ np.append(first, 1.0))[:3]
    images: list[dict[str, Any]] = []
    shape: Sequence[int] = ()
    for name, grey in greys.items():
        coarse = _block_mean(grey, steps)
        shape = coarse.shape
        images.append({"name": name, **_sheets(coarse)})
    stored: list[dict[str, Any]] = []
    for one in classes:
        entry: dict[str, Any] = {"name": one["name"]}
        for side in ("reference", "prediction"):
            numbers = _block_maximum(one[side], steps)
            # Mostly zeros: a fast level does.
            packed = gzip.compress(numbers.ravel(order="F").tobytes(), 4, mtime=0)
            voxels = np.array(one[f"{side}_voxels"], np.int64).reshape(-1, 3) // steps
            entry[side] = {
                "numbers": _base64(packed),
                "volume_mm3": one[f"{side}_mm3"],
                "matched": one[f"{side}_matched"],
                "voxels": voxels.tolist(),
            }
            shape = numbers.shape
        stored.append(entry)
    start = np.minimum(_first_look(case, box) // steps, np.array(shape) - 1)
    return {
        "case_id": case.case_id,
        "shape": list(shape),
        "affine": np.round(affine, 5).tolist(),
        "spacing_mm": [
            round(size * step, 5) for size, step in zip(case.spacing_mm, steps, strict=True)
        ],
        "steps": list(steps),
        "images": images,
        "classes": stored,
        "start": start.tolist(),
    }


def _classes(case: ShownCase, box: Box, *, rule: LesionRule) -> list[dict[str, Any]]:
    """Number the lesions of each class inside the box, and list what the rule says of them."""
    classes: list[dict[str, Any]] = []
    for name, whole_prediction, whole_reference in zip(
        case.classes, case.prediction, case.reference, strict=True
    ):
        prediction = np.ascontiguousarray(whole_prediction[box])
        reference = np.ascontiguousarray(whole_reference[box])
        # In the same box as the match, where the lesions get the same numbers.
        inner = bounding_box(prediction | reference)
        predicted_mask = np.ascontiguousarray(prediction[inner])
        reference_mask = np.ascontiguousarray(reference[inner])
        match = match_by_rule(predicted_mask, reference_mask, spacing_mm=case.spacing_mm, rule=rule)
        entry: dict[str, Any] = {"name": name}
        sides = (
            ("prediction", predicted_mask, match.predicted, matched_lesions(match, rule)),
            ("reference", reference_mask, match.reference, detected_lesions(match, rule)),
        )
        for side, mask, lesions, is_matched in sides:
            found = _counted(mask, spacing_mm=case.spacing_mm, rule=rule)
            assert len(found) == len(lesions)
            numbers = np.zeros(prediction.shape, np.uint16)
            labels = found.labels.reshape(found.shape, order=found.order)
            # Numbers beyond 16 bits, which no reader visits, share the last one.
            numbers[inner] = np.minimum(labels, np.iinfo(np.uint16).max)
            corner = [part.start or 0 for part in inner]
            entry[side] = numbers
            entry[f"{side}_mm3"] = [round(float(size), 2) for size in lesions.volume_mm3]
            entry[f"{side}_matched"] = [int(value) for value in is_matched]
            entry[f"{side}_voxels"] = (_central_voxels(found) + corner).tolist()
        classes.append(entry)
    return classes


def _counted(mask: Mask, *, spacing_mm: Sequence[float], rule: LesionRule) -> Components:
    """Find the lesions that the rule counts, numbered as in the match."""
    lesions = find_components(mask, connectivity=rule.connectivity, order="C")
    volume_mm3 = lesions.n_voxels * float(np.prod(spacing_mm))
    if rule.strictly_larger:
        return lesions.select(volume_mm3 > rule.min_volume_mm3)
    return lesions.select(volume_mm3 >= rule.min_volume_mm3)


def _central_voxels(lesions: Components) -> NDArray[np.int64]:
    """Find for each lesion its voxel (n, 3) nearest to its centre, which may lie outside it."""
    voxels = np.stack(np.unravel_index(lesions.positions, lesions.shape), axis=-1)
    offsets = voxels - lesions.centres()[lesions.rows]
    squared_distance = (offsets**2).sum(axis=1)
    # Sorted by lesion, then by distance: the first row of each lesion is its central voxel.
    order = np.lexsort((squared_distance, lesions.rows))
    _, first = np.unique(lesions.rows[order], return_index=True)
    return np.asarray(voxels[order[first]], np.int64)


def _steps(spacing_mm: Sequence[float], step: int) -> list[int]:
    """Make voxels `step` times as large, but leave axes alone whose voxels are larger already.

    (0.9, 0.9, 6.5) mm, step 2 -> [2, 2, 1].
    """
    target_mm = min(spacing_mm) * step
    return [max(1, round(target_mm / size)) for size in spacing_mm]


def _blocks(volume: NDArray[Any], steps: Sequence[int], *, mode: str) -> NDArray[Any]:
    """Split a volume into blocks: (X, Y, Z) -> (x, step, y, step, z, step)."""
    padding = [(0, -size % step) for size, step in zip(volume.shape, steps, strict=True)]
    padded = np.pad(volume, padding, mode=mode)  # type: ignore[call-overload]
    shape: list[int] = []
    for size, step in zip(padded.shape, steps, strict=True):
        shape += [size // step, step]
    blocks: NDArray[Any] = padded.reshape(shape)
    return blocks


def _block_mean(grey: NDArray[np.uint8], steps: Sequence[int]) -> NDArray[np.uint8]:
    if max(steps) == 1:
        return grey
    mean = _blocks(grey, steps, mode="edge").mean(axis=(1, 3, 5), dtype=np.float32)
    rounded: NDArray[np.uint8] = mean.round().astype(np.uint8)
    return rounded


def _block_maximum(numbers: NDArray[np.uint16], steps: Sequence[int]) -> NDArray[np.uint16]:
    if max(steps) == 1:
        return numbers
    highest: NDArray[np.uint16] = _blocks(numbers, steps, mode="constant").max(axis=(1, 3, 5))
    return highest


def _sheets(grey: NDArray[np.uint8]) -> dict[str, Any]:
    """Lay the axial slices side by side in pictures, row after row, and compress these.

    Returns:
        {"columns": slices in a row, "per_sheet": slices in a picture, "sheets": [base64, …]}.
    """
    from PIL import Image

    n_x, n_y, n_z = grey.shape
    columns = max(1, min(n_z, SHEET_WIDTH // n_x))
    rows = max(1, SHEET_WIDTH // n_y)
    per_sheet = columns * rows
    sheets: list[str] = []
    for first in range(0, n_z, per_sheet):
        part = grey[:, :, first : first + per_sheet]
        n_rows = -(-part.shape[2] // columns)
        tiles = np.zeros((n_rows * columns, n_y, n_x), np.uint8)
        tiles[: part.shape[2]] = part.transpose(2, 1, 0)
        grid = tiles.reshape(n_rows, columns, n_y, n_x).transpose(0, 2, 1, 3)
        picture = grid.reshape(n_rows * n_y, columns * n_x)
        buffer = io.BytesIO()
        # Method 0 is ten times as fast as the default, and its files a fifth larger.
        Image.fromarray(picture).save(buffer, format="webp", quality=QUALITY, method=0)
        sheets.append(_base64(buffer.getvalue()))
    return {"columns": columns, "per_sheet": per_sheet, "sheets": sheets}


def _first_look(case: ShownCase, box: Box) -> NDArray[np.int64]:
    """Choose the voxel of the box to start at: amid the errors of the slice with most of them.

    Without errors it lies amid the lesions, without lesions in the middle of the volume.
    """
    prediction = case.prediction[(slice(None), *box)]
    reference = case.reference[(slice(None), *box)]
    # Errors are the voxels in which the masks differ.
    marked: Mask = np.asarray((prediction ^ reference).any(axis=0))
    if not marked.any():
        marked = np.asarray(reference.any(axis=0))
    if not marked.any():
        return np.array(marked.shape) // 2
    area_by_slice = marked.sum(axis=(0, 1))
    z = int(area_by_slice.argmax())
    voxels = np.argwhere(marked[:, :, z])
    # The marked voxel nearest to their mean: the mean itself may lie between two errors.
    offsets = voxels - voxels.mean(axis=0)
    squared_distance = (offsets**2).sum(axis=1)
    x, y = voxels[squared_distance.argmin()]
    return np.array([x, y, z])


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
