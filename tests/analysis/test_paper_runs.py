"""The plan of a paper's trainings: their settings are valid, and a folder holds one plan."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import yaml

from helpers.command_line import ROOT, composed
from tversky_seg.analysis.paper_runs import (
    PlannedRun,
    Request,
    check_settings,
    link_training_subjects,
    plan_runs,
    save_plan,
)
from tversky_seg.analysis.papers import read_papers
from tversky_seg.config import build, check_config
from tversky_seg.data.errors import DataError

PAPERS = read_papers(ROOT / "src" / "tversky_seg" / "commands" / "papers.yaml")


@pytest.fixture(autouse=True)
def fast_yaml() -> Iterator[None]:
    with mock.patch.object(yaml, "SafeLoader", yaml.CSafeLoader):
        yield


def make_request(
    name: str,
    *settings: str,
    data: Path | None = None,
    scale: str = "small",
    seeds: tuple[int, ...] = (0,),
    output_dir: Path = Path("out"),
) -> Request:
    paper = PAPERS[name]
    return Request(
        paper=paper,
        data=data,
        scale=scale,
        seeds=seeds,
        rows=paper.rows,
        output_dir=output_dir,
        settings=settings,
    )


def first_run_of_each_row(runs: list[PlannedRun]) -> list[PlannedRun]:
    by_row: dict[str, PlannedRun] = {}
    for run in runs:
        by_row.setdefault(run.row, run)
    return list(by_row.values())


# Settings


@pytest.mark.parametrize("scale", ["small", "full"])
@pytest.mark.parametrize("name", PAPERS)
def test_every_planned_training_has_valid_settings(name: str, scale: str) -> None:
    runs = first_run_of_each_row(plan_runs(make_request(name, scale=scale)))
    assert tuple(run.row for run in runs) == PAPERS[name].rows
    if scale == "full":
        runs = runs[:1]  # tests/config/test_experiments.py composes the files of every row
    for run in runs:
        cfg = composed(*run.settings)
        check_config(cfg, config_name="train")
        for group in ("data", "sampler", "augmentation", "loss", "optimizer", "inference"):
            build(cfg, group)
        assert cfg.data.importer.n_test == 0
        assert (cfg.trainer.max_steps <= 600) == (scale == "small")


@pytest.mark.parametrize(
    ("name", "n_folds"),
    [
        ("salehi2017", 2),
        ("hashemi2018_msseg", 5),
        ("hashemi2018_isbi", 5),
        ("shirokikh2020_lits", 1),
        ("shirokikh2020_luna16", 1),
    ],
)
def test_an_official_download_is_run_at_the_papers_scale(
    name: str, n_folds: int, tmp_path: Path
) -> None:
    runs = plan_runs(make_request(name, data=tmp_path, scale="full"))
    assert len(runs) == n_folds * len(PAPERS[name].rows)
    cfg = composed(*runs[0].settings)
    check_config(cfg, config_name="train")
    assert cfg.data.root == str(tmp_path)
    assert "make_phantom" not in cfg.data.importer._target_
    assert cfg.trainer.max_steps >= 7000


@pytest.mark.parametrize(
    "setting", ["seed=3", "data.fold=1", "output_dir=x", "experiment=hippocampus", "max_steps"]
)
def test_settings_that_the_plan_chooses_are_refused(setting: str) -> None:
    with pytest.raises(DataError) as error:
        check_settings(["trainer.threads=1", setting])
    assert error.value.where == setting


# The training subjects of a challenge


def test_the_test_subjects_of_msseg_stay_out_of_the_folds(tmp_path: Path) -> None:
    download = tmp_path / "download"
    for part in ("Training", "Testing"):
        (download / part).mkdir(parents=True)
    output_dir = tmp_path / "out"
    request = make_request("salehi2017", data=download, scale="full", output_dir=output_dir)
    root = output_dir / "msseg2016"
    assert f"data.root={root}" in plan_runs(request)[0].settings
    assert not output_dir.exists(), "a plan writes nothing"
    link_training_subjects(request)
    assert [path.name for path in root.iterdir()] == ["Training"]

    moved = download.rename(tmp_path / "moved")
    link_training_subjects(make_request("salehi2017", data=moved, output_dir=output_dir))
    assert (root / "Training").resolve() == moved / "Training"


def test_the_test_scans_of_isbi_are_left_to_the_submission(tmp_path: Path) -> None:
    for part in ("training", "testdata_website"):
        (tmp_path / part).mkdir()
    run, *_ = plan_runs(make_request("hashemi2018_isbi", data=tmp_path, scale="full"))
    assert f"data.root={tmp_path / 'training'}" in run.settings


# plan.json


def test_a_folder_with_runs_of_other_settings_is_refused(tmp_path: Path) -> None:
    def plan(*settings: str, seeds: tuple[int, ...] = (0,)) -> list[PlannedRun]:
        return plan_runs(make_request("salehi2017", *settings, seeds=seeds, output_dir=tmp_path))

    # No run of this plan has begun, so another plan may replace it.
    save_plan(plan("trainer.max_stps=5"), tmp_path)
    runs = plan()
    save_plan(runs, tmp_path)
    runs[0].folder.mkdir(parents=True)
    (runs[0].folder / "config.yaml").touch()
    # Threads and the time limit do not change a run.
    save_plan(plan("trainer.threads=1", "trainer.max_hours=8", seeds=(0, 1)), tmp_path)
    with pytest.raises(DataError, match="fold0_seed0"):
        save_plan(plan("trainer.max_steps=5"), tmp_path)
