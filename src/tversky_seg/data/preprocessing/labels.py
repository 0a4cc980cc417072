"""Labels of a case: read, checked, brought to the network's grid, their lesions listed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import (
    Affine,
    Bools,
    Box,
    Floats,
    Shape,
    resample,
    translation,
    voxel_ratio,
)
from tversky_seg.data.nifti import Volume, read_label, read_volume
from tversky_seg.data.preprocessing.note import OUTSIDE_BRAIN, OUTSIDE_CROP, Note
from tversky_seg.data.preprocessing.prepared_case import rater_array
from tversky_seg.data.preprocessing.reference_grid import ReferenceGrid, align_mask
from tversky_seg.metrics.masks import bounding_box


@dataclass(frozen=True)
class LabelReader:
    """Reader of the labels of one case onto the network's grid.

    Attributes:
        grid: The two grids of the case.
        classes: Class name -> label values that belong to it.
        other_values: Label values that belong to no class and are background.
        notes: List to which oddities of the files are added.
        ignore: Label values whose voxels are ignored.
        ignored: (X, Y, Z) voxels of the file's grid that are ignored, in the labels of all raters
            alike; None: none.
    """

    grid: ReferenceGrid
    classes: Mapping[str, Sequence[int]]
    other_values: Sequence[int]
    notes: list[Note]
    ignore: Sequence[int] = ()
    ignored: Bools | None = None

    def read(self, path: Path) -> Bools:
        """Read one label; every lesion keeps its volume.

        Returns:
            (K, X, Y, Z) mask of each class on the network's grid.

        Raises:
            DataError: The file cannot be read, lies on another grid, or holds an unknown value.
        """
        label = align_mask(read_label(path), "label", path, self.grid, self.notes)
        self._refuse_unknown_values(label, path)
        masks = []
        for values in self.classes.values():
            mask = _is_any(label.data, values)
            if self.ignored is not None:
                mask &= ~self.ignored
            masks.append(_to_network_grid(mask, self.grid))
        return np.stack(masks)

    def read_majority(self, paths: Sequence[Path]) -> Bools:
        """Read the labels of several raters; of two raters a voxel needs both.

        Returns:
            (K, X, Y, Z) mask of each class where more than half of the raters drew it.

        Raises:
            DataError: As `read`.
        """
        majority: Bools = self.read_votes(paths) > len(paths) / 2
        return majority

    def read_votes(self, paths: Sequence[Path]) -> NDArray[np.uint8]:
        """Count how many of several raters drew each voxel.

        Returns:
            (K, X, Y, Z) number of raters, for each class.

        Raises:
            DataError: As `read`.
        """
        # One byte a voxel: 255 raters are more than any cohort has.
        votes = np.zeros((len(self.classes), *self.grid.shape), dtype=np.uint8)
        for path in paths:
            votes += self.read(path)
        return votes

    def read_ignored(self, labels: Sequence[Path], ignore_mask: Path | None) -> Bools | None:
        """Find the voxels that any of these labels or the mask says to ignore.

        Args:
            labels: Label files; those of several raters are united.
            ignore_mask: Mask of further voxels, those above 0.5; None: there is none.

        Returns:
            (X, Y, Z) mask on the file's grid; None where no voxel is ignored.

        Raises:
            DataError: A file cannot be read or lies on another grid.
        """
        ignored = np.zeros(self.grid.input_shape, dtype=bool)
        if ignore_mask is not None:
            volume = read_volume(ignore_mask)
            mask = align_mask(volume, "ignore mask", ignore_mask, self.grid, self.notes)
            ignored |= mask.data > 0.5
        if self.ignore:
            for path in labels:
                label = align_mask(read_label(path), "label", path, self.grid, self.notes)
                ignored |= _is_any(label.data, self.ignore)
        return ignored if ignored.any() else None

    def ignored_on_network_grid(self, targets: Sequence[Bools]) -> Bools | None:
        """Bring the ignored voxels to the network's grid.

        A voxel that both a lesion and an ignored region partly fill is lesion: the label says so.

        Args:
            targets: Targets (K, X, Y, Z) as read.

        Returns:
            (X, Y, Z) mask; None where no voxel is ignored.
        """
        if self.ignored is None:
            return None
        ignored = _to_network_grid(self.ignored, self.grid)
        for target in targets:
            ignored &= ~target.any(axis=0)
        return ignored

    def _refuse_unknown_values(self, label: Volume, path: Path) -> None:
        # A value without class is refused, not taken as background: probably a class was
        # forgotten, and the network would be trained against its lesions.
        known_values = {*self.other_values, *self.ignore}
        for values in self.classes.values():
            known_values.update(values)
        present = set(np.unique(label.data[label.data != 0]).tolist())
        unknown = sorted(present - known_values)
        if not unknown:
            return
        listed = ", ".join(str(value) for value in unknown[:5])
        classes = ", ".join(f"{name}: {list(values)}" for name, values in self.classes.items())
        raise DataError(
            path,
            f"holds the label values {listed} that no class names",
            f"expected {{{classes}}} and 0, or other data.classes (or data.ignore=[{unknown[0]}])",
        )


def labels_to_read(case: Case, rater: int | str | None) -> tuple[Path, ...]:
    """Choose the label files that a target is made of; none for a case without label.

    Args:
        case: The case.
        rater: As `Preprocessing.rater`. "random" gives the label first, then each rater's.

    Raises:
        DataError: The case has no label of that rater.
    """
    if case.label is None or rater is None:
        return case.labels[:1]
    if rater == "consensus" and (case.consensus or len(case.labels) == 1):
        return case.labels[:1]
    if rater in ("majority", "staple", "mean") and case.raters:
        return case.raters
    if rater == "random" and case.raters:
        # The label comes first: validation and test use it.
        return (case.label, *case.raters)
    if isinstance(rater, int) and rater <= len(case.raters):
        return (case.raters[rater - 1],)
    consensus = "a consensus" if case.consensus else "no consensus"
    raise DataError(
        "data.rater",
        f"{rater}, but case {case.case_id} has labels of {len(case.raters)} single raters "
        f"and {consensus}",
        "expected one that every case has, or null for the first label",
        case_id=case.case_id,
    )


def box_around(path: Path, grid: ReferenceGrid, values: Sequence[int], *, margin: int) -> Box:
    """Find the box around some values of a label.

    Args:
        path: Label file, on the grid of the first modality.
        grid: The two grids of the case.
        values: Label values to hold.
        margin: Voxels of the network's grid added on each side, as far as the grid goes.

    Raises:
        DataError: The label holds none of the values.
    """
    label = read_label(path)
    wanted = Volume(_is_any(label.data, values), grid.input_affine)
    mask = grid.resampled(wanted) > 0
    if not mask.any():
        found = f"holds none of the label values {list(values)} of data.crop_values"
        raise DataError(path, found, "expected one")
    box = []
    for side, n_voxels in zip(bounding_box(mask), grid.shape, strict=True):
        first = max(side.start - margin, 0)
        box.append(slice(first, min(side.stop + margin, n_voxels)))
    return tuple(box)


def list_lesions(target: Bools | None) -> tuple[dict[str, NDArray[Any]], tuple[int, ...]]:
    """Label the connected components of a target and list their voxels.

    Args:
        target: (K, X, Y, Z) mask of each class; None for a case without label.

    Returns:
        Arrays by the name that they have in `PreparedCase`, and the number of lesions of each
        class; without label no target, empty lists and no numbers.
    """
    if target is None:
        no_lesions: dict[str, NDArray[Any]] = {
            "lesion_voxels": np.zeros(0, np.int32),
            "lesion_offsets": np.zeros(1, np.int64),
        }
        return no_lesions, ()
    components = _components(target)
    voxels, sizes = [], []
    for component in components:
        inside = np.flatnonzero(component)
        number = component.reshape(-1)[inside]
        # A stable sort keeps the voxels of a lesion ascending.
        voxels.append(inside[np.argsort(number, kind="stable")])
        sizes.append(np.bincount(number)[1:])
    arrays: dict[str, NDArray[Any]] = {
        "target": target.view(np.uint8),
        "components": components,
        "lesion_voxels": np.concatenate(voxels).astype(np.int32),
        "lesion_offsets": np.concatenate([[0], *sizes]).cumsum(dtype=np.int64),
    }
    return arrays, tuple(len(class_sizes) for class_sizes in sizes)


def list_lesions_of_raters(
    targets: Sequence[Bools],
) -> tuple[dict[str, NDArray[Any]], list[tuple[int, ...]]]:
    """List the lesions of the label and of each rater; arrays by name, and numbers of lesions."""
    arrays: dict[str, NDArray[Any]] = {}
    n_lesions = []
    for rater, target in enumerate(targets or [None]):
        lesions, n_of_rater = list_lesions(target)
        for name, array in lesions.items():
            arrays[rater_array(name, rater)] = array
        n_lesions.append(n_of_rater)
    return arrays, n_lesions


def notes_on_lesions(targets: Sequence[Bools], box: Box, inside: Bools) -> list[Note]:
    """Note lesion voxels outside the brain, and those that the crop cuts off."""
    notes = []
    for target in targets:
        cropped = target[:, *box]
        if (cropped.any(axis=0) & ~inside).any():
            notes.append(Note(OUTSIDE_BRAIN, "label", "lesion voxels outside the brain", "kept"))
        if np.count_nonzero(cropped) < np.count_nonzero(target):
            found = "lesion voxels beyond the box around data.crop_values"
            notes.append(Note(OUTSIDE_CROP, "label", found, "cut off"))
    return notes


def _components(target: Bools) -> NDArray[np.int32]:
    """Number the 26-connected components (K, X, Y, Z) of each class from 1 on."""
    if len(target) == 1:
        # Not copied into an array of all classes: this is the largest array of a case.
        return _components_of_class(target[0])[None]
    components = np.zeros(target.shape, dtype=np.int32)
    for component, mask in zip(components, target, strict=True):
        component[...] = _components_of_class(mask)
    return components


def _components_of_class(mask: Bools) -> NDArray[np.int32]:
    numbered = cc3d.connected_components(mask, connectivity=26, out_dtype=np.uint32)
    return np.asarray(numbered.view(np.int32))


def _is_any(data: NDArray[Any], values: Sequence[int]) -> Bools:
    """Do as numpy.isin, which takes eight bytes a voxel for it."""
    is_any = np.zeros(data.shape, dtype=bool)
    for value in values:
        is_any |= data == value
    return is_any


def _to_network_grid(mask: Bools, grid: ReferenceGrid) -> Bools:
    """Bring a mask to the network's grid, on which every lesion keeps its volume.

    A threshold at one half would halve the volume of small lesions and lose the smallest. Here
    each lesion gets as many voxels as make up its volume, at least one: those that it fills most.
    """
    step = voxel_ratio(grid.input_affine, grid.affine)
    if np.allclose(step, 1):
        # Axes are only permuted, flipped and shifted: voxels are copied.
        return np.asarray(grid.resampled(Volume(mask, grid.input_affine)))
    resampled = np.zeros(grid.shape, dtype=bool)
    lesions = cc3d.connected_components(mask, connectivity=26)
    statistics = cc3d.statistics(lesions)
    # Component 0 is the background.
    boxes = statistics["bounding_boxes"][1:]
    sizes = statistics["voxel_counts"][1:]
    for number, (box, size) in enumerate(zip(boxes, sizes, strict=True), start=1):
        start = tuple(side.start for side in box)
        share, place = _share_of_voxels(lesions[box] == number, start, step, grid)
        # From 1 mm to 1.5 mm, a lesion of 7 voxels gets round(7 / 1.5**3) = 2.
        n_voxels = max(1, round(size / math.prod(step)))
        resampled[place] |= _fullest(share, min(n_voxels, np.count_nonzero(share)))
    return resampled


def _fullest(share: Floats, n_voxels: int) -> Bools:
    """Mark the n voxels with the largest share."""
    largest = np.argpartition(share, -n_voxels, axis=None)[-n_voxels:]
    marked = np.zeros(share.size, dtype=bool)
    marked[largest] = True
    return marked.reshape(share.shape)


def _share_of_voxels(
    lesion: Bools, start: Shape, step: Affine, grid: ReferenceGrid
) -> tuple[Floats, Box]:
    """Compute how much of each network voxel around it a lesion fills.

    Args:
        lesion: Lesion, cut out of the file's grid.
        start: First voxel of the cut in the file's grid.
        step: File voxels per network voxel along each axis of the file.
        grid: The two grids of the case.

    Returns:
        Shares in [0, 1] in a box of the network's grid, and this box.
    """
    # The blur of resampling reaches beyond the lesion.
    margin = np.ceil(2 * step).astype(int)
    padded = np.pad(lesion, margin[:, None])
    affine = grid.input_affine @ translation(np.subtract(start, margin))
    ends = [(0, n - 1) for n in padded.shape]
    corners = np.array([*itertools.product(*ends, (1,))])
    # From voxels of the cut to mm, and from mm to voxels of the network's grid.
    places = corners @ np.linalg.solve(grid.affine, affine).T
    lowest = np.floor(places.min(axis=0)[:3]).astype(int)
    highest = np.ceil(places.max(axis=0)[:3]).astype(int) + 1
    low = np.clip(lowest, 0, np.subtract(grid.shape, 1))
    high = np.clip(highest, low + 1, grid.shape)
    x, y, z = (high - low).tolist()
    share = resample(padded, affine, grid.affine @ translation(low), (x, y, z))
    box = tuple(slice(first, end) for first, end in zip(low.tolist(), high.tolist(), strict=True))
    return share, box
