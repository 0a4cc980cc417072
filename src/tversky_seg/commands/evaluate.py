"""Evaluate predictions against the labels of a manifest."""

import sys
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from tversky_seg import config
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import read_manifest
from tversky_seg.report.terminal import metrics_table


def evaluate(cfg: DictConfig) -> int:
    """Read the saved predictions, compute the metrics, and write the report."""
    settings = config.plain(cfg)
    predictions = Path(str(settings["predictions"]))
    manifest = Path(str(settings["manifest"]))
    output_dir = Path(str(settings["output_dir"]))
    evaluate_predictions = config.build(cfg, "evaluation")

    cases = cases_to_evaluate(manifest)
    metrics = evaluate_predictions(
        predictions,
        cases,
        output_dir=output_dir,
        classes=settings["classes"],
        # Without the folder of the program, which says nothing to a reader of the report.
        command=[Path(sys.argv[0]).name, *sys.argv[1:]],
    )

    console = Console()
    console.print(metrics_table(metrics))
    # A path stays in one piece, to copy.
    console.print(f"report: {output_dir / 'report.html'}", soft_wrap=True)
    console.print(str(output_dir), soft_wrap=True)
    return 1 if metrics.get("faults") else 0


def cases_to_evaluate(manifest: Path) -> list[Case]:
    """List the test cases of a manifest if any of them has a label, otherwise all cases."""
    try:
        cases = read_manifest(manifest, may_lack_modalities=True)
    except DataError:
        # Images only serve the report's pictures, so their files may be missing.
        cases = read_manifest(manifest, modalities=())
    tested = [case for case in cases if case.split == "test"]
    # Those without a label may be repeats of other scans.
    return tested if any(case.labels for case in tested) else cases
