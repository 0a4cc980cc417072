"""Changes of a scan as another examination brings them: pose, field, noise, resolution, contrast.

Changes of place and resolution come with the way back, so that predictions are compared on the grid
of the scan itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import resample, translation
from tversky_seg.data.nifti import Volume
from tversky_seg.data.preprocessing.modality import background_of

Affine = NDArray[np.float64]
MISSING = "missing"
FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))


@dataclass(frozen=True)
class ChangeSettings:
    """Which changes are made, and how strongly; each number is a change of its own, () is none.

    Attributes:
        rotation_deg: Rotation of the head about an axis that is drawn for each case.
        shift_voxels: Shift along all three axes, in voxels of the first modality.
        bias_field: Largest logarithm of a smooth factor: 0.3 makes intensities 26 % lower to 35 %
            higher.
        noise: Standard deviation of Gaussian noise, in ranges of intensity (1st to 99th
            percentile).
        blur_mm: Full width at half maximum of a Gaussian.
        gamma: Exponent of the intensities from 0 (lowest) to 1 (highest).
        slice_mm: Thickness of slices along the axis nearest to head-foot, by averaging slices.
        missing_modality: Whether each modality is left out in turn, where there are several.

    Raises:
        DataError: A number is out of its range.
    """

    rotation_deg: Sequence[float] = (5.0,)
    shift_voxels: Sequence[float] = (0.5,)
    bias_field: Sequence[float] = (0.3,)
    noise: Sequence[float] = (0.05,)
    blur_mm: Sequence[float] = (2.0,)
    gamma: Sequence[float] = (0.7, 1.5)
    slice_mm: Sequence[float] = (3.0,)
    missing_modality: bool = True

    def __post_init__(self) -> None:
        for name in severities_of(self):
            values = getattr(self, name)
            if isinstance(values, int | float):
                values = (values,)
            # From YAML they come as lists.
            object.__setattr__(self, name, tuple(values or ()))
            for value in getattr(self, name):
                if not 0 < value < math.inf:
                    raise DataError(f"changes.{name}", f"{value}", "expected numbers above 0")


@dataclass(frozen=True)
class ScanChange:
    """One change of a scan."""

    kind: str
    """Name of its setting, or "missing"."""
    severity: float | str
    """Number as set; of "missing" the modality."""

    @property
    def name(self) -> str:
        """As in tables: "rotation_deg=5", "missing=T1"."""
        if isinstance(self.severity, str):
            return f"{self.kind}={self.severity}"
        return f"{self.kind}={self.severity:g}"


def severities_of(settings: ChangeSettings) -> list[str]:
    """List the names of the settings that hold numbers."""
    return [field.name for field in fields(settings) if field.name != "missing_modality"]


def list_changes(settings: ChangeSettings, modalities: Sequence[str]) -> list[ScanChange]:
    """List the changes of the settings, in their order.

    Raises:
        DataError: There is none.
    """
    changes: list[ScanChange] = []
    for name in severities_of(settings):
        for severity in getattr(settings, name):
            changes.append(ScanChange(name, severity))
    if settings.missing_modality and len(modalities) > 1:
        for modality in modalities:
            changes.append(ScanChange(MISSING, modality))
    if not changes:
        raise DataError("changes", "none is set", "set one, as changes.rotation_deg=[5]")
    return changes


def pose_of(
    change: ScanChange,
    shape: Sequence[int],
    affine: Affine,
    *,
    rng: np.random.Generator,
) -> Affine:
    """Return the map (4, 4) in mm from a place in the changed scan to the same place before.

    Args:
        change: The change; the identity unless it moves the head.
        shape: Shape of the first modality.
        affine: (4, 4) of that grid. Rotations are about its centre.
        rng: Generator that draws the axis.
    """
    if change.kind == "shift_voxels":
        moved = affine @ translation(np.full(3, change.severity))
        return np.asarray(moved @ np.linalg.inv(affine))
    if change.kind != "rotation_deg":
        return np.eye(4)
    # Normal numbers point in all directions alike.
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    x, y, z = axis
    # Rodrigues: the cross product with the axis as a matrix.
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = math.radians(float(change.severity))
    rotation = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    centre = (affine @ [*((np.asarray(shape) - 1) / 2), 1])[:3]
    pose = np.eye(4)
    pose[:3, :3] = rotation
    pose[:3, 3] = centre - rotation @ centre
    return pose


def change_image(
    image: Volume, change: ScanChange, pose: Affine, *, rng: np.random.Generator
) -> Volume | None:
    """Change one modality.

    Voxels of the background keep its value, unless the head moves or slices are averaged.

    Args:
        image: The modality, float32.
        change: The change.
        pose: Map as of `pose_of`.
        rng: Generator of noise and field.

    Returns:
        The changed image, on its own grid or on that of thicker slices; None where its slices are
        as thick already.
    """
    if change.kind == "slice_mm":
        return thicken_slices(image, float(change.severity))
    background = background_of(image.data)
    if change.kind in ("rotation_deg", "shift_voxels"):
        # Where no value stands for the background, air is the darkest.
        fill = float(image.data.min()) if math.isnan(background) else background
        moved = resample(
            image.data, np.linalg.inv(pose) @ image.affine, image.affine, image.shape, fill=fill
        )
        return Volume(moved, image.affine)
    inside = np.ones(image.shape, dtype=bool)
    if not math.isnan(background):
        inside = image.data != background
    changed = _change_intensities(image, inside, change, rng=rng)
    data = np.where(inside, changed, image.data).astype(np.float32)
    return Volume(data, image.affine)


def change_mask(mask: Volume, change: ScanChange, pose: Affine) -> Volume:
    """Move a brain mask with its images; thicker slices keep it, as it is resampled to them."""
    moved = resample(
        mask.data.astype(np.float32), np.linalg.inv(pose) @ mask.affine, mask.affine, mask.shape
    )
    return Volume(moved > 0.5, mask.affine)


def undo(
    probability: NDArray[np.float32],
    affine: Affine,
    pose: Affine,
    *,
    original_affine: Affine,
    original_shape: Sequence[int],
) -> NDArray[np.float32]:
    """Bring the probability of a changed scan back to the grid and place of the scan itself.

    Args:
        probability: (X, Y, Z) on the grid of the changed scan.
        affine: (4, 4) of that grid.
        pose: Map as of `pose_of`.
        original_affine: (4, 4) of the scan.
        original_shape: Its shape.

    Returns:
        (X, Y, Z) of the scan, linearly interpolated; 0 where the changed scan showed nothing.
    """
    x, y, z = original_shape
    source_affine = pose @ affine
    resampled = resample(probability, source_affine, original_affine, (x, y, z))
    # Interpolation rounds, and later steps refuse 1.0000001.
    return np.asarray(np.clip(resampled, 0, 1), dtype=np.float32)


def thicken_slices(image: Volume, slice_mm: float) -> Volume | None:
    """Average neighbouring slices along the axis nearest to head-foot.

    Returns:
        Slices of the whole number of old ones that comes nearest to the thickness; None where that
        is one.
    """
    axis = int(np.argmax(np.abs(image.affine[2, :3])))
    n = round(slice_mm / image.spacing_mm[axis])
    if n < 2 or image.shape[axis] < n:
        return None
    slices = np.moveaxis(image.data, axis, 0)
    n_missing = -len(slices) % n
    # The last thick slice is filled up, rather than cut off with what it shows.
    padded = np.pad(slices, [(0, n_missing), (0, 0), (0, 0)], mode="edge")
    thick = padded.reshape(-1, n, *slices.shape[1:]).mean(axis=1, dtype=np.float32)
    # The centre of the first thick slice lies between the first n.
    step = np.eye(4)
    step[axis, axis] = n
    step[axis, 3] = (n - 1) / 2
    return Volume(np.moveaxis(thick, 0, axis), image.affine @ step)


def _change_intensities(
    image: Volume, inside: NDArray[np.bool_], change: ScanChange, *, rng: np.random.Generator
) -> NDArray[Any]:
    severity = float(change.severity)
    values = image.data[inside]
    if change.kind == "noise":
        low, high = np.percentile(values, (1, 99))
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        return np.asarray(image.data + np.float32(severity * (high - low)) * noise)
    if change.kind == "bias_field":
        # The field scales what lies above the background, which in CT is -1000 rather than 0.
        zero = np.float32(0 if inside.all() else background_of(image.data))
        field = smooth_field(image.shape, inside, rng=rng)
        return np.asarray((image.data - zero) * np.exp(severity * field) + zero)
    if change.kind == "gamma":
        low, high = float(values.min()), float(values.max())
        if low == high:
            return image.data
        share = np.clip((image.data - low) / (high - low), 0, 1)
        return np.asarray(low + (high - low) * share**severity)
    if change.kind == "blur_mm":
        sigma = severity / FWHM_PER_SIGMA / np.asarray(image.spacing_mm)
        return np.asarray(ndimage.gaussian_filter(image.data, sigma, mode="nearest"))
    raise ValueError(f"unknown change {change.kind!r}")


def smooth_field(
    shape: Sequence[int], inside: NDArray[np.bool_], *, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw a polynomial of second order over the volume, whose largest size within a mask is 1."""
    x, y, z = np.meshgrid(
        *(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True
    )
    terms = (x, y, z, x * y, x * z, y * z, x * x, y * y, z * z)
    field = np.zeros(tuple(shape), dtype=np.float32)
    for term in terms:
        field += np.float32(rng.normal()) * term
    # The mean stays, or the change would be one of brightness.
    field -= field[inside].mean(dtype=np.float64).astype(np.float32)
    largest = np.abs(field[inside]).max()
    return np.asarray(field / largest if largest > 0 else field)
