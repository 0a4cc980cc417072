"""One case to walk through in three planes: NiiVue and the case, both inside the page."""

from __future__ import annotations

import base64
import json
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tversky_seg.data.nifti import write_volume
from tversky_seg.metrics.masks import Mask
from tversky_seg.report.slices import (
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    ShownCase,
    drawn_box,
    to_grey,
)

LARGEST_BYTES = 5_000_000
"""Size of a case in the page, as text."""
COARSENESS = (1, 2, 4, 8)
TRUE_POSITIVE_COLOUR = (0, 158, 115)
COLOURS = {
    "true positive": TRUE_POSITIVE_COLOUR,
    "false negative": REFERENCE_COLOUR,
    "false positive": PREDICTION_COLOUR,
}
ASSETS = files("tversky_seg.report") / "assets"


@dataclass(frozen=True)
class Viewer:
    """The parts of the viewer that the page's template fills in."""

    case_id: str
    classes: tuple[str, ...]
    step: int
    """One voxel in `step` along each axis is shown."""
    case_json: str
    """Volumes and colours, safe inside a script element."""
    program: str
    """NiiVue, gzipped, in base64."""
    script: str
    """The script that unpacks both."""

    @property
    def colours(self) -> dict[str, tuple[int, int, int]]:
        """Colour of each kind of voxel."""
        return COLOURS


def make_viewer(case: ShownCase, *, largest_bytes: int = LARGEST_BYTES) -> Viewer:
    """Pack a case for the viewer.

    The image is cropped to its content and stored in 8 bits. If it is still larger than
    `largest_bytes`, one voxel in 2 (4, 8) along each axis is shown, and the page says so.
    """
    box = drawn_box(case.image, case.prediction, case.reference)
    grey = to_grey(case.image[box])
    overlays = _overlays(case, box)
    # The cropped volumes lie where they were: their first voxel is that of the box.
    x, y, z = (part.start or 0 for part in box)
    origin_mm = case.affine @ np.array([x, y, z, 1.0])
    # The page has to stay small enough to be sent by mail.
    for step in COARSENESS:
        axes = case.affine[:, :3] * step
        affine = np.column_stack([axes, origin_mm])
        image = _nifti(grey, affine, step=step)
        masks: list[str] = []
        for overlay in overlays:
            masks.append(_nifti(overlay, affine, step=step))
        if len(image) + sum(map(len, masks)) <= largest_bytes:
            break
    first_look = _first_look(case.prediction, case.reference)
    start_mm = case.affine @ np.append(first_look, 1.0)
    content = {
        "image": image,
        "overlays": masks,
        "colours": _colour_map(),
        "start_mm": start_mm[:3].tolist(),
    }
    return Viewer(
        case_id=case.case_id,
        classes=case.classes,
        step=step,
        # No "</script>" may end the element early.
        case_json=json.dumps(content).replace("<", "\\u003c"),
        program=_base64((ASSETS / "niivue.umd.js.gz").read_bytes()),
        script=(ASSETS / "viewer.js").read_text(encoding="utf-8"),
    )


def _overlays(case: ShownCase, box: tuple[slice, slice, slice]) -> list[NDArray[np.uint8]]:
    """Number the voxels of each class: 1 false negative, 2 false positive, 3 true positive."""
    overlays: list[NDArray[np.uint8]] = []
    for prediction, reference in zip(case.prediction, case.reference, strict=True):
        # 1 for the reference plus 2 for the prediction: 3 where both are.
        numbers = reference[box] + 2 * prediction[box].astype(np.uint8)
        overlays.append(numbers)
    return overlays


def _colour_map() -> dict[str, list[int]]:
    """Give the channels of the colours in the order of the overlays' numbers."""
    background = (0, 0, 0)
    colours = [background, REFERENCE_COLOUR, PREDICTION_COLOUR, TRUE_POSITIVE_COLOUR]
    channels: dict[str, list[int]] = {}
    for k, channel in enumerate("RGB"):
        channels[channel] = [colour[k] for colour in colours]
    return channels


def _first_look(prediction: Mask, reference: Mask) -> NDArray[np.int64]:
    """Choose the voxel to start at: amid the errors of the slice that has most of them.

    Without errors it lies amid the lesions, without lesions in the middle of the volume.
    """
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


def _nifti(volume: NDArray[np.uint8], affine: ArrayLike, *, step: int) -> str:
    """Store one voxel in `step` along each axis as a NIfTI file, in base64."""
    coarse = volume[::step, ::step, ::step]
    # NiiVue reads NIfTI files, and nibabel writes files.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.nii.gz"
        write_volume(path, np.ascontiguousarray(coarse), affine)
        return _base64(path.read_bytes())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
