"""Judge predictions against the labels of a manifest. `python evaluate.py --help` says what can be set."""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from tversky_seg import config
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import read_manifest
from tversky_seg.report.page import metrics_table


@config.command("evaluate")
def evaluate(cfg: DictConfig) -> int:
    """Read the saved files, measure, and write the report. Of a manifest with a labelled test set, that is judged."""
    judge = config.build(cfg, "evaluation")
    settings = config.plain(cfg)
    predictions, manifest, output_dir = (
        Path(str(settings[key])) for key in ("predictions", "manifest", "output_dir")
    )
    cases = labelled_cases(manifest)
    tested = [case for case in cases if case.split == "test" and case.labels] or cases
    metrics = judge(predictions, tested, output_dir=output_dir, classes=settings["classes"])
    console = Console()
    console.print(metrics_table(metrics))
    console.print(str(output_dir), soft_wrap=True)
    return 1 if metrics.get("faults") else 0


def labelled_cases(manifest: Path) -> list[Case]:
    """The cases of a manifest, with their images for the report's pictures where all of them are there."""
    try:
        return read_manifest(manifest)
    except DataError:
        return read_manifest(manifest, modalities=())


if __name__ == "__main__":
    evaluate()
