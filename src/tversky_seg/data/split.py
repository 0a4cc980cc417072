"""The split of a cohort by subject, and of a run: made once, kept as its manifest."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tversky_seg.data.case import SPLITS, Case, check_cases, value_by_subject
from tversky_seg.data.dataset import LEAVE_ONE_OUT, Dataset, find_cases
from tversky_seg.data.errors import DataError
from tversky_seg.data.folds import are_folds_drawn, hold_out_fold
from tversky_seg.data.lesion_load import lesion_loads
from tversky_seg.data.manifest import read_manifest, write_manifest

logger = logging.getLogger("tversky_seg")

MIN_SUBJECTS_TO_VALIDATE = 4


@dataclass(frozen=True)
class Split:
    """Cases to train on, to choose checkpoint and threshold by, and to report on.

    No subject is in two of them.
    """

    train: tuple[Case, ...]
    val: tuple[Case, ...]
    test: tuple[Case, ...]


def split_dataset(dataset: Dataset, manifest: Path, *, is_started: bool) -> Split:
    """Split the cases of a data set by subject, and write them with their split.

    Args:
        dataset: Data set, and how to split it.
        manifest: CSV to write: the rows of the cohort's own manifest that concern this run.
        is_started: Whether training has begun: the manifest must then list the same cases and
            split.

    Raises:
        DataError: As `find_cases` and `split_cases`; the CSV is the user's own; or the run was
            started on other cases.
    """
    # Torch takes seconds to import, which a command of tables can do without.
    from tversky_seg.runtime.distributed import is_first

    if dataset.manifest is not None and dataset.manifest.resolve() == manifest.resolve():
        fault = f"{manifest.parent} holds data.manifest, which a run would replace"
        raise DataError("output_dir", fault, "choose another")
    split = draw_split(dataset, find_cases(dataset))
    # With a split and no fold: whoever reads the manifest gets this split, not a fold of it.
    rows = []
    for name in SPLITS:
        for case in getattr(split, name):
            rows.append(replace(case, split=name, fold=None))
    rows = without_absent_baselines(rows)
    if is_started:
        _check_same_cases(rows, manifest, modalities=dataset.modalities, require=dataset.require)
    # Of the processes of one run, one writes.
    if is_first():
        write_manifest(rows, manifest, modalities=dataset.modalities)
    logger.info(
        "%d train, %d val, %d test cases", len(split.train), len(split.val), len(split.test)
    )
    return split


def without_absent_baselines(cases: Sequence[Case]) -> list[Case]:
    """Forget baselines and first scans that are absent, so that the manifest can be read."""
    ids = {case.case_id for case in cases}
    kept = []
    for case in cases:
        baseline = case.baseline if case.baseline in ids else None
        repeat_of = case.repeat_of if case.repeat_of in ids else None
        kept.append(replace(case, baseline=baseline, repeat_of=repeat_of))
    return kept


def draw_split(dataset: Dataset, cases: Sequence[Case]) -> Split:
    """Split the cases of a data set; drawn folds share out lesion loads and sites evenly.

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


def split_cases(
    cases: Sequence[Case],
    *,
    folds: int | str = 5,
    fold: int | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
    loads: Mapping[str, float] | None = None,
) -> Split:
    """Split cases into training, validation and test set, by subject.

    With `fold`: that fold is the test set, of the fold column, otherwise of `folds` folds drawn
    over the subjects (one for each subject if these are fewer). Without: the split column,
    otherwise as with the first fold. If the columns name no validation set, it is `val_fraction`
    of the remaining subjects: at least one if 4 or more remain, otherwise none. Cases without
    label are never trained or validated on: they join the test set unless their subject is
    elsewhere.

    Args:
        cases: The cohort.
        folds: Number of folds to draw; or "loso" or "site": each subject or site is a fold, in the
            order of their names, whatever the columns say.
        fold: Number of the fold held out, or None.
        val_fraction: Share in [0, 1); 0 is no validation set.
        seed: Seed of the split, apart from that of training, so that it stays the same.
        loads: Case id -> lesion load; each drawn fold then has its share of every site, and within
            a site of small and large loads.

    Raises:
        DataError: No labelled case to train on, a fold that does not exist, a labelled case
            without split or fold although others have one, a subject in two splits, or an image of
            two subjects in two splits.
    """
    check_cases(cases, source="data")
    # The split is one of labelled subjects; the others only join the test set.
    labelled = [case for case in cases if case.labels]
    split_of: dict[str, str] = {}
    if fold is None and folds not in LEAVE_ONE_OUT:
        split_of = value_by_subject(labelled, "split")
    if not split_of:
        split_of = hold_out_fold(labelled, folds=folds, fold=fold, seed=seed, loads=loads)
    _check_every_case_has_a_split(labelled, split_of)
    if "val" not in split_of.values():
        remaining: list[str] = []
        for subject, name in sorted(split_of.items()):
            if name == "train":
                remaining.append(subject)
        validated = _draw_validation(remaining, val_fraction=val_fraction, seed=seed)
        split_of |= dict.fromkeys(validated, "val")
    parts = _parts(cases, split_of)
    if not parts["train"]:
        fault = f"no labelled case to train on among {len(cases)} cases"
        raise DataError("data", fault, "label some, or give them split=train")
    _check_no_shared_images(parts)
    return Split(train=tuple(parts["train"]), val=tuple(parts["val"]), test=tuple(parts["test"]))


def _check_same_cases(
    rows: Sequence[Case],
    manifest: Path,
    *,
    modalities: Sequence[str],
    require: Sequence[str] | None = None,
) -> None:
    """Check that a run continues on the cases and the split that it was started on."""
    started = read_manifest(manifest, modalities=modalities, require=require)
    # Paths may differ: a data set that was moved is still the same.
    before = {case.case_id: case.split for case in started}
    now = {case.case_id: case.split for case in rows}
    for case_id in [*before, *now]:
        if case_id not in before or case_id not in now:
            fault = f"the run was started on other cases than these (as {case_id})"
            raise DataError(manifest, fault, "choose another output_dir")
    for case_id, split in now.items():
        if split != before[case_id]:
            # Folds balance the lesion loads, so a corrected label may draw other folds.
            fault = f"case {case_id} was in {before[case_id]} and is in {split} now"
            remedy = "has a label changed since? then choose another output_dir"
            raise DataError(manifest, fault, remedy, case_id=case_id)


def _check_every_case_has_a_split(labelled: Sequence[Case], split_of: Mapping[str, str]) -> None:
    for case in labelled:
        if case.subject_id not in split_of:
            fault = f"case {case.case_id} has a label but no split"
            raise DataError("data", fault, "fill the column", case_id=case.case_id)


def _draw_validation(subjects: Sequence[str], *, val_fraction: float, seed: int) -> list[str]:
    if len(subjects) < MIN_SUBJECTS_TO_VALIDATE or val_fraction == 0:
        return []
    n = max(1, round(val_fraction * len(subjects)))
    n = min(n, len(subjects) - 1)  # one is left to train on
    order = np.random.default_rng([seed, 1]).permutation(len(subjects))
    return [subjects[index] for index in order[:n]]


def _parts(cases: Sequence[Case], split_of: Mapping[str, str]) -> dict[str, list[Case]]:
    """Put each case in the part of its subject, and log unlabelled ones that find no place."""
    parts: dict[str, list[Case]] = {name: [] for name in SPLITS}
    left_out = []
    for case in cases:
        part = split_of.get(case.subject_id, "test")
        if case.labels or part == "test":
            parts[part].append(case)
        else:
            left_out.append(case.case_id)
    if left_out:
        names = ", ".join(left_out)
        logger.warning("left out, without label and of subjects in training: %s", names)
    return parts


def _check_no_shared_images(parts: Mapping[str, Sequence[Case]]) -> None:
    """Check that no image of two subjects is in two parts: it would leak from one to the other."""
    owner_of: dict[Path, tuple[str, str]] = {}
    for part, cases in parts.items():
        for case in cases:
            for file in case.images.values():
                # Resolved, since two names of one file are one image.
                other, subject = owner_of.setdefault(file.resolve(), (part, case.subject_id))
                if other != part:
                    raise DataError(
                        file,
                        f"is an image of subject {subject!r} in {other} and of "
                        f"{case.subject_id!r} in {part}",
                        "expected one subject_id for it",
                        case_id=case.case_id,
                    )
