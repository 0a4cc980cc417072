"""The trainings behind the table of a paper: their settings, folders and plan.json."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tversky_seg.analysis.papers import Paper
from tversky_seg.data.errors import DataError
from tversky_seg.runtime.files import read_json, write_json
from tversky_seg.runtime.run_settings import is_free

# n_test=0: the papers cross-validate all cases, so none is set aside.
PHANTOM_SETTINGS = (
    "data=phantom",
    "data.modalities=[FLAIR,T1,T2]",
    "data.importer.n_test=0",
)
PLANNED_SETTINGS = {
    "experiment": "expected --rows and --scale to choose it",
    "data": "expected --data to choose it",
    "seed": "expected --seeds",
    "output_dir": "expected --output",
    "data.fold": "every fold is run",
}
"""Settings of train.py that this script chooses, and how to choose them."""


@dataclass(frozen=True)
class Request:
    """The part of a paper's table to run.

    Attributes:
        paper: Table of the paper.
        data: Folder of the official download; None: the synthetic cohort.
        scale: "small" (minutes for each run on a CPU) or "full" (the paper's).
        seeds: Seeds of training.
        rows: Rows of the table.
        output_dir: Folder of the runs and the table.
        settings: Settings of train.py for every run.
    """

    paper: Paper
    data: Path | None
    scale: str
    seeds: tuple[int, ...]
    rows: tuple[str, ...]
    output_dir: Path
    settings: tuple[str, ...]


@dataclass(frozen=True)
class PlannedRun:
    """One training: a row of the table, a seed and usually a fold."""

    row: str
    seed: int
    folder: Path
    settings: tuple[str, ...]

    @property
    def is_finished(self) -> bool:
        """Whether the run has been evaluated."""
        return (self.folder / "evaluation" / "metrics.json").exists()


def plan_runs(request: Request) -> list[PlannedRun]:
    """List every training. Seeds are outermost, so that one whole table is complete early."""
    folds = folds_of(request)
    # One after the other: [seed 0: row 1 fold 0, row 1 fold 1, row 2 fold 0, …], [seed 1: …].
    runs = []
    for seed in request.seeds:
        for row in request.rows:
            for fold in folds:
                runs.append(plan_run(request, row, seed=seed, fold=fold))
    return runs


def folds_of(request: Request) -> Sequence[int | None]:
    """List the folds to run; [None] if the data have a fixed split."""
    # Two folds are the fewest in which each case is held out once.
    if request.scale == "small":
        return range(2)  # small.yaml of every paper has data.folds=2
    if request.paper.folds is not None:
        return range(request.paper.folds)
    if request.data is None:
        return range(5)  # the synthetic cohort has no split: five folds, as train.py by default
    return [None]


def plan_run(request: Request, row: str, *, seed: int, fold: int | None) -> PlannedRun:
    """Choose the folder and the settings of one training."""
    settings = [experiment_setting(request, row), *data_settings(request)]
    # <output>/tversky_b07/fold0_seed1, or without folds <output>/tversky_b07/seed1
    name = f"seed{seed}"
    if fold is not None:
        settings.append(f"data.fold={fold}")
        name = f"fold{fold}_seed{seed}"
    folder = request.output_dir / row / name
    settings += [f"seed={seed}", *request.settings, f"output_dir={folder}"]
    return PlannedRun(row, seed, folder, tuple(settings))


def experiment_setting(request: Request, row: str) -> str:
    """Name the experiment files of a row, as "experiment=[salehi2017/tversky_b05,…]"."""
    # The order matters: a file overrides those before it.
    paper = request.paper
    # A later file wins, so the files that make a row small come last.
    files = [paper.experiments + row]
    if paper.official is not None and request.data is not None:
        files.append(paper.official)
    if request.scale == "small":
        for addition in paper.small:
            if row not in addition.excluded_rows:
                files.append(addition.experiment)
    if len(files) == 1:
        return f"experiment={files[0]}"
    return f"experiment=[{','.join(files)}]"


def data_settings(request: Request) -> list[str]:
    """Choose the settings of the data: the synthetic cohort or a download."""
    if request.data is not None:
        return [f"data.root={training_subjects(request.data, request.output_dir)}"]
    settings = list(PHANTOM_SETTINGS)
    if request.scale == "full":
        settings += request.paper.phantom
    return settings


def training_subjects(download: Path, output_dir: Path) -> Path:
    """Find the folder of a challenge's training subjects, on which the papers cross-validate.

    Returns:
        ISBI 2015: its folder `training`. MSSEG 2016: a folder in `output_dir` that
        `link_training_subjects` makes, because the download has no folder that holds `Training`
        without `Testing`. Else the download itself.
    """
    if (download / "testdata_website").is_dir() and (download / "training").is_dir():
        return download / "training"
    if (download / "Testing").is_dir():
        return output_dir / "msseg2016"
    return download


def link_training_subjects(request: Request) -> None:
    """Make the folder of `training_subjects` for MSSEG 2016, also after the download has moved."""
    if request.data is None:
        return
    folder = training_subjects(request.data, request.output_dir)
    if folder != request.output_dir / "msseg2016":
        return
    # A link costs no disk, and the download is not changed.
    folder.mkdir(parents=True, exist_ok=True)
    target = (request.data / "Training").resolve()
    link = folder / "Training"
    # To a link whose download has moved, exists() says False, but it stands in the way of another.
    if link.is_symlink() and link.resolve() != target:
        link.unlink()
    if not link.exists():
        link.symlink_to(target, target_is_directory=True)


def save_plan(runs: Sequence[PlannedRun], output_dir: Path) -> None:
    """Save the settings of each run, and refuse a folder whose runs have other settings.

    Raises:
        DataError: The plan cannot be read, or a run in the folder has other settings.
    """
    path = output_dir / "plan.json"
    saved: dict[str, list[str]] = {}
    if path.exists():
        try:
            saved = dict(read_json(path))
        except ValueError as error:
            expected = "restore it or choose another --output"
            raise DataError(path, f"cannot be read ({error})", expected) from error
    # Runs that are not asked for this time stay in the plan: another call may have begun them.
    # Runs of an earlier call stay in the plan: other rows or seeds may be added one by one.
    plan = dict(saved)
    for run in runs:
        name = str(run.folder.relative_to(output_dir))
        has_begun = (run.folder / "config.yaml").exists()
        # One that has not begun has no checkpoint yet, so its settings may still change.
        if has_begun and name in saved and _are_different(saved[name], run.settings):
            text = f"{run.folder} was begun with other settings"
            raise DataError("--output", text, "choose another folder")
        plan[name] = list(run.settings)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(path, plan)


def _are_different(saved: Iterable[str], planned: Iterable[str]) -> bool:
    return deciding_settings(saved) != deciding_settings(planned)


def deciding_settings(settings: Iterable[str]) -> set[str]:
    """Keep the settings that change a run's results: not threads, nor the place of the data."""
    deciding = set()
    for setting in settings:
        key = setting.partition("=")[0]
        if not is_free(key) and key != "data.root":
            deciding.add(setting)
    return deciding


def check_settings(settings: Iterable[str]) -> None:
    """Refuse words that are not settings of train.py, and settings that this script chooses."""
    for setting in settings:
        key, equals, _ = setting.partition("=")
        if not equals:
            raise DataError(setting, "not a setting", "expected key=value")
        # Hydra also takes "+key=value", to add a key, and "++key=value".
        reason = PLANNED_SETTINGS.get(key.lstrip("+"))
        if reason is not None:
            raise DataError(setting, "this script sets it", reason)
