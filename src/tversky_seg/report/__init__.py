"""The report of an evaluation: an HTML page with figures and viewer, and a table."""

from tversky_seg.report.page import write_report
from tversky_seg.report.terminal import metrics_table

__all__ = ["metrics_table", "write_report"]
