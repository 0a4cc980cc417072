"""The report of an evaluation: one HTML page, its figures, slices and viewer; the terminal's table."""

from tversky_seg.report.page import write_report
from tversky_seg.report.terminal import metrics_table

__all__ = ["metrics_table", "write_report"]
