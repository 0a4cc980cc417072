"""Tables of an evaluation by site, scanner and modalities, as summarize prints them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tversky_seg.analysis.tables import markdown_table
from tversky_seg.report.labels import LABELS, format_value, split_by_class

METRICS = ("dice", "precision", "sensitivity", "lesion_tpr", "lesion_fpr", "lesion_f1")


def group_tables(metrics: Mapping[str, Any]) -> str:
    """Lay out the groups of an evaluation, one Markdown table for each column and class.

    After leave-one-site-out, the table by site has the metrics of each site by the network that
    never saw it.

    Args:
        metrics: Content of metrics.json.

    Returns:
        The tables; empty where the cases differ in no column.
    """
    tables: list[str] = []
    for column in metrics.get("groups", ()):
        for class_name in split_by_class(metrics):
            groups = metrics[f"by_{column}"]
            if class_name:
                groups = groups[class_name]
            header = [f"{column} {class_name}".strip(), "cases", "subjects"]
            header += [LABELS[name] for name in METRICS]
            tables.append(markdown_table(header, [_row(group) for group in groups]))
    return "\n\n".join(tables)


def _row(group: Mapping[str, Any]) -> list[str]:
    value = "not given" if group["value"] is None else group["value"]
    cells = [value, str(group["n_cases"]), str(group["n_subjects"])]
    for name in METRICS:
        cells.append(format_value(name, group["mean"][name]))
    return cells
