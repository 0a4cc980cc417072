"""Tables of text as Markdown, for a page, and as LaTeX, for a paper; rows of numbers for CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

LATEX = {
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "³": "$^3$",
    "−": "$-$",
    "±": r"$\pm$",
    "–": "--",
}
"""Characters that LaTeX reads as commands, or that its fonts lack."""


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, n_text_columns: int = 1
) -> str:
    """Write a Markdown table, without a line feed at its end.

    Args:
        header: Title of each column.
        rows: One text for each column.
        n_text_columns: Columns at the left that hold names; the others hold numbers, which are
            aligned at the right.
    """
    # "|---|---:|---:|": a colon at the right aligns a column right.
    n_number_columns = len(header) - n_text_columns
    alignment = "|" + "---|" * n_text_columns + "---:|" * n_number_columns
    lines = [_markdown_row(header), alignment]
    for row in rows:
        lines.append(_markdown_row(row))
    return "\n".join(lines)


def latex_tabular(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""Write a LaTeX tabular, for `\usepackage{booktabs}`, without a line feed at its end.

    Args:
        header: Title of each column; the first column holds names, the others hold numbers.
        rows: One text for each column.
    """
    # "lrrr" aligns the names of the rows left, and the numbers right.
    columns = "l" + "r" * (len(header) - 1)
    lines = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _latex_row(header),
        r"\midrule",
    ]
    for row in rows:
        lines.append(_latex_row(row))
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines)


def latex_float(tabular: str, *, caption: str) -> str:
    """Put a tabular into a table with a caption.

    Args:
        tabular: LaTeX, as of `latex_tabular`.
        caption: Plain text.
    """
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(caption)}}}",
        tabular,
        r"\end{table}",
    ]
    return "\n".join(lines)


def escape_latex(text: str) -> str:
    """Escape a plain text for LaTeX."""
    # One character at a time: with one replacement after another, the braces of \textbackslash{}
    # would be escaped in turn.
    return "".join(LATEX.get(character, character) for character in text)


def escape_markdown(text: str) -> str:
    """Escape a plain text for a cell of a Markdown table."""
    # The backslash first, so that the one put before a bar is not doubled.
    return text.replace("\\", "\\\\").replace("|", "\\|")


def blank_nan(values: Iterable[Any]) -> list[Any]:
    """Replace NaN by None, which a CSV file holds as an empty cell."""
    row: list[Any] = []
    for value in values:
        # Cells may be texts and counts, too, for which math.isnan would fail.
        if isinstance(value, float) and math.isnan(value):
            row.append(None)
        else:
            row.append(value)
    return row


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escape_markdown(cell) for cell in cells) + " |"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(escape_latex(cell) for cell in cells) + r" \\"
