"""Analysis across runs: comparisons with paired tests, cross-validation, sweeps.

The names are imported when first used: the help of a command needs no torch.
"""

from typing import TYPE_CHECKING

from tversky_seg.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from tversky_seg.analysis.comparison import compare, write_comparison
    from tversky_seg.analysis.comparison_text import comparison_latex, comparison_markdown
    from tversky_seg.analysis.cross_validation import evaluate_folds
    from tversky_seg.analysis.differences import Difference
    from tversky_seg.analysis.power import detectable_effect, signed_rank_power
    from tversky_seg.analysis.recommendation import Recommendation, recommend
    from tversky_seg.analysis.runs import Run, average_runs, check_alike, read_runs
    from tversky_seg.analysis.seeds import SeedModel, seed_model
    from tversky_seg.analysis.statistics import (
        bootstrap_interval,
        holm,
        noninferiority_p,
        rank_biserial,
        standardized_mean,
        wilcoxon_p,
    )
    from tversky_seg.analysis.summaries import Summary, summarize_settings
    from tversky_seg.analysis.sweep import Setting, SweepRun, group_runs, read_sweep
    from tversky_seg.analysis.sweep_report import summary_latex, summary_markdown, write_summary
    from tversky_seg.analysis.tables import latex_tabular, markdown_table
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "comparison": ["compare", "write_comparison"],
            "comparison_text": ["comparison_latex", "comparison_markdown"],
            "cross_validation": ["evaluate_folds"],
            "differences": ["Difference"],
            "power": ["detectable_effect", "signed_rank_power"],
            "recommendation": ["Recommendation", "recommend"],
            "runs": ["Run", "average_runs", "check_alike", "read_runs"],
            "seeds": ["SeedModel", "seed_model"],
            "statistics": [
                "bootstrap_interval",
                "holm",
                "noninferiority_p",
                "rank_biserial",
                "standardized_mean",
                "wilcoxon_p",
            ],
            "summaries": ["Summary", "summarize_settings"],
            "sweep": ["Setting", "SweepRun", "group_runs", "read_sweep"],
            "sweep_report": ["summary_latex", "summary_markdown", "write_summary"],
            "tables": ["latex_tabular", "markdown_table"],
        },
    )

__all__ = [
    "Difference",
    "Recommendation",
    "Run",
    "SeedModel",
    "Setting",
    "Summary",
    "SweepRun",
    "average_runs",
    "bootstrap_interval",
    "check_alike",
    "compare",
    "comparison_latex",
    "comparison_markdown",
    "detectable_effect",
    "evaluate_folds",
    "group_runs",
    "holm",
    "latex_tabular",
    "markdown_table",
    "noninferiority_p",
    "rank_biserial",
    "read_runs",
    "read_sweep",
    "recommend",
    "seed_model",
    "signed_rank_power",
    "standardized_mean",
    "summarize_settings",
    "summary_latex",
    "summary_markdown",
    "wilcoxon_p",
    "write_comparison",
    "write_summary",
]
