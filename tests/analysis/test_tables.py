"""Tables as Markdown and LaTeX: alignment, and what must be escaped."""

import math

from tversky_seg.analysis.tables import blank_nan, latex_float, latex_tabular, markdown_table


def test_markdown_aligns_numbers_at_the_right_and_escapes_bars():
    table = markdown_table(["Row", "", "Dice"], [["a|b", "ours", "0.5"]], n_text_columns=2)
    assert table.splitlines() == [
        "| Row |  | Dice |",
        "|---|---|---:|",
        r"| a\|b | ours | 0.5 |",
    ]


def test_latex_escapes_its_commands_in_cells_and_caption():
    tabular = latex_tabular(["Run_1", "Dice ↑"], [["50 % & more", "–"]])
    assert tabular.splitlines() == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"Run\_1 & Dice $\uparrow$ \\",
        r"\midrule",
        r"50 \% \& more & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert r"\caption{up to 3 mm$^3$}" in latex_float(tabular, caption="up to 3 mm³")


def test_nan_becomes_an_empty_cell():
    assert blank_nan([0.5, math.nan, "a", 3]) == [0.5, None, "a", 3]
