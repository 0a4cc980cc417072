"""Judge predictions against the labels of a manifest. `python evaluate.py --help` says what can be set."""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from tversky_seg import config
from tversky_seg.data.cases import read_manifest
from tversky_seg.report import metrics_table


@config.verb("evaluate")
def evaluate(cfg: DictConfig) -> int:
    """Read the saved files, measure, and write the report. Of a manifest with a test set, that set is judged."""
    config.check_config(cfg, config_name="evaluate")
    config.log_to_terminal()
    judge = config.build(cfg, "evaluation")
    cases = read_manifest(Path(cfg.manifest), modalities=())
    tested = [case for case in cases if case.split == "test"] or cases
    metrics = judge(
        Path(cfg.predictions), tested, output_dir=Path(cfg.output_dir), classes=config.plain(cfg)["classes"]
    )
    console = Console()
    console.print(metrics_table(metrics))
    console.print(str(cfg.output_dir))
    return 1 if metrics.get("faults") else 0


if __name__ == "__main__":
    evaluate()
