"""Jobs that predict into one folder: each case by one of them at a time.

While a job runs it keeps a lock file that lists its cases, next to their records. Jobs of other
cases are welcome, as those of a job array (`case_id=`); a second job of the same cases is refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tversky_seg.data.errors import DataError
from tversky_seg.inference.case_records import RECORDS_FOLDER
from tversky_seg.inference.output_errors import writing
from tversky_seg.runtime.files import remove_scratch_files
from tversky_seg.runtime.locks import Locked, is_abandoned, lock_file, owner_of, read_lock

SECONDS_TO_WAIT = 300.0  # for jobs that begin or end; each takes moments


@contextmanager
def exclusive(output_dir: Path) -> Iterator[None]:
    """Keep other jobs from changing what all share: lesions.csv, predictions.json, list of jobs.

    Raises:
        DataError: The folder cannot be written, or another job holds it for minutes.
    """
    path = output_dir / RECORDS_FOLDER / "folder.lock"
    with ExitStack() as stack:
        try:
            with writing(path):
                lock = lock_file(path, wait_s=SECONDS_TO_WAIT, even_if_alive=True)
                stack.enter_context(lock)
        except Locked as error:
            raise DataError(output_dir, f"is in use by {error.owner}", "try again later") from error
        yield


@contextmanager
def running_job(output_dir: Path, case_ids: Sequence[str]) -> Iterator[None]:
    """Announce that these cases are predicted within the block.

    Leftovers of jobs that were killed are removed, unless other jobs run.

    Raises:
        DataError: Another job predicts one of these cases, or the folder cannot be written.
    """
    folder = output_dir / RECORDS_FOLDER
    with ExitStack() as stack:
        with exclusive(output_dir):
            jobs = _running_jobs(folder)
            for job in jobs:
                _refuse_same_cases(output_dir, job, case_ids)
            # The scratch files of a job that runs are its own.
            if not jobs:
                remove_scratch_files(output_dir)
                remove_scratch_files(folder)
            # Still under the lock, so that of two equal jobs the second sees the first.
            job = folder / f"job-{secrets.token_hex(8)}.lock"
            with writing(job):
                stack.enter_context(lock_file(job, content={"case_ids": list(case_ids)}))
        yield


def _running_jobs(folder: Path) -> list[Path]:
    """List the lock files of other jobs, and remove those of jobs that were killed."""
    jobs = []
    for job in folder.glob("job-*.lock"):
        if is_abandoned(job):
            job.unlink(missing_ok=True)
        else:
            jobs.append(job)
    return jobs


def _refuse_same_cases(output_dir: Path, job: Path, case_ids: Sequence[str]) -> None:
    case_ids_of_job = read_lock(job).get("case_ids", [])
    shared = set(case_ids).intersection(case_ids_of_job)
    if shared:
        raise DataError(
            output_dir,
            f"{owner_of(job)} is predicting case {min(shared)} there",
            "wait until it has ended (at most two minutes after a crash), "
            "or name another output_dir",
        )
