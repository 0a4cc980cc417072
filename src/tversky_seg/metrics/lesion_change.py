"""Lesions over time: which of two masks of one subject are new, grown, shrunk or gone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse import csgraph

from tversky_seg.metrics.components import Components, find_components
from tversky_seg.metrics.masks import IntArray, Mask, as_masks, check_spacing

NEW = "new"
GROWN = "grown"
SHRUNK = "shrunk"
VANISHED = "vanished"
MERGED = "merged"
SPLIT = "split"
STABLE = "stable"
KINDS = (NEW, GROWN, SHRUNK, VANISHED, MERGED, SPLIT, STABLE)
"""Kinds of change; in a map of changes, kind k of this list has the value k + 1."""


@dataclass(frozen=True)
class ChangeRule:
    """When a lesion counts as grown or shrunk, and which lesions count at all.

    Attributes:
        connectivity: 6, 18 or 26 neighbours make one lesion.
        min_volume_mm3: Lesions below this volume at both times are left out.
        min_change_mm3: A lesion that changes by less than this is stable.
        min_change_percent: A lesion that changes by less than this share of its earlier volume is
            stable.

    Raises:
        ValueError: A number below 0.
    """

    connectivity: int = 26
    min_volume_mm3: float = 0.0
    min_change_mm3: float = 10.0
    min_change_percent: float = 25.0

    def __post_init__(self) -> None:
        for name in ("min_volume_mm3", "min_change_mm3", "min_change_percent"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be >= 0 and finite, got {name}={value}")


@dataclass(frozen=True)
class LesionChange:
    """A lesion at two times: the lesions of both masks that hang together by overlaps.

    Attributes:
        kind: One of `KINDS`.
        n_baseline: Lesions of the earlier mask; 0 for a new one.
        n_follow_up: Lesions of the later mask; 0 for one that vanished.
        baseline_mm3: Their volume in the earlier mask.
        follow_up_mm3: Their volume in the later mask.
        centre: Centre of mass in voxels, of the later mask; of the earlier one if it vanished.
    """

    kind: str
    n_baseline: int
    n_follow_up: int
    baseline_mm3: float
    follow_up_mm3: float
    centre: tuple[float, float, float]

    @property
    def change_mm3(self) -> float:
        """Later volume minus earlier volume."""
        return self.follow_up_mm3 - self.baseline_mm3

    @property
    def change_percent(self) -> float:
        """Change in per cent of the earlier volume; -100 if it vanished, NaN for a new lesion."""
        if not self.baseline_mm3:
            return math.nan
        return 100 * self.change_mm3 / self.baseline_mm3


@dataclass(frozen=True, eq=False)
class LesionChanges:
    """All lesions of a subject at two times, the largest change first."""

    changes: tuple[LesionChange, ...]
    kind_map: NDArray[np.uint8]
    """(X, Y, Z) number of the kind in `KINDS`, from 1 on, in the lesions of either mask."""

    def of_kind(self, kind: str) -> Mask:
        """Draw the lesions of one kind, (X, Y, Z); a vanished one where it was."""
        mask: Mask = self.kind_map == KINDS.index(kind) + 1
        return mask

    def count(self, kind: str) -> int:
        """Count the changes of one kind."""
        return sum(change.kind == kind for change in self.changes)


def lesion_changes(
    baseline: ArrayLike,
    follow_up: ArrayLike,
    *,
    spacing_mm: ArrayLike,
    rule: ChangeRule | None = None,
) -> LesionChanges:
    """Compare the lesions of an earlier and a later mask of one subject.

    Lesions of the two masks belong together if they share a voxel, directly or by others: two
    lesions that run into one are one change. Without a partner in the earlier mask it is new,
    without one in the later mask it has vanished. Several earlier lesions and as many or fewer
    later ones have merged; fewer earlier ones have split. Otherwise its volume tells whether it has
    grown, shrunk or is stable.

    Args:
        baseline: 0/1 mask (X, Y, Z) of the earlier examination.
        follow_up: 0/1 mask of the later one, on the same grid and registered to it.
        spacing_mm: Size of a voxel per axis, in mm.
        rule: Rule of what a change is; None: `ChangeRule()`.

    Returns:
        The changes; none if both masks are empty.

    Raises:
        ValueError: Shapes that differ, or other values than 0 and 1.
    """
    rule = rule or ChangeRule()
    before, after = as_masks(baseline, follow_up)
    voxel_mm3 = float(np.prod(check_spacing(spacing_mm, ndim=before.ndim)))
    earlier = find_components(before, connectivity=rule.connectivity, order="C")
    later = find_components(after, connectivity=rule.connectivity, order="C")
    group_earlier, group_later, n_groups = _group(earlier, later)
    n_earlier = np.bincount(group_earlier, minlength=n_groups)
    n_later = np.bincount(group_later, minlength=n_groups)
    earlier_mm3 = voxel_mm3 * np.bincount(group_earlier, earlier.n_voxels, n_groups)
    later_mm3 = voxel_mm3 * np.bincount(group_later, later.n_voxels, n_groups)
    earlier_centres = _centres(earlier, group_earlier, n_groups)
    later_centres = _centres(later, group_later, n_groups)

    kind_of_group = np.zeros(n_groups, np.uint8)
    changes: list[LesionChange] = []
    for group in range(n_groups):
        if max(earlier_mm3[group], later_mm3[group]) < rule.min_volume_mm3:
            continue
        numbers = (int(n_earlier[group]), int(n_later[group]))
        volumes = (float(earlier_mm3[group]), float(later_mm3[group]))
        kind = _kind(numbers, volumes, rule)
        kind_of_group[group] = KINDS.index(kind) + 1
        centres = earlier_centres if kind == VANISHED else later_centres
        x, y, z = centres[group].tolist()
        changes.append(LesionChange(kind, *numbers, *volumes, (x, y, z)))
    # Shrinking may matter as much as growth.
    changes.sort(key=lambda change: -abs(change.change_mm3))
    kind_map = np.zeros(before.size, np.uint8)
    # The earlier mask first, so that a voxel of both gets its later lesion's kind.
    kind_map[earlier.positions] = kind_of_group[group_earlier[earlier.rows]]
    kind_map[later.positions] = kind_of_group[group_later[later.rows]]
    return LesionChanges(tuple(changes), kind_map.reshape(before.shape))


def _group(earlier: Components, later: Components) -> tuple[IntArray, IntArray, int]:
    """Number the groups of lesions that hang together, by lesion of each mask."""
    # The voxels of the earlier mask that are lesion in the later one, too.
    later_number = later.labels[earlier.positions]
    is_shared = later_number > 0
    # One graph of both masks, in which the later lesions come after the earlier ones.
    edges = (
        earlier.rows[is_shared],
        len(earlier) + later_number[is_shared].astype(np.int64) - 1,
    )
    n_lesions = len(earlier) + len(later)
    ones = np.ones(len(edges[0]), dtype=np.int8)
    graph = sparse.coo_array((ones, edges), shape=(n_lesions, n_lesions)).tocsr()
    n_groups, group = csgraph.connected_components(graph, directed=False)
    group = group.astype(np.int64)
    return group[: len(earlier)], group[len(earlier) :], n_groups


def _centres(lesions: Components, group: IntArray, n_groups: int) -> NDArray[np.float64]:
    """Compute the centre of mass of each group's lesions; NaN without any."""
    n_voxels = np.bincount(group, lesions.n_voxels, n_groups)
    centres = lesions.centres()
    means = np.full((n_groups, len(lesions.shape)), math.nan)
    has_any = n_voxels > 0
    for axis in range(means.shape[1]):
        total = np.bincount(group, centres[:, axis] * lesions.n_voxels, n_groups)
        means[has_any, axis] = total[has_any] / n_voxels[has_any]
    return means


def _kind(numbers: tuple[int, int], volumes: tuple[float, float], rule: ChangeRule) -> str:
    n_earlier, n_later = numbers
    if not n_earlier:
        return NEW
    if not n_later:
        return VANISHED
    if n_earlier > 1 and n_earlier >= n_later:
        return MERGED
    if n_later > 1:
        return SPLIT
    earlier_mm3, later_mm3 = volumes
    change = later_mm3 - earlier_mm3
    # The larger of two limits: a single voxel is a large share of a small lesion.
    least = max(rule.min_change_mm3, rule.min_change_percent / 100 * earlier_mm3)
    if abs(change) < least or not change:
        return STABLE
    return GROWN if change > 0 else SHRUNK
