"""Folds of a cohort: by a column, by subject or site left out, or drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tversky_seg.data.case import Case, value_by_subject
from tversky_seg.data.dataset import LEAVE_ONE_OUT
from tversky_seg.data.errors import DataError


def are_folds_drawn(cases: Sequence[Case], *, folds: int | str, fold: int | None) -> bool:
    """Tell whether folds are drawn, rather than given by a column or by leaving one out.

    Args:
        cases: The cohort.
        folds: As in `split.split_cases`.
        fold: As in `split.split_cases`.
    """
    has_splits = False
    has_folds = False
    for case in cases:
        # Only labelled cases are split; the others join the test set.
        if case.labels:
            has_splits = has_splits or bool(case.split)
            has_folds = has_folds or case.fold is not None
    if folds in LEAVE_ONE_OUT or has_folds:
        return False
    # Whoever asks for a fold by number does not want the split column.
    return fold is not None or not has_splits


def hold_out_fold(
    cases: Sequence[Case],
    *,
    folds: int | str,
    fold: int | None,
    seed: int,
    loads: Mapping[str, float] | None,
) -> dict[str, Any]:
    """Map each subject to "test" if its fold is held out, otherwise to "train".

    Args:
        cases: Labelled cases.
        folds: As in `split.split_cases`.
        fold: Number of the fold to hold out; None: the first.
        seed: Seed of drawn folds.
        loads: Case id -> lesion load, to draw stratified folds; None: plain folds.

    Raises:
        DataError: A case has no fold although others have one, or `fold` does not exist.
    """
    fold_of = _folds_of_subjects(cases, folds=folds, seed=seed, loads=loads)
    for case in cases:
        if case.subject_id not in fold_of:
            fault = f"case {case.case_id} has a label but no fold"
            raise DataError("data", fault, "fill the column", case_id=case.case_id)
    numbers = sorted(set(fold_of.values()))
    held_out = numbers[0] if fold is None else fold
    if held_out not in numbers:
        expected = ", ".join(str(number) for number in numbers)
        raise DataError("data.fold", str(held_out), f"expected one of {expected}")
    split_of = {}
    for subject, number in fold_of.items():
        split_of[subject] = "test" if number == held_out else "train"
    return split_of


def _folds_of_subjects(
    cases: Sequence[Case],
    *,
    folds: int | str,
    seed: int,
    loads: Mapping[str, float] | None,
) -> dict[str, int]:
    # In the order of precedence: leave one out, the column, drawn.
    if folds in LEAVE_ONE_OUT:
        return _leave_one_out(cases, LEAVE_ONE_OUT[str(folds)])
    by_column = value_by_subject(cases, "fold")
    if by_column:
        return by_column
    subjects = sorted({case.subject_id for case in cases})
    _check_enough_subjects(subjects)
    # Two subjects make two folds, whatever number is asked for.
    n_folds = min(int(folds), len(subjects))
    rng = np.random.default_rng([seed, 0])  # [seed, 1] draws the validation set
    if loads is None:
        return _draw_folds([subjects], n_folds=n_folds, rng=rng)
    blocks = _blocks_of_like_subjects(cases, loads, size=n_folds)
    return _draw_folds(blocks, n_folds=n_folds, rng=rng)


def _leave_one_out(cases: Sequence[Case], attribute: str) -> dict[str, int]:
    """Number the subjects or sites in the order of their names; each number is a fold."""
    for case in cases:
        if getattr(case, attribute) is None:
            fault = f"case {case.case_id} has no {attribute}"
            raise DataError("data", fault, "fill the column", case_id=case.case_id)
    value_of: dict[str, str] = {}
    for case in cases:
        value = getattr(case, attribute)
        if value_of.setdefault(case.subject_id, value) != value:
            fault = f"subject {case.subject_id!r} has cases of two sites"
            raise DataError("data", fault, "expected one, or data.folds=loso")
    values = sorted(set(value_of.values()))
    if len(values) < 2:
        fault = f"one {attribute} in {len(cases)} labelled cases"
        raise DataError("data", fault, "expected two or more")
    fold_of: dict[str, int] = {}
    for subject, value in value_of.items():
        fold_of[subject] = values.index(value)
    return fold_of


def _check_enough_subjects(subjects: Sequence[str]) -> None:
    if not subjects:
        expected = "expected label files, in a manifest in the column label"
        raise DataError("data", "0 labelled subjects", expected)
    if len(subjects) == 1:
        expected = "expected two or more to hold one out, or a split column in the manifest"
        raise DataError("data", "1 labelled subject", expected)


def _draw_folds(
    blocks: Sequence[Sequence[str]], *, n_folds: int, rng: np.random.Generator
) -> dict[str, int]:
    """Deal the subjects of each block out to the folds, in random order.

    _draw_folds([["a", "b"], ["c", "d"]], n_folds=2, rng=rng)
    # for example {"b": 0, "a": 1, "c": 0, "d": 1}: each fold has one of each block
    """
    fold_of = {}
    for block in blocks:
        for place, index in enumerate(rng.permutation(len(block))):
            fold_of[block[index]] = place % n_folds
    return fold_of


def _blocks_of_like_subjects(
    cases: Sequence[Case], loads: Mapping[str, float], *, size: int
) -> list[list[str]]:
    """Sort the subjects by site and lesion load, and cut the list into blocks of one per fold."""
    site: dict[str, str] = {}
    load: dict[str, float] = {}
    for case in cases:
        site[case.subject_id] = case.site or ""
        # The load of a subject is that of its worst session.
        of_case = loads.get(case.case_id, 0.0)
        load[case.subject_id] = max(load.get(case.subject_id, of_case), of_case)
    ordered = sorted(site, key=lambda subject: (site[subject], load[subject], subject))
    blocks: list[list[str]] = []
    for first in range(0, len(ordered), size):
        blocks.append(ordered[first : first + size])
    return blocks
