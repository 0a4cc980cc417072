"""One file of a case at a time onto the network's grid: checked, resampled, normalised, its lesions listed."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import (
    Affine,
    Bools,
    Floats,
    Shape,
    crop_or_pad,
    resample,
    translation,
    voxel_ratio,
)
from tversky_seg.data.nifti import Volume, affine_shift_voxels, read_label, read_volume

FINE_SHIFT = 0.01  # voxels between two affines of one grid: rounding
TOLERATED_SHIFT = 0.6  # voxels: half-voxel conventions; said, not corrected
MAX_DEVIATIONS = 20.0  # normalised intensities are cut here, so that one hot voxel does not coarsen the int16 steps


Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Reference:
    """Where the volumes of a case have to go.

    Attributes:
        modality: The first, whose grid the label shares and the predictions come back on.
        input_shape: Of its file.
        input_affine: (4, 4) of its file.
        shape: Of the network's grid before the crop.
        affine: (4, 4) of that.
    """

    modality: str
    input_shape: Shape
    input_affine: Affine
    shape: Shape
    affine: Affine

    def resampled(self, volume: Volume, *, fill: float = 0) -> NDArray[Any]:
        """The volume on the network's grid."""
        return resample(volume.data, volume.affine, self.affine, self.shape, fill=fill)


@dataclass(frozen=True)
class Channel:
    """One modality on the network's grid, where it is not background.

    Attributes:
        box: Around the foreground, in the grid.
        packed: The voxels in the box that are not background, eight to a byte.
        values: (X, Y, Z) int16 in the box; `values * scale` are the normalised intensities.
        outside: The value beyond the box.
        scale: As said.
    """

    box: Box
    packed: NDArray[np.uint8]
    values: NDArray[np.int16]
    outside: int
    scale: float

    @property
    def foreground(self) -> Bools:
        """(X, Y, Z) in the box."""
        return (
            np.unpackbits(self.packed, count=self.values.size).reshape(self.values.shape).view(bool)
        )

    def within(self, box: Box) -> NDArray[np.int16]:
        """The values in another box of the grid."""
        x, y, z = (new.start - own.start for new, own in zip(box, self.box, strict=True))
        i, j, k = (side.stop - side.start for side in box)
        return crop_or_pad(self.values, (x, y, z), (i, j, k), fill=self.outside)


def read_channel(
    path: Path,
    modality: str,
    reference: Reference,
    brain: Bools | None,
    normalization: str,
    notes: list[str],
    *,
    limits: tuple[float, float] | None = None,
) -> Channel:
    """Read, resample, normalise and quantise one modality, so that few float volumes are held at a time.

    Intensities are measured inside the brain mask, else where the image differs from its background.
    """
    values, foreground, box, background = _located(path, modality, reference, brain, notes)
    cut: tuple[float, float] | None = (-MAX_DEVIATIONS, MAX_DEVIATIONS)
    if normalization in ("percentile", "window"):
        assert limits is not None
        low, high = (
            limits if normalization == "window" else _percentiles(values[foreground], limits, path)
        )
        centre, width, cut = low, high - low, (0.0, 1.0)
    else:
        centre, width = _centre_and_width(values[foreground], normalization, path)
        cut = None if normalization == "none" else cut
    lowest, highest = (
        of.reduce(values, axis=None) for of in (np.fmin, np.fmax)
    )  # NaN beyond the field of view
    extremes = _normalised(np.array([lowest, highest, background]), centre, width, cut=cut)
    scale = max(float(extremes.max()), -float(extremes.min()), 1e-6) / 32767
    steps = np.empty(values.shape, dtype=np.int16)
    for slab, wanted in zip(values, steps, strict=True):  # one at a time: they are float64
        wanted[...] = np.rint(
            _normalised(slab.astype(np.float64), centre, width, cut=cut) / np.float32(scale)
        )
    outside = int(np.rint(extremes[2] / np.float32(scale)))
    return Channel(box, np.packbits(foreground), steps, outside, scale)


def _located(
    path: Path, modality: str, reference: Reference, brain: Bools | None, notes: list[str]
) -> tuple[Floats, Bools, Box, float]:
    """Values and foreground in the box around the foreground, this box, and the value beyond it (NaN: none)."""
    volume = _on_grid(read_volume(path), modality, path, reference, notes, strict=False)
    background = _background(volume.data) if brain is None else np.nan
    differs = None
    if not np.isnan(background):  # before the values, so that fewer volumes are held at a time
        differs = reference.resampled(Volume(volume.data != background, volume.affine)) > 0.5
    values = reference.resampled(volume, fill=background)
    if differs is None:
        differs = np.isfinite(values)
    foreground = differs if brain is None else brain & differs
    if not foreground.any():
        found = (
            "shows nothing of the brain"
            if np.isnan(background)
            else f"holds nothing but {background:g}"
        )
        raise DataError(
            path,
            f"{found}",
            f"expected {modality} of the body part that {reference.modality} shows",
        )
    box = bounding_box(foreground)
    return values[box], np.array(foreground[box], order="C"), box, background


def bounding_box(mask: Bools) -> Box:
    """The smallest box (X, Y, Z) around the true voxels, of which there is one at least."""
    found = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    x, y, z = (slice(int(along[0]), int(along[-1]) + 1) for along in found)
    return x, y, z


def _on_grid(
    volume: Volume, name: str, path: Path, reference: Reference, notes: list[str], *, strict: bool
) -> Volume:
    """The volume with the affine to go by: the reference's where both mean the same grid, else (not strict) its own."""
    if volume.shape == reference.input_shape:
        shift = affine_shift_voxels(reference.input_affine, volume.affine, volume.shape)
        if FINE_SHIFT < shift <= TOLERATED_SHIFT:
            notes.append(
                f"the affine of {name} is up to half a voxel off that of {reference.modality}; voxels taken to agree"
            )
        if shift <= TOLERATED_SHIFT:
            return Volume(volume.data, reference.input_affine)
        found = (
            f"its affine puts voxels up to {shift:.3g} voxels from those of {reference.modality}"
        )
    else:
        found = f"has shape {volume.shape}, {reference.modality} has {reference.input_shape}"
    if strict:
        raise DataError(path, f"{found}", f"expected {name} on the grid of {reference.modality}")
    notes.append(
        f"{name} lies on another grid than {reference.modality}; resampled to it by its affine"
    )
    return volume


def read_brain(path: Path, reference: Reference, notes: list[str]) -> Bools:
    """A brain mask (X, Y, Z) on the network's grid: what is above 0.5 in the file."""
    volume = _on_grid(read_volume(path), "brain mask", path, reference, notes, strict=True)
    brain = reference.resampled(Volume(volume.data > 0.5, volume.affine)) > 0.5
    if not brain.any():
        raise DataError(path, "holds no voxel above 0.5", "expected a mask of the brain")
    return np.asarray(brain)


def _background(data: Floats) -> float:
    """The constant around the body: the value of more than half of the voxels on the six faces; NaN without one."""
    faces = np.concatenate(
        [np.moveaxis(data, axis, 0)[i].ravel() for axis in range(3) for i in (0, -1)]
    )
    values, counts = np.unique(faces, return_counts=True)
    return float(values[counts.argmax()]) if counts.max() * 2 > len(faces) else math.nan


def _centre_and_width(brain: Floats, normalization: str, path: Path) -> tuple[float, float]:
    """What is subtracted from the intensities and what they are divided by, from those of the brain (n,)."""
    if normalization == "none":
        return 0.0, 1.0
    centre = float(brain.mean(dtype=np.float64))
    squares = sum(
        float(np.square(part - centre, dtype=np.float64).sum())
        for part in np.array_split(brain, 64)
    )
    width = math.sqrt(squares / len(brain))
    if normalization == "robust":
        low, centre, high = np.percentile(brain, (25, 50, 75)).tolist()
        width = (high - low) / 1.349
    if not width > 1e-6 * abs(centre):
        raise DataError(
            path, f"is {centre:g} over most of the brain", "expected an image with contrast"
        )
    return centre, width


def _percentiles(brain: Floats, limits: tuple[float, float], path: Path) -> tuple[float, float]:
    """The intensities below which these shares (in per cent) of the brain's voxels (n,) lie."""
    low, high = np.percentile(brain, limits).tolist()
    if not low < high:
        raise DataError(
            path, f"is {low:g} over most of the brain", "expected an image with contrast"
        )
    return low, high


def _normalised(
    values: Affine, centre: float, width: float, *, cut: tuple[float, float] | None
) -> Affine:
    """In place (float64); 0 where there is no value."""
    values -= np.float32(centre)
    values /= np.float32(width)
    if cut is not None:
        np.clip(values, *cut, out=values)
    values[np.isnan(values)] = 0
    return values


def read_target(
    path: Path,
    reference: Reference,
    classes: Mapping[str, Sequence[int]],
    notes: list[str],
    *,
    other_values: Sequence[int] = (),
) -> Bools:
    """The classes (K, X, Y, Z) on the network's grid; no lesion is lost, a value without class refused.

    Label values that belong to no class may be named by `other_values`.
    """
    label = _on_grid(read_label(path), "label", path, reference, notes, strict=True)
    named = {value for values in classes.values() for value in values} | set(other_values)
    unnamed = sorted(set(np.unique(label.data[label.data != 0]).tolist()) - named)
    if unnamed:
        described = ", ".join(f"{name}: {list(values)}" for name, values in classes.items())
        raise DataError(
            path,
            f"holds the label values {', '.join(map(str, unnamed[:5]))} that no class names",
            f"expected {{{described}}} and 0, or other data.classes",
        )
    return np.stack(
        [_class_mask(_is_any(label.data, values), reference) for values in classes.values()]
    )


def majority(
    paths: Sequence[Path],
    reference: Reference,
    classes: Mapping[str, Sequence[int]],
    notes: list[str],
    *,
    other_values: Sequence[int] = (),
) -> Bools:
    """The classes (K, X, Y, Z) where more than half of the raters drew them; of two raters where both did."""
    votes = np.zeros((len(classes), *reference.shape), dtype=np.uint8)
    for path in paths:
        votes += read_target(path, reference, classes, notes, other_values=other_values)
    most: Bools = votes > len(paths) / 2
    return most


def box_around(path: Path, reference: Reference, values: Sequence[int], *, margin: int) -> Box:
    """The box around some values of a label on the network's grid, with a margin in voxels, inside the grid."""
    label = read_label(path)
    mask = reference.resampled(Volume(_is_any(label.data, values), reference.input_affine)) > 0
    if not mask.any():
        raise DataError(
            path,
            f"holds none of the label values {list(values)} of data.crop_values",
            "expected one",
        )
    sides = zip(bounding_box(mask), reference.shape, strict=True)
    x, y, z = (slice(max(side.start - margin, 0), min(side.stop + margin, n)) for side, n in sides)
    return x, y, z


def _is_any(data: NDArray[Any], values: Sequence[int]) -> Bools:
    """As numpy.isin, which takes eight bytes a voxel for it."""
    found: Bools = np.logical_or.reduce([data == value for value in values])
    return found


def _class_mask(mask: Bools, reference: Reference) -> Bools:
    """A mask on the network's grid, on which every lesion keeps its volume.

    Other than a threshold at one half, which halves the volume of small lesions and loses the smallest, this gives each
    lesion as many voxels as make up its volume, at least one: those that it fills most.
    """
    step = voxel_ratio(reference.input_affine, reference.affine)
    if np.allclose(step, 1):
        return np.asarray(reference.resampled(Volume(mask, reference.input_affine)))
    kept = np.zeros(reference.shape, dtype=bool)
    lesions = cc3d.connected_components(mask, connectivity=26)
    found = cc3d.statistics(lesions)
    boxes, sizes = found["bounding_boxes"][1:], found["voxel_counts"][1:]
    for number, (box, size) in enumerate(zip(boxes, sizes, strict=True), start=1):
        share, place = _share(
            lesions[box] == number, tuple(side.start for side in box), step, reference
        )
        n_voxels = min(max(1, round(size / math.prod(step))), np.count_nonzero(share))
        fullest = np.argpartition(share, -n_voxels, axis=None)[-n_voxels:]
        kept[place] |= np.bincount(fullest, minlength=share.size).reshape(share.shape) > 0
    return kept


def _share(
    lesion: Bools, start: Shape, step: Affine, reference: Reference
) -> tuple[Floats, tuple[slice, ...]]:
    """How much of each voxel of the network's grid around it a lesion fills, and where this box of the grid is.

    The lesion is cut out of the file's grid from voxel `start` on.
    """
    margin = np.ceil(2 * step).astype(int)
    padded = np.pad(lesion, margin[:, None])
    affine = reference.input_affine @ translation(np.subtract(start, margin))
    corners = np.array([*itertools.product(*((0, n - 1) for n in padded.shape), (1,))])
    places = corners @ np.linalg.solve(reference.affine, affine).T
    low = np.clip(np.floor(places.min(axis=0)[:3]).astype(int), 0, np.subtract(reference.shape, 1))
    high = np.clip(np.ceil(places.max(axis=0)[:3]).astype(int) + 1, low + 1, reference.shape)
    x, y, z = (high - low).tolist()
    share = resample(padded, affine, reference.affine @ translation(low), (x, y, z))
    return share, tuple(map(slice, low.tolist(), high.tolist()))


def lesion_arrays(target: Bools | None) -> tuple[dict[str, NDArray[Any]], tuple[int, ...]]:
    """Target, components and the lists of lesion voxels of a target (K, X, Y, Z); the number of lesions per class."""
    if target is None:
        return {"lesion_voxels": np.zeros(0, np.int32), "lesion_offsets": np.zeros(1, np.int64)}, ()
    components = np.empty((0, *target.shape[1:]), dtype=np.int32)
    if len(target) > 1:
        components = np.zeros(target.shape, dtype=np.int32)
    voxels, sizes = [], []
    for k, mask in enumerate(target):
        component = cc3d.connected_components(mask, connectivity=26, out_dtype=np.uint32).view(
            np.int32
        )
        if len(target) > 1:
            components[k] = component
        else:
            components = component[None]  # not copied: the largest array of a case
        inside = np.flatnonzero(component)
        number = component.reshape(-1)[inside]
        voxels.append(inside[np.argsort(number, kind="stable")])
        sizes.append(np.bincount(number)[1:])
    arrays: dict[str, NDArray[Any]] = {
        "target": target.view(np.uint8),
        "components": components,
        "lesion_voxels": np.concatenate(voxels).astype(np.int32),
        "lesion_offsets": np.concatenate([[0], *sizes]).cumsum(dtype=np.int64),
    }
    return arrays, tuple(len(of_class) for of_class in sizes)
