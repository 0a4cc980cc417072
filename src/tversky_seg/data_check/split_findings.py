"""Findings about the split: which cases are held out, and whether there are enough."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tversky_seg.data.case import Case
from tversky_seg.data.dataset import LEAVE_ONE_OUT, Dataset
from tversky_seg.data.folds import are_folds_drawn
from tversky_seg.data.split import MIN_SUBJECTS_TO_VALIDATE
from tversky_seg.data_check.finding import NOTE, WARNING, Finding, name_some
from tversky_seg.report.labels import count

FEWEST_SUBJECTS = 5
"""Subjects below which a report gives no interval."""


def split_findings(
    dataset: Dataset, cases: Sequence[Case], sets: Mapping[str, str]
) -> Iterator[Finding]:
    """Tell which cases are held out, and what too few subjects mean.

    Args:
        dataset: Dataset with the settings of its split.
        cases: All cases.
        sets: Case id -> "train", "val" or "test".
    """
    members: dict[str, list[Case]] = {"train": [], "val": [], "test": []}
    for case in cases:
        if case.case_id in sets:
            members[sets[case.case_id]].append(case)
    subjects = {case.subject_id for case in cases if case.labels}
    if len(subjects) < FEWEST_SUBJECTS:
        yield Finding(
            WARNING,
            "subjects",
            f"{count(len(subjects), 'labelled subject')}, fewer than {FEWEST_SUBJECTS}",
            "results depend on which are held out, and reports give no intervals: label more, or "
            "train all folds",
        )
    # Training goes on without one, so it has to be said.
    if not members["val"]:
        why = "too few to spare one" if dataset.val_fraction else "data.val_fraction=0"
        n_training = len({case.subject_id for case in members["train"]})
        yield Finding(
            WARNING,
            "validation set",
            f"empty, {count(n_training, 'training subject')}: {why}",
            "the last checkpoint is taken, with threshold 0.5; "
            f"{MIN_SUBJECTS_TO_VALIDATE} subjects outside the test set give one for validation",
        )
    yield _held_out(dataset, cases, members["test"])


def _held_out(dataset: Dataset, cases: Sequence[Case], test: Sequence[Case]) -> Finding:
    """Tell which cases are never trained on, and how others would be."""
    ids = name_some([case.case_id for case in test])
    held_out = f"{count(len(test), 'test case')} ({ids})"
    if not test:
        found = "no test case"
        remedy = "nothing is evaluated at the end; set data.fold=0 to hold out a fold"
        return Finding(WARNING, "test set", found, remedy)
    # A fold that is asked for outranks the column of the manifest.
    uses_folds = dataset.folds in LEAVE_ONE_OUT or dataset.fold is not None
    if not uses_folds and any(case.split for case in cases if case.labels):
        remedy = "these are evaluated at the end, and never trained on"
        return Finding(NOTE, "split column", f"holds out {held_out}", remedy)
    numbers = _fold_numbers(dataset, cases)
    fold = numbers[0] if dataset.fold is None else dataset.fold
    found = f"fold {fold} of {len(numbers)} is held out: {held_out}"
    listed = ",".join(map(str, numbers))
    # Leaving one of a hundred subjects out makes a hundred numbers.
    if len(numbers) > 10:
        listed = f"{numbers[0]},{numbers[1]},…,{numbers[-1]}"
    remedy = (
        "they are evaluated at the end, and never trained on; every case is held out once by "
        f"-m data.fold={listed}"
    )
    return Finding(NOTE, "data.fold", found, remedy)


def _fold_numbers(dataset: Dataset, cases: Sequence[Case]) -> list[int]:
    labelled = [case for case in cases if case.labels]
    if dataset.folds in LEAVE_ONE_OUT:
        attribute = LEAVE_ONE_OUT[str(dataset.folds)]
        return list(range(len({getattr(case, attribute) for case in labelled})))
    if not are_folds_drawn(cases, folds=dataset.folds, fold=dataset.fold):
        return sorted({case.fold for case in labelled if case.fold is not None})
    n_subjects = len({case.subject_id for case in labelled})
    # No fold is empty.
    return list(range(min(int(dataset.folds), n_subjects)))
