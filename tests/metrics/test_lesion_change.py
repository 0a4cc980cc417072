"""Lesions over time: each kind worked by hand, and the groups against a search by hand."""

import math

import numpy as np
import pytest
from scipy import ndimage

from tversky_seg.metrics.lesion_change import (
    GROWN,
    KINDS,
    MERGED,
    NEW,
    SHRUNK,
    SPLIT,
    STABLE,
    VANISHED,
    ChangeRule,
    lesion_changes,
)
from tversky_seg.metrics.new_lesions import new_lesions

SPACING = (1.0, 2.0, 3.0)  # a voxel has 6 mm3


def row(*runs: tuple[int, int]) -> np.ndarray:
    """A mask of lesions along one line: each from a first voxel to one before the last."""
    mask = np.zeros((30, 3, 3), np.uint8)
    for first, end in runs:
        mask[first:end, 1, 1] = 1
    return mask


@pytest.mark.parametrize(
    ("before", "after", "kind", "volumes"),
    [
        ([], [(2, 5)], NEW, (0, 18)),
        ([(2, 5)], [], VANISHED, (18, 0)),
        ([(2, 5)], [(2, 8)], GROWN, (18, 36)),
        ([(2, 8)], [(3, 5)], SHRUNK, (36, 12)),
        ([(2, 8)], [(3, 9)], STABLE, (36, 36)),
        ([(2, 8)], [(2, 9)], STABLE, (36, 42)),  # 6 mm3 are fewer than 10
        ([(2, 5), (8, 10)], [(2, 10)], MERGED, (30, 48)),
        ([(2, 10)], [(2, 5), (8, 10)], SPLIT, (48, 30)),
        ([(2, 5), (8, 12)], [(4, 9), (11, 15)], MERGED, (42, 54)),  # two and two, in a chain
    ],
)
def test_each_kind_of_change(before: list, after: list, kind: str, volumes: tuple) -> None:
    (change,) = lesion_changes(row(*before), row(*after), spacing_mm=SPACING).changes
    assert change.kind == kind
    assert (change.baseline_mm3, change.follow_up_mm3) == volumes
    assert (change.n_baseline, change.n_follow_up) == (len(before), len(after))
    assert change.change_mm3 == volumes[1] - volumes[0]


def test_a_new_lesion_has_no_change_in_per_cent() -> None:
    (new,) = lesion_changes(row(), row((2, 5)), spacing_mm=SPACING).changes
    assert math.isnan(new.change_percent)
    assert new.centre == (3, 1, 1)
    (gone,) = lesion_changes(row((2, 6)), row(), spacing_mm=SPACING).changes
    assert gone.change_percent == -100
    assert gone.centre == (3.5, 1, 1)


def test_the_rule_decides_from_which_change_on_a_lesion_has_grown() -> None:
    masks = row((2, 12)), row((2, 15))  # 60 to 78 mm3: 18 mm3, 30 %
    for settings, kind in (
        ({}, GROWN),
        ({"min_change_mm3": 19}, STABLE),
        ({"min_change_percent": 31}, STABLE),
        ({"min_change_mm3": 18, "min_change_percent": 30}, GROWN),
    ):
        rule = ChangeRule(**settings)
        (change,) = lesion_changes(*masks, spacing_mm=SPACING, rule=rule).changes
        assert change.kind == kind, settings


def test_small_lesions_are_left_out_unless_they_belong_to_a_large_one() -> None:
    before, after = row((2, 3), (20, 21)), row((2, 9), (25, 26))
    rule = ChangeRule(min_volume_mm3=12)
    changes = lesion_changes(before, after, spacing_mm=SPACING, rule=rule)
    assert [change.kind for change in changes.changes] == [GROWN]
    assert changes.of_kind(GROWN).sum() == 7
    assert changes.kind_map[20:].sum() == 0


def test_masks_without_lesions_have_no_change() -> None:
    changes = lesion_changes(row(), row(), spacing_mm=SPACING)
    assert not changes.changes
    assert not changes.kind_map.any()
    with pytest.raises(ValueError, match="min_change_percent=-1"):
        ChangeRule(min_change_percent=-1)


def test_swapped_times_swap_the_kinds() -> None:
    rng = np.random.default_rng(3)
    masks = [ndimage.gaussian_filter(rng.normal(size=(24, 20, 16)), 1.5) > 0.12 for _ in range(2)]
    there = lesion_changes(*masks, spacing_mm=SPACING, rule=ChangeRule(min_change_percent=0))
    back = lesion_changes(*masks[::-1], spacing_mm=SPACING, rule=ChangeRule(min_change_percent=0))
    assert there.count(NEW) == back.count(VANISHED) > 0
    assert there.count(VANISHED) == back.count(NEW) > 0
    assert sum(c.change_mm3 for c in there.changes) == -sum(c.change_mm3 for c in back.changes)
    # All voxels of both masks have a kind, and no other.
    assert ((there.kind_map > 0) == (masks[0] | masks[1])).all()
    assert there.kind_map.max() <= len(KINDS)
    assert (there.of_kind(NEW) == new_lesions(*masks)).all()


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_those_of_a_search_by_hand(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = [ndimage.gaussian_filter(rng.normal(size=(20, 18, 16)), 1.2) > 0.15 for _ in range(2)]
    everywhere = np.ones((3, 3, 3))
    (earlier, n_earlier), (later, n_later) = (ndimage.label(mask, everywhere) for mask in masks)
    # Widen each group by the lesions that touch it, until nothing is added.
    groups = []
    left = {("before", i) for i in range(1, n_earlier + 1)}
    left |= {("after", j) for j in range(1, n_later + 1)}
    while left:
        group = {left.pop()}
        while True:
            added = set()
            for time, number in group:
                if time == "before":
                    partners = set(later[earlier == number].tolist()) - {0}
                    added |= {("after", j) for j in partners}
                else:
                    partners = set(earlier[later == number].tolist()) - {0}
                    added |= {("before", i) for i in partners}
            if added <= group:
                break
            group |= added
        left -= group
        groups.append(group)
    expected = []
    for group in groups:
        n_before = sum(time == "before" for time, _ in group)
        volume = sum(int((earlier == number).sum()) for time, number in group if time == "before")
        expected.append((n_before, len(group) - n_before, 6.0 * volume))
    changes = lesion_changes(*masks, spacing_mm=SPACING).changes
    found = [(c.n_baseline, c.n_follow_up, c.baseline_mm3) for c in changes]
    assert sorted(found) == sorted(expected)
