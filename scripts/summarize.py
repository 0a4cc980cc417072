"""One table from several runs: `python scripts/summarize.py runs/a runs/b … [--measures dice f2 pr_auc lesion_tpr]`.

A run is a directory that holds evaluation/metrics.json; a directory that holds runs stands for all of them. Rows are
runs, then the median of each column, as Markdown.
"""

import argparse
import json
import math
from pathlib import Path
from statistics import median


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, or directories of runs")
    parser.add_argument("--measures", nargs="+", default=["dice", "f2", "pr_auc", "lesion_tpr"])
    words = parser.parse_args()
    files = [file for run in words.runs for file in sorted(run.glob("**/evaluation/metrics.json"))]
    if not files:
        parser.exit(2, f"error: {words.runs[0]}: no finished run; expected <run>/evaluation/metrics.json\n")
    print(table({file.parents[1].name: json.loads(file.read_text()) for file in files}, words.measures))


def table(runs: dict[str, dict[str, object]], measures: list[str]) -> str:
    """Markdown table of the means of each run (of each class, where there are several), and their medians."""
    rows = {name: values for run, metrics in runs.items() for name, values in _means_of(run, metrics).items()}
    lines = [f"| run | {' | '.join(measures)} |", "|---" * (len(measures) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(_text(values.get(m)) for m in measures)} |" for name, values in rows.items()]
    columns = [[v for values in rows.values() if (v := values.get(m)) is not None] for m in measures]
    lines.append(f"| median of {len(rows)} | {' | '.join(_text(median(c) if c else None) for c in columns)} |")
    return "\n".join(lines)


def _means_of(run: str, metrics: dict[str, object]) -> dict[str, dict[str, float | None]]:
    means = metrics["mean"]
    assert isinstance(means, dict)
    if any(isinstance(value, dict) for value in means.values()):
        return {f"{run}, {name}": values for name, values in means.items()}
    return {run: means}


def _text(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


if __name__ == "__main__":
    main()
