"""The table of metrics that a command prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from tversky_seg.report.by_lesion import by_lesion_rows
from tversky_seg.report.labels import (
    FEWEST_FOR_INTERVAL,
    count,
    count_subjects,
    describe_rule,
    split_by_class,
    summary_rows,
)


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """Lay out mean, interval and pooled value of each metric, those by lesion below the others.

    Args:
        metrics: Content of metrics.json.
    """
    n_subjects = count_subjects(metrics)
    caption = describe_rule(metrics)
    if n_subjects < FEWEST_FOR_INTERVAL:
        caption += f" No interval is given for fewer than {FEWEST_FOR_INTERVAL} subjects."
    table = Table(title=count(metrics["n_cases"], "case"), caption=caption)
    table.title_justify = "left"
    table.caption_justify = "left"
    table.add_column("Metric", justify="left")
    for header in ("Mean", "95 % interval", "Pooled", "Cases undefined"):
        table.add_column(header, justify="right")
    for class_name, parts in split_by_class(metrics).items():
        # A heading for each class keeps the names of the metrics short.
        if class_name:
            table.add_row(f"[bold]{class_name}[/bold]")
        for row in summary_rows(parts, n_subjects=n_subjects):
            table.add_row(*row)
        table.add_section()
        if metrics.get("by_lesion"):
            for cells in by_lesion_rows(metrics, class_name):
                table.add_row(*cells)
            table.add_section()
    return table
