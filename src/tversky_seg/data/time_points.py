"""Examinations of one subject at two times: which belong together, and one case made of both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from tversky_seg.data.affines import affine_shift_voxels
from tversky_seg.data.cache import fingerprint
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import TOLERATED_SHIFT_VOXELS, resample
from tversky_seg.data.nifti import Volume, read_label, write_volume
from tversky_seg.metrics.masks import Mask
from tversky_seg.metrics.new_lesions import new_lesions

EARLIER = "@1"
LATER = "@2"
"""Endings of modalities: FLAIR@1 is that of the earlier examination."""

NEW = "new"
BOTH = "both"
PAIR_LABELS = (NEW, BOTH)
"""What is learnt from the lesions at both times: new ones, or all of both as two classes."""
CLASSES_OF_BOTH = {"baseline": (1, 3), "follow_up": (2, 3)}
"""Values of a label of both times: 1 earlier alone, 2 later alone, 3 at both."""
FORMAT_VERSION = 1  # raise it when equal masks give another label


def pairs_of(cases: Sequence[Case]) -> list[tuple[Case, Case]]:
    """Pair each case with the earlier examination of its subject.

    That is its baseline where the case names one, otherwise the session before; sessions are
    ordered by their numbers, as month 2 before month 10.

    Args:
        cases: Cases of any subjects.

    Returns:
        (earlier, later) for each case that has an earlier one among the cases.
    """
    by_id = {case.case_id: case for case in cases}
    pairs: list[tuple[Case, Case]] = []
    for sessions in sessions_by_subject(cases):
        # Sessions 1, 2, 3 make the pairs (1, 2) and (2, 3).
        pairs.extend(pair for pair in pairwise(sessions) if pair[1].baseline is None)
    for case in cases:
        if case.baseline in by_id:
            pairs.append((by_id[case.baseline], case))
    return pairs


def sessions_by_subject(cases: Sequence[Case]) -> list[list[Case]]:
    """List the cases of each subject in the order of its sessions; those without are left out."""
    by_subject: dict[str, list[Case]] = {}
    for case in cases:
        if case.session is not None:
            by_subject.setdefault(case.subject_id, []).append(case)
    for sessions in by_subject.values():
        sessions.sort(key=_session_order)
    return list(by_subject.values())


def _session_order(case: Case) -> list[tuple[int, str]]:
    """Give a sort key that puts session 2 before session 10.

    "month10" -> [(0, "month"), (10, "")]
    """
    key: list[tuple[int, str]] = []
    # Digits are compared as numbers, the rest as text.
    for part in re.split(r"(\d+)", str(case.session)):
        if part.isdigit():
            key.append((int(part), ""))
        elif part:
            key.append((0, part))
    return key


def on_grid_of(mask: Volume, other: Volume) -> tuple[Mask, bool]:
    """Bring a 0/1 mask to the grid of another volume; tell whether it lay on another one."""
    is_lesion = mask.data == 1
    if mask.shape == other.shape:
        shift = affine_shift_voxels(other.affine, mask.affine, other.shape)
        if shift <= TOLERATED_SHIFT_VOXELS:
            return is_lesion, False
    moved = resample(is_lesion.astype(np.float32), mask.affine, other.affine, other.shape)
    return moved >= 0.5, True


def without_time(modalities: Sequence[str]) -> tuple[str, ...]:
    """Name the modalities of one examination: FLAIR@2, T1@2, FLAIR@1 -> FLAIR, T1."""
    names = [name.removesuffix(EARLIER).removesuffix(LATER) for name in modalities]
    return tuple(dict.fromkeys(names))


def pair_up(cases: Sequence[Case], modalities: Sequence[str]) -> list[Case]:
    """Make one case of each examination and its baseline; examinations without one are left out.

    The pair is named as the later examination, and has its brain mask, site, split and fold.

    Args:
        cases: Cases of one examination each.
        modalities: Channels as FLAIR@2 and FLAIR@1; one without a time is that of the later.
    """
    by_id = {case.case_id: case for case in cases}
    pairs = []
    for later in cases:
        earlier = by_id.get(later.baseline or "")
        if earlier is None:
            continue
        images = {}
        for name in modalities:
            source = earlier if name.endswith(EARLIER) else later
            (plain,) = without_time([name])
            if plain in source.images:
                images[name] = source.images[plain]
        # Without a mask of either time the pair can still be predicted.
        labels_at: tuple[Path, ...] = ()
        if earlier.label is not None and later.label is not None:
            labels_at = (earlier.label, later.label)
        pairs.append(replace(later, images=images, labels=(), labels_at=labels_at, baseline=None))
    return pairs


def with_pair_labels(
    cases: Sequence[Case], *, pair_label: str | None, cache_dir: Path
) -> list[Case]:
    """Give each pair with masks of both times the label that is learnt, made in the cache.

    Args:
        cases: Cases; those without `labels_at` stay as they are.
        pair_label: "new", "both", or None: the case's own label, new lesions if it has none.
        cache_dir: Folder of the cache.

    Raises:
        DataError: A mask cannot be read, or the cache cannot be written.
    """
    labelled = []
    for case in cases:
        if case.labels_at and (pair_label is not None or not case.labels):
            label = _pair_label(case, pair_label or NEW, cache_dir)
            case = replace(case, labels=(label,), consensus=False)
        labelled.append(case)
    return labelled


def _pair_label(case: Case, kind: str, cache_dir: Path) -> Path:
    """Write the label of a pair, unless its file is in the cache."""
    key = fingerprint({"kind": kind, "format": FORMAT_VERSION}, case.labels_at)
    path = Path(cache_dir).absolute() / "pair_labels" / f"{case.case_id}-{key}.nii.gz"
    # The name changes with any file of the two masks, so this is their label.
    if path.is_file():
        return path
    earlier, later = (read_label(file) for file in case.labels_at)
    later_mask = later.data != 0
    earlier_mask, _ = on_grid_of(
        Volume((earlier.data != 0).astype(np.uint8), earlier.affine), later
    )
    if kind == NEW:
        label = new_lesions(earlier_mask, later_mask).astype(np.uint8)
    else:
        label = earlier_mask + 2 * later_mask.astype(np.uint8)
    write_volume(path, label, later.affine, like=case.labels_at[1])
    return path


def check_pair_label(pair_label: str | None) -> None:
    """Check the setting data.pair_label.

    Raises:
        DataError: It is another word.
    """
    if pair_label is not None and pair_label not in PAIR_LABELS:
        expected = f"expected null, {' or '.join(PAIR_LABELS)}"
        raise DataError("data.pair_label", repr(pair_label), expected)
