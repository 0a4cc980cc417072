"""Run all rows of a paper's table and write the table, with the paper's numbers next to ours.

For example:

    python scripts/reproduce.py salehi2017                             synthetic cohort, on a CPU
    python scripts/reproduce.py salehi2017 --data MSSEG2016 --seeds 0,1,2    at the paper's scale
    python scripts/reproduce.py shirokikh2020_lits --scale full --dry-run    print the commands
    python scripts/reproduce.py hashemi2018_isbi trainer.device=cpu trainer.threads=2

Run the same command again to resume. A failed run does not stop the others; the table then has the
rows whose runs are complete. The output folder gets a run directory for each row, fold and seed,
cohorts/ (the held-out predictions of all folds, evaluated as one cohort for each row and seed),
table.{md,csv}, summary/ (as scripts/summarize.py writes it) and comparison/ (paired tests of each
row against the first). commands/papers.yaml holds the papers' tables.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from tversky_seg.analysis.paper_runs import (
    PlannedRun,
    Request,
    check_settings,
    link_training_subjects,
    plan_runs,
    save_plan,
)
from tversky_seg.analysis.papers import read_papers
from tversky_seg.data.errors import DataError
from tversky_seg.runtime.cli import OneLineParser
from tversky_seg.runtime.program import as_called

PAPERS = read_papers(Path(__file__).with_name("papers.yaml"))

PHANTOM = "phantom"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the missing trainings and write the table.

    Returns:
        Exit status: 0 complete, 1 some runs failed and the table has the other rows, 2 no row is
        complete.
    """
    parser = make_parser()
    # Intermixed: settings of train.py may stand before and after the options.
    options = parser.parse_intermixed_args(arguments)
    try:
        request = read_request(options)
        runs = plan_runs(request)
        if options.dry_run:
            for run in runs:
                print(shown_command(run))
            return 0
        return reproduce(request, runs, n_jobs=options.jobs)
    except (DataError, ValueError) as error:
        parser.error(str(error))
    except OSError as error:
        place = error.filename or "--output"
        parser.error(f"{place}: {error.strerror}; choose another --output or free disk space")
    except subprocess.CalledProcessError as error:
        command = shlex.join(error.cmd[1:4])
        return print_error(f"{command}: exit status {error.returncode}; run again to resume", 1)
    except KeyboardInterrupt:
        return print_error("stopped; run the same command again to resume", 130)


def reproduce(request: Request, runs: Sequence[PlannedRun], *, n_jobs: int) -> int:
    """Run the missing trainings and write the table; the exit status as of `main`."""
    save_plan(runs, request.output_dir)
    link_training_subjects(request)
    if n_jobs > 1:
        share_cores(n_jobs)
    failed = run_all(runs, n_jobs=n_jobs)

    # A row needs all of its folds and seeds: means over fewer would be of other subjects.
    unfinished_rows = {run.row for run in runs if not run.is_finished}
    rows = [row for row in request.rows if row not in unfinished_rows]
    if rows:
        # This imports torch, which takes seconds; help and --dry-run need none of it.
        from tversky_seg.commands.paper_report import write_report, write_submissions

        write_report(request, runs, rows)
        if request.paper.submission is not None and request.data is not None:
            write_submissions(request, runs, rows, download=request.data)
    if not failed:
        return 0

    text = f"{failed[0].folder}: the training failed; {len(failed)} of {len(runs)} runs failed"
    if unfinished_rows:
        text += f", so the table lacks {', '.join(sorted(unfinished_rows))}"
    status = 1 if rows else 2
    return print_error(f"{text}; run the same command again to resume", status)


# The command line


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "paper", choices=PAPERS, metavar="paper", help=f"one of {', '.join(PAPERS)}"
    )
    parser.add_argument("settings", nargs="*", help="any train.py settings, for every run")
    parser.add_argument(
        "--data",
        default=PHANTOM,
        help="folder of the official download, or phantom: the synthetic cohort (default)",
    )
    parser.add_argument(
        "--scale",
        choices=("small", "full"),
        help="small: minutes for each run on two CPU cores, another recipe than the paper's "
        "(default with the synthetic cohort); full: the paper's, for a GPU",
    )
    parser.add_argument("--rows", type=names_of_list, help="rows, as tversky_b05,tversky_b07 (all)")
    parser.add_argument(
        "--seeds", type=seeds_of_list, default=(0,), help="seeds of training, as 0,1,2 (0)"
    )
    parser.add_argument(
        "--jobs",
        type=positive_number,
        default=1,
        help="number of runs at the same time (1); they share the cores unless OMP_NUM_THREADS "
        "or trainer.threads is set",
    )
    parser.add_argument(
        "--output", "--out", type=Path, help="output folder (runs/reproduce/<paper>_<data>_<scale>)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    return parser


def names_of_list(text: str) -> tuple[str, ...]:
    """Split a list at commas or spaces, without duplicates."""
    return tuple(dict.fromkeys(text.replace(",", " ").split()))


def seeds_of_list(text: str) -> tuple[int, ...]:
    """Split a list of seeds, without duplicates."""
    try:
        # Through a dict, so that 0 and 00 are one seed.
        seeds = tuple(dict.fromkeys(map(int, names_of_list(text))))
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"{text!r}; expected whole numbers from 0, as 0,1,2")
    return seeds


def positive_number(text: str) -> int:
    """Read a number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number from 1")
    return int(text)


def read_request(options: argparse.Namespace) -> Request:
    """Check the options.

    Raises:
        DataError: An option cannot be used.
    """
    paper = PAPERS[options.paper]
    data = None
    if options.data != PHANTOM:
        data = Path(options.data)
        if not data.is_dir():
            raise DataError(
                "--data", f"{data} is not a folder", "expected phantom or the official download"
            )
    scale = options.scale
    if scale is None:
        scale = "small" if data is None else "full"
    for row in options.rows or ():
        if row not in paper.rows:
            raise DataError("--rows", row, f"expected one of {', '.join(paper.rows)}")
    check_settings(options.settings)
    output_dir = options.output
    if output_dir is None:
        label = PHANTOM if data is None else "official"
        output_dir = Path(f"runs/reproduce/{options.paper}_{label}_{scale}")
    return Request(
        paper=paper,
        data=data,
        scale=scale,
        seeds=options.seeds,
        rows=options.rows or paper.rows,
        output_dir=output_dir,
        settings=tuple(options.settings),
    )


# The trainings


def train_command(run: PlannedRun) -> list[str]:
    """Write the command line of a training."""
    return [sys.executable, "-m", "tversky_seg", "train", *run.settings]


def shown_command(run: PlannedRun) -> str:
    """Write the command line of a training for the user, to copy."""
    return as_called(f"python train.py {shlex.join(run.settings)}")


def share_cores(n_jobs: int) -> None:
    """Give each job its share of the cores, unless OMP_NUM_THREADS is set.

    Runs that each use all cores slow each other down many times.
    """
    n_threads = max(1, (os.cpu_count() or 1) // n_jobs)
    os.environ.setdefault("OMP_NUM_THREADS", str(n_threads))


def run_all(runs: Sequence[PlannedRun], *, n_jobs: int) -> list[PlannedRun]:
    """Run the trainings that are not finished.

    SIGTERM is passed on to them, so that each saves a checkpoint.

    Returns:
        The runs that failed.
    """
    # train.py itself resumes a run that was begun, so these need no other treatment.
    missing = [run for run in runs if not run.is_finished]
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are finished", flush=True)
    running: set[subprocess.Popen[bytes]] = set()

    def train(number: int, run: PlannedRun) -> int:
        print(f"[{number} of {len(missing)}] {shown_command(run)}", flush=True)
        with subprocess.Popen(train_command(run)) as process:
            running.add(process)
            return process.wait()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        for process in running:
            process.terminate()
        raise SystemExit(128 + signal.SIGTERM)

    previous_handler = signal.signal(signal.SIGTERM, stop)
    try:
        # Threads suffice: each only waits for its process.
        with ThreadPoolExecutor(max_workers=n_jobs) as pool:
            numbers = range(1, len(missing) + 1)
            statuses = list(pool.map(train, numbers, missing))
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
    return [run for run, status in zip(missing, statuses, strict=True) if status != 0]


def print_error(line: str, status: int) -> int:
    """Print a line to stderr; returns the exit status."""
    print(f"error: {line}", file=sys.stderr)
    return status
