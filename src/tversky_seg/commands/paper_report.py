"""What `tversky-seg reproduce` writes: the paper's table, summary, comparison, submissions."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tversky_seg.analysis.comparison import compare, write_comparison
from tversky_seg.analysis.cross_validation import evaluate_folds
from tversky_seg.analysis.paper_runs import PlannedRun, Request
from tversky_seg.analysis.paper_table import paper_table, table_notes, write_paper_csv
from tversky_seg.analysis.papers import Metrics
from tversky_seg.analysis.recommendation import recommend
from tversky_seg.analysis.runs import average_runs, read_runs
from tversky_seg.analysis.summaries import summarize_settings
from tversky_seg.analysis.sweep import group_runs, read_sweep
from tversky_seg.analysis.sweep_report import write_summary
from tversky_seg.data.datasets.isbi2015 import find_isbi2015
from tversky_seg.data.manifest import write_manifest
from tversky_seg.runtime.files import write_text


def write_report(request: Request, runs: Sequence[PlannedRun], rows: Sequence[str]) -> None:
    """Evaluate each row and seed as one cohort; write the table, the summary and the comparison."""
    metrics_of_rows: dict[str, list[Metrics]] = {}
    cohorts_of_rows: dict[str, list[Path]] = {}
    for row in rows:
        metrics_of_rows[row] = []
        cohorts_of_rows[row] = []
        for seed in request.seeds:
            cohort = request.output_dir / "cohorts" / f"seed{seed}" / row
            metrics = evaluate_folds(folders_of(runs, row, seed), cohort)
            metrics_of_rows[row].append(metrics)
            cohorts_of_rows[row].append(cohort)
    write_table(request, metrics_of_rows)
    write_sweep_summary(runs, rows, request.output_dir / "summary")
    if len(rows) > 1:
        compare_rows(cohorts_of_rows, request.output_dir / "comparison")
    print(request.output_dir)


def folders_of(runs: Sequence[PlannedRun], row: str, seed: int) -> list[Path]:
    """List the run directories of a row and a seed, fold by fold."""
    return [run.folder for run in runs if run.row == row and run.seed == seed]


def write_table(request: Request, metrics_of_rows: Mapping[str, Sequence[Metrics]]) -> None:
    """Write and print the table, with notes on how our numbers were made."""
    paper = request.paper
    first_row = next(iter(metrics_of_rows.values()))
    notes = table_notes(request, n_cases=first_row[0]["n_cases"])
    parts = [
        f"**{paper.title}**",
        paper_table(paper, metrics_of_rows),
        "\n".join(f"- {note}" for note in notes),
    ]
    text = "\n\n".join(parts)
    write_text(request.output_dir / "table.md", text + "\n")
    write_paper_csv(request.output_dir / "table.csv", paper, metrics_of_rows, request.seeds)
    print(text)


def write_sweep_summary(runs: Sequence[PlannedRun], rows: Sequence[str], output_dir: Path) -> None:
    """Write the summary of all runs as a sweep; print the setting that validation recommends."""
    folders = [run.folder for run in runs if run.row in rows]
    settings = group_runs(read_sweep(sorted(folders)))
    recommendation = ""
    # With one setting there is nothing to choose.
    if len(settings) > 1:
        recommendation = recommend(settings, "f2").text
        print(recommendation)
    summaries = summarize_settings(settings)
    write_summary(settings, summaries, recommendation, output_dir=output_dir)


def compare_rows(cohorts_of_rows: Mapping[str, Sequence[Path]], output_dir: Path) -> None:
    """Test each row against the first, paired by subject."""
    averages = []
    for row, cohorts in cohorts_of_rows.items():
        # Seeds are not independent samples: a test pairs each subject's mean over them.
        averages.append(average_runs(read_runs(cohorts), name=row))
    write_comparison(averages, compare(averages), output_dir=output_dir)


def write_submissions(
    request: Request, runs: Sequence[PlannedRun], rows: Sequence[str], *, download: Path
) -> None:
    """Predict the test scans of ISBI 2015 by the folds as one ensemble, and pack a zip per row.

    The networks of the first seed are used.
    """
    scans = [case for case in find_isbi2015(download) if not case.labels]
    if not scans:
        print("the download holds no test scans: no submission")
        return
    manifest = request.output_dir / "test_scans.csv"
    write_manifest(scans, manifest)
    for row in rows:
        folds = [quoted(folder) for folder in folders_of(runs, row, request.seeds[0])]
        masks = request.output_dir / "submissions" / row
        checkpoint = f"checkpoint=[{','.join(folds)}]"
        run_command("predict", checkpoint, f"input={manifest}", f"output_dir={masks}")
        # The site takes letters, digits and - in the name of a method.
        method = row.replace("_", "-")
        archive = str(masks.with_suffix(".zip"))
        pack = [str(masks), "--method", method, "--output", archive]
        run_command("isbi-submission", *pack)


def run_command(name: str, *arguments: str) -> None:
    """Run another command in a process of its own."""
    subprocess.run([sys.executable, "-m", "tversky_seg", name, *arguments], check=True)


def quoted(folder: Path) -> str:
    """Quote a path for a list on Hydra's command line, whatever characters it has."""
    # Hydra reads commas, brackets and = inside quotes as they are.
    escaped = str(folder).replace("'", r"\'")
    return f"'{escaped}'"
