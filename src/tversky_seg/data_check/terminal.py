"""The dataset check on the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tversky_seg.data_check.case_report import CaseReport
from tversky_seg.data_check.check import DatasetCheck
from tversky_seg.data_check.finding import (
    ERROR,
    NOTE,
    WARNING,
    Finding,
    findings_by_level,
    group_by_remedy,
    name_some,
)
from tversky_seg.data_check.tables import HEADERS, case_row
from tversky_seg.report.labels import count

STYLES = {ERROR: "red", WARNING: "yellow", NOTE: "dim"}
TEXT_COLUMNS = ("case", "subject", "findings")
WIDE = 1000


def print_check(check: DatasetCheck, console: Console, *, title: str, command: str | None) -> None:
    """Print the cases, the findings (errors first), the costs and the plan.

    Into a file or pipe all is plain text, one line for each row, as wide as it needs to be.

    Args:
        check: Result of the check.
        console: Terminal or file.
        title: Name of the dataset.
        command: Command line of the plan; None without a plan.
    """
    # A log or a pipe gets neither colours nor folded lines.
    if not console.is_terminal:
        console = Console(
            file=console.file, width=WIDE, no_color=True, highlight=False, soft_wrap=True
        )
    console.print(_case_table(check, title=title, is_plain=not console.is_terminal))
    for level, findings in findings_by_level(check.findings).items():
        _print_findings(console, level, findings)
    console.print(Text("\ncosts", style="bold"))
    for cost in check.costs:
        basis = f" ({cost.basis})" if cost.basis else ""
        console.print(Text(f"  {cost.what}: {cost.amount}{basis}"))
    if check.plan is not None and command is not None:
        console.print(Text("\nplan", style="bold"))
        for reason in check.plan.reasons:
            console.print(Text(f"  {reason}"))
        console.print(Text(f"\n{command}"), soft_wrap=True)
    console.print(Text(f"\n{check.summary}", style="bold"))


def _print_findings(console: Console, level: str, findings: list[Finding]) -> None:
    console.print(Text(f"\n{level}s", style=f"bold {STYLES[level]}"))
    # A hundred cases with one fault are one line.
    for first, *others in group_by_remedy(findings):
        line = f"  {first}"
        if others:
            # A finding of the cohort has no case; its key names it.
            names = name_some([finding.case_id or finding.where for finding in others])
            line += f" (and {count(len(others), 'more finding')} of this kind: {names})"
        console.print(Text(line))


def _case_table(check: DatasetCheck, *, title: str, is_plain: bool) -> Table:
    style = None if is_plain else box.SIMPLE_HEAD
    table = Table(box=style, title=title, title_justify="left", pad_edge=False)
    for header in HEADERS:
        justify = "left" if header in TEXT_COLUMNS else "right"
        table.add_column(header, justify=justify, no_wrap=is_plain)  # type: ignore[arg-type]
    for report in check.reports:
        # As Text, because rich would take "[T1]" in a name for a style.
        cells = [Text(cell) for cell in case_row(report, check.sets)]
        table.add_row(*cells, style=_row_style(report))
    return table


def _row_style(report: CaseReport) -> str:
    """Colour the row of a case with errors or warnings."""
    levels = {finding.level for finding in report.findings}
    for level in (ERROR, WARNING):
        if level in levels:
            return STYLES[level]
    return ""
