"""The split of a run: made once, kept as its manifest, and held to when the run goes on."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tversky_seg.data.case import (
    Case,
    Dataset,
    Split,
    are_folds_drawn,
    file_and_frame,
    find_cases,
    read_manifest,
    split_cases,
    write_manifest,
)
from tversky_seg.data.errors import DataError
from tversky_seg.data.lesion_load import lesion_loads
from tversky_seg.runtime.distributed import is_first

logger = logging.getLogger("tversky_seg")


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
