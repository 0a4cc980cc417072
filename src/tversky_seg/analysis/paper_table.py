"""The table of a paper with our numbers next to the paper's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tversky_seg.analysis.paper_runs import Request
from tversky_seg.analysis.papers import Metrics, Paper
from tversky_seg.analysis.tables import markdown_table
from tversky_seg.runtime.files import write_csv


def paper_table(paper: Paper, evaluated: Mapping[str, Sequence[Metrics]]) -> str:
    """Write a Markdown table: for each row the paper's numbers, then ours.

        | Row | | DSC | F2 |
        |---|---|---:|---:|
        | tversky_b05 | paper | 53.42 | 51.77 |
        | tversky_b05 | ours | 71.98 ± 1.62 | 69.4 ± 1.7 |

    Args:
        paper: The paper.
        evaluated: Row -> metrics.json of each seed.

    Returns:
        The table; ours are means over the seeds ± their standard deviation. A row without numbers
        of the paper has one line.
    """
    header = ["Row", "", *(column.name for column in paper.columns)]
    rows: list[list[str]] = []
    for row, of_seeds in evaluated.items():
        printed = paper.printed[row]
        if printed:
            # A paper may leave a column out for some rows.
            cells = [_printed_cell(printed.get(column.name)) for column in paper.columns]
            rows.append([row, "paper", *cells])
        cells = []
        for column in paper.columns:
            cells.append(mean_and_spread([column.value(metrics) for metrics in of_seeds]))
        rows.append([row, "ours", *cells])
    return markdown_table(header, rows, n_text_columns=2)


def write_paper_csv(
    path: Path, paper: Paper, evaluated: Mapping[str, Sequence[Metrics]], seeds: Sequence[int]
) -> None:
    """Write the numbers of `paper_table` as CSV, one line for each row, column and seed."""
    header = ("row", "column", "seed", "ours", "paper")
    write_csv(path, header, _csv_rows(paper, evaluated, seeds))


def _csv_rows(
    paper: Paper, evaluated: Mapping[str, Sequence[Metrics]], seeds: Sequence[int]
) -> Iterator[tuple[Any, ...]]:
    for row, of_seeds in evaluated.items():
        for column in paper.columns:
            printed = paper.printed[row].get(column.name)
            for seed, metrics in zip(seeds, of_seeds, strict=True):
                value = column.value(metrics)
                ours = None if math.isnan(value) else value
                yield row, column.name, seed, ours, printed


def table_notes(request: Request, *, n_cases: int) -> list[str]:
    """Say below the table how our numbers were made, and what must not be compared."""
    data = "the synthetic cohort" if request.data is None else "the official data"
    # What the ± in the table is; a single seed has none.
    spread = "one seed"
    if len(request.seeds) > 1:
        spread = f"mean ± standard deviation of {len(request.seeds)} seeds"
    notes = [
        f"Ours: {data}, {n_cases} cases, each evaluated by a network that was not trained on its "
        f"subject; {spread}."
    ]
    if request.data is None:
        notes.append("These are other data than the paper's: compare the order of the rows.")
    if request.scale == "small":
        notes.append(
            "`--scale small`: 400 or 600 steps with patches of 32, another recipe than the "
            "paper's (small.yaml)."
        )
    else:
        notes.append(
            "`--scale full`: the paper's settings as far as they are known (docs/conformance.md)."
        )
    notes += request.paper.notes
    if request.data is not None:
        notes += request.paper.official_notes
    return notes


def mean_and_spread(values: Sequence[float]) -> str:
    """Format the mean of the defined values ± their standard deviation, as "70.5 ± 0.7".

    Returns:
        The mean alone if one value is defined, "–" if none is.
    """
    defined = [value for value in values if not math.isnan(value)]
    if not defined:
        return "–"
    mean = f"{statistics.fmean(defined):.4g}"
    if len(defined) == 1:
        return mean
    # The deviation gets the decimals of its mean: 99.96 ± 0.00, not 99.96 ± 0.0.
    n_decimals = max(1, len(mean.partition(".")[2]))
    return f"{mean} ± {statistics.stdev(defined):.{n_decimals}f}"


def _printed_cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:g}"
