"""Preparation of a whole cohort in several processes."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.preprocessing.case_cache import load_cached, prepare_quietly
from tversky_seg.data.preprocessing.note import Note
from tversky_seg.data.preprocessing.pipeline import Preprocessing
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.runtime.progress import Reporter
from tversky_seg.runtime.workers import WorkerDied, map_in_processes

logger = logging.getLogger("tversky_seg")

N_LISTED = 5  # cases named in one warning


def prepare_all(
    cases: Sequence[Case], settings: Preprocessing, *, cache_dir: Path, n_workers: int | None = None
) -> list[PreparedCase]:
    """Prepare cases in parallel, with progress; cached cases are only checked.

    Args:
        cases: The cohort.
        settings: Preprocessing of all cases.
        cache_dir: Folder of prepared cases.
        n_workers: Processes; 1 works in this one; None: one per core, at most 8, if the work
            takes longer than their start.

    Returns:
        The prepared cases, in the order of `cases`.

    Raises:
        DataError: The faults of all cases in one; the others are in the cache.
    """
    # Looked up in this process: a complete cache needs no worker.
    prepared: dict[str, PreparedCase] = {}
    faults: dict[str, DataError] = {}
    missing = []
    for case in cases:
        try:
            cached = load_cached(case, settings, cache_dir=cache_dir)
        except DataError as fault:
            faults[case.case_id] = fault
            continue
        if cached is None:
            missing.append(case)
        else:
            prepared[case.case_id] = cached
    # Workers finish in any order.
    for case_id, result in _prepare_missing(missing, settings, cache_dir, n_workers):
        if isinstance(result, DataError):
            faults[case_id] = result
        else:
            prepared[case_id] = result
    if faults:
        raise DataError.gather(faults[case.case_id] for case in cases if case.case_id in faults)
    # One warning for the cohort, where a process of its own would log each case's.
    in_order = [prepared[case.case_id] for case in cases]
    _log_notes(in_order)
    return in_order


def _prepare_missing(
    cases: Sequence[Case], settings: Preprocessing, cache_dir: Path, n_workers: int | None
) -> Iterator[tuple[str, PreparedCase | DataError]]:
    """Prepare cases, in any order; yield case_id and prepared case or fault."""
    if not cases:
        return
    work = partial(_prepared_or_fault, settings=settings, cache_dir=cache_dir)
    with Reporter("preprocessing", total=len(cases)) as reporter:
        try:
            for number, result in map_in_processes(work, cases, n_workers=n_workers):
                case_id = cases[number].case_id
                reporter.advance(case_id)
                yield case_id, result
        except WorkerDied as error:
            raise DataError("preprocessing", str(error)) from error


def _prepared_or_fault(
    case: Case, *, settings: Preprocessing, cache_dir: Path
) -> PreparedCase | DataError:
    """Prepare a case; return its fault, so that one case does not stop the others."""
    try:
        return prepare_quietly(case, settings, cache_dir=cache_dir)
    except DataError as fault:
        return fault
    except Exception as error:
        error.add_note(f"while preprocessing case {case.case_id}")
        raise


def _log_notes(cases: Sequence[PreparedCase]) -> None:
    """Log one warning for each oddity, with the cases that have it."""
    case_ids: dict[Note, list[str]] = defaultdict(list)
    for case in cases:
        for note in case.notes:
            case_ids[note].append(case.case_id)
    for note, ids in case_ids.items():
        listed = ", ".join(ids[:N_LISTED])
        if len(ids) > N_LISTED:
            listed += ", …"
        logger.warning("%s (%d of %d cases: %s)", note, len(ids), len(cases), listed)
