"""The split of a run: made once, kept as its manifest, and held to when the run goes on."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tversky_seg.data.case import SPLITS, Case, check_cases, value_of_subject
from tversky_seg.data.dataset import SUBJECT_FOLDS, Dataset, find_cases
from tversky_seg.data.errors import DataError
from tversky_seg.data.lesion_load import lesion_loads
from tversky_seg.data.manifest import read_manifest, write_manifest
from tversky_seg.data.nifti import file_and_frame
from tversky_seg.runtime.distributed import is_first

logger = logging.getLogger("tversky_seg")


@dataclass(frozen=True)
class Split:
    """The cases to train on, to choose checkpoint and threshold by, and to report on; no subject is in two."""

    train: tuple[Case, ...]
    val: tuple[Case, ...]
    test: tuple[Case, ...]


def split_dataset(dataset: Dataset, manifest: Path, *, is_started: bool) -> Split:
    """Part the cases of a data set by subject, and write them with their split.

    Args:
        dataset: Where the cases are listed, and how to split.
        manifest: The CSV to write; the rows of a cohort's own manifest that concern this run.
        is_started: Whether training has begun: then the manifest that is there must list the same cases and split.

    Raises:
        DataError: As `find_cases` and `split_cases`; the CSV is the user's own; or the run was started on other cases.
    """
    if dataset.manifest and dataset.manifest.resolve() == manifest.resolve():
        raise DataError(
            "output_dir",
            f"{manifest.parent} holds data.manifest, which a run would replace",
            "choose another",
        )
    split = draw_split(dataset, find_cases(dataset))
    parts = {"train": split.train, "val": split.val, "test": split.test}
    rows = [replace(case, split=name, fold=None) for name, part in parts.items() for case in part]
    before = read_manifest(manifest, modalities=dataset.modalities) if is_started else rows
    if [(case.case_id, case.split) for case in before] != [
        (case.case_id, case.split) for case in rows
    ]:
        raise DataError(
            manifest, "the run was started on other cases than these", "choose another output_dir"
        )
    if is_first():
        write_manifest(rows, manifest, modalities=dataset.modalities)
    logger.info("%s", ", ".join(f"{len(part)} {name}" for name, part in parts.items()) + " cases")
    return split


def draw_split(dataset: Dataset, cases: Sequence[Case]) -> Split:
    """Part the cases of a data set as it asks for; where folds are drawn, with lesion loads and sites spread over them.

    Raises:
        DataError: As `split_cases`.
    """
    loads = None
    if dataset.stratify and are_folds_drawn(cases, folds=dataset.folds, fold=dataset.fold):
        loads = lesion_loads(cases, dataset.classes, cache_dir=dataset.cache_dir)
    return split_cases(
        cases,
        folds=dataset.folds,
        fold=dataset.fold,
        val_fraction=dataset.val_fraction,
        loads=loads,
    )


def files_of(cases: Sequence[Case]) -> list[Path]:
    """The files of some cases, each once: images, labels and brain masks."""
    paths = (
        path for case in cases for path in (*case.images.values(), *case.labels, case.brain_mask)
    )
    return [*dict.fromkeys(file_and_frame(path)[0] for path in paths if path is not None)]


def split_cases(
    cases: Sequence[Case],
    *,
    folds: int | str = 5,
    fold: int | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
    loads: Mapping[str, float] | None = None,
) -> Split:
    """Part cases into training, validation and test set, by subject.

    With `fold` given: the fold column, else `folds` folds drawn over the subjects (as many as subjects where these
    are fewer); that fold is the test set. Without: the split column, else as with the first fold. Where no validation
    set is named, it is `val_fraction` of the remaining subjects, at least one when 4 or more remain, else none.
    Cases without label are never trained or validated on: they join the test set unless their subject is elsewhere.

    Args:
        cases: The cohort.
        folds: Number of folds, where they are drawn; or "loso" or "site", each subject or site a fold in the order of
            their names, which goes before the columns.
        fold: The fold held out, or None.
        val_fraction: In [0, 1); 0 is no validation set.
        seed: Of the split, which should stay the same when the seed of training changes.
        loads: Lesion load by case id; then folds are drawn such that each has its share of every site, and in a site
            of small and large loads.

    Raises:
        DataError: No labelled case to train on, a fold that is not there, a labelled case without split or fold where
            others have one, a subject in two splits, or an image of two subjects in two splits.
    """
    check_cases(cases, source="data")
    labelled = [case for case in cases if case.labels]
    held_out = (
        value_of_subject(labelled, "split") if fold is None and folds not in SUBJECT_FOLDS else None
    )
    if held_out is None:
        held_out = _held_out_by_fold(labelled, folds=folds, fold=fold, seed=seed, loads=loads)
    for case in labelled:
        _require(
            case.subject_id in held_out,
            f"data: case {case.case_id} has a label but no split; fill the column",
        )
    if "val" not in held_out.values():
        remaining = sorted(
            {case.subject_id for case in labelled if held_out[case.subject_id] == "train"}
        )
        held_out |= dict.fromkeys(
            _draw_validation(remaining, val_fraction=val_fraction, seed=seed), "val"
        )
    parts: dict[str, list[Case]] = {name: [] for name in SPLITS}
    left_out = []
    for case in cases:
        part = held_out.get(case.subject_id, "test")
        if case.labels or part == "test":
            parts[part].append(case)
        else:
            left_out.append(case.case_id)
    if left_out:
        logger.warning("without label, of subjects in training, left out: %s", ", ".join(left_out))
    _require(len(parts["train"]) > 0, f"data: no labelled case to train on among {len(cases)} cases; "
             "label some, or give them split=train")  # fmt: skip
    _refuse_leaks(parts)
    return Split(*(tuple(parts[name]) for name in SPLITS))


def are_folds_drawn(cases: Sequence[Case], *, folds: int | str, fold: int | None) -> bool:
    """Whether `split_cases` draws folds: neither told to leave one out nor by a column."""
    labelled = [case for case in cases if case.labels]
    by_split = fold is None and any(case.split for case in labelled)
    return not (
        folds in SUBJECT_FOLDS or by_split or any(case.fold is not None for case in labelled)
    )


def _held_out_by_fold(
    cases: Sequence[Case],
    *,
    folds: int | str,
    fold: int | None,
    seed: int,
    loads: Mapping[str, float] | None,
) -> dict[str, Any]:
    """Subject -> "test" where its fold is held out, else "train"."""
    if folds in SUBJECT_FOLDS:
        fold_of: dict[str, Any] = _leave_one_out(cases, SUBJECT_FOLDS[str(folds)])
    else:
        fold_of = value_of_subject(cases, "fold") or _draw_folds(
            cases, folds=int(folds), seed=seed, loads=loads
        )
    for case in cases:
        _require(
            case.subject_id in fold_of,
            f"data: case {case.case_id} has a label but no fold; fill the column",
        )
    held_out = min(fold_of.values()) if fold is None else fold
    _require(held_out in fold_of.values(), f"data.fold: {held_out}; expected one of "
             f"{', '.join(map(str, sorted(set(fold_of.values()))))}")  # fmt: skip
    return {
        subject: "test" if number == held_out else "train" for subject, number in fold_of.items()
    }


def _leave_one_out(cases: Sequence[Case], attribute: str) -> dict[str, int]:
    """Subject -> the place of its attribute among all, in the order of names."""
    for case in cases:
        _require(
            getattr(case, attribute) is not None,
            f"data: case {case.case_id} has no {attribute}; fill the column",
        )
    value_of = {case.subject_id: getattr(case, attribute) for case in cases}
    split_up = [
        case.subject_id for case in cases if value_of[case.subject_id] != getattr(case, attribute)
    ]
    _require(
        not split_up,
        f"data: subject {split_up[:1]} has cases of two sites; expected one, or data.folds=loso",
    )
    values = sorted(set(value_of.values()))
    _require(
        len(values) > 1,
        f"data: one {attribute} in {len(cases)} labelled cases; expected two or more",
    )
    return {subject: values.index(value) for subject, value in value_of.items()}


def _draw_folds(
    cases: Sequence[Case], *, folds: int, seed: int, loads: Mapping[str, float] | None
) -> dict[str, int]:
    """Subject -> fold; with loads, subjects of one site and near loads go to different folds."""
    subjects = sorted({case.subject_id for case in cases})
    _require(
        bool(subjects),
        "data: 0 labelled subjects; expected label files, in a manifest in the column label",
    )
    _require(len(subjects) > 1, f"data: {len(subjects)} labelled subjects; expected two or more to hold one out, "
             "or a split column in the manifest")  # fmt: skip
    n_folds, rng = min(folds, len(subjects)), np.random.default_rng([seed, 0])
    if loads is None:
        return {
            subjects[s]: place % n_folds for place, s in enumerate(rng.permutation(len(subjects)))
        }
    site = {case.subject_id: case.site or "" for case in cases}
    load = {
        subject: max(loads.get(c.case_id, 0.0) for c in cases if c.subject_id == subject)
        for subject in subjects
    }
    ordered = sorted(subjects, key=lambda subject: (site[subject], load[subject], subject))
    blocks = [ordered[first : first + n_folds] for first in range(0, len(ordered), n_folds)]
    return {
        block[s]: place for block in blocks for place, s in enumerate(rng.permutation(len(block)))
    }


def _refuse_leaks(parts: Mapping[str, Sequence[Case]]) -> None:
    """An image that two subjects share must not be in two splits."""
    seen: dict[Path, tuple[str, str]] = {}
    for part, cases in parts.items():
        for case in cases:
            for file in case.images.values():
                other, subject = seen.setdefault(file.resolve(), (part, case.subject_id))
                _require(other == part, f"{file}: is an image of subject {subject!r} in {other} and of "
                         f"{case.subject_id!r} in {part}; expected one subject_id for it")  # fmt: skip


def _draw_validation(subjects: Sequence[str], *, val_fraction: float, seed: int) -> list[str]:
    if len(subjects) < 4 or val_fraction == 0:
        return []
    n = min(max(1, round(val_fraction * len(subjects))), len(subjects) - 1)
    return [subjects[i] for i in np.random.default_rng([seed, 1]).permutation(len(subjects))[:n]]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise DataError(message)
