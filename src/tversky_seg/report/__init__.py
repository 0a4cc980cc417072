"""The report of an evaluation: one HTML page, its charts, slices and viewer."""

from tversky_seg.report.page import metrics_table, write_report

__all__ = ["metrics_table", "write_report"]
