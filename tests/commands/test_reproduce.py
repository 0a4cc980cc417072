"""The scripts that rerun the papers' tables: what they plan, that its settings are valid, and what they write."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import nibabel as nib
import numpy as np
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from helpers.command_line import ROOT, call, composed, script
from helpers.isbi import isbi_submission, masks
from tversky_seg.analysis.cross_validation import evaluate_folds
from tversky_seg.config import build, check_config
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import read_manifest

PAPERS = ("salehi2017", "hashemi2018_msseg", "hashemi2018_isbi", "shirokikh2020")


reproduce = script("reproduce")


@pytest.fixture(autouse=True)
def fast_yaml() -> Iterator[None]:
    with mock.patch.object(yaml, "SafeLoader", yaml.CSafeLoader):
        yield


def jobs_of(name: str, *words: str, **environment: str) -> list:
    paper = reproduce.PAPERS[name]
    return list(reproduce.plan(paper, reproduce.request_of(environment, name, words)))


# What is planned


@pytest.mark.parametrize("scale", ["small", "full"])
@pytest.mark.parametrize("name", PAPERS)
def test_every_planned_command_has_valid_settings(name: str, scale: str) -> None:
    first_of_rows = {job.row: job for job in reversed(jobs_of(name, SCALE=scale))}
    assert list(reversed(first_of_rows)) == list(reproduce.PAPERS[name].rows)
    for job in list(first_of_rows.values())[:: 1 if scale == "small" else 20]:
        cfg = composed(*job.words)
        check_config(cfg, config_name="train")
        for key in (
            "data",
            "sampler",
            "augmentation",
            "loss",
            "optimizer",
            "schedule",
            "inference",
        ):
            build(cfg, key)
        assert cfg.data.importer.n_test == 0
        assert (cfg.trainer.max_steps <= 600) == (scale == "small")


@pytest.mark.parametrize("name", PAPERS)
def test_an_official_download_is_run_at_the_papers_scale(name: str, tmp_path: Path) -> None:
    jobs = jobs_of(name, DATA=str(tmp_path), OUT=str(tmp_path / "out"))
    n_folds = {"salehi2017": 2, "shirokikh2020": 1}.get(name, 5)
    assert len(jobs) == n_folds * len(reproduce.PAPERS[name].rows)
    cfg = composed(*jobs[0].words)
    check_config(cfg, config_name="train")
    assert cfg.data.root == str(tmp_path)
    assert "make_phantom" not in cfg.data.importer._target_
    assert cfg.trainer.max_steps >= 7000


def test_the_test_subjects_of_msseg_stay_out_of_the_folds(tmp_path: Path) -> None:
    for part in ("Training", "Testing"):
        (tmp_path / part).mkdir()
    environment = {"DATA": str(tmp_path), "OUT": str(tmp_path / "out")}
    (job, *_) = jobs_of("salehi2017", **environment)
    root = Path(next(word for word in job.words if word.startswith("data.root=")).partition("=")[2])
    assert not (tmp_path / "out").exists(), "a plan writes nothing"
    reproduce.link_training(reproduce.request_of(environment, "salehi2017", ()))
    assert [path.name for path in root.iterdir()] == ["Training"]
    moved = tmp_path / "moved"
    moved.mkdir()
    for part in ("Training", "Testing"):
        (tmp_path / part).rename(moved / part)
    reproduce.link_training(
        reproduce.request_of(environment | {"DATA": str(moved)}, "salehi2017", ())
    )
    assert (root / "Training").resolve() == moved / "Training"


def test_the_test_scans_of_isbi_are_left_to_the_submission(tmp_path: Path) -> None:
    for part in ("training", "testdata_website"):
        (tmp_path / part).mkdir()
    (job, *_) = jobs_of("hashemi2018_isbi", DATA=str(tmp_path))
    assert f"data.root={tmp_path / 'training'}" in job.words


def test_the_submission_names_all_folds_whatever_the_folder_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "beta=1.5, [Bob's]"
    out.mkdir()
    (tmp_path / "training").mkdir()
    environment = {"DATA": str(tmp_path), "OUT": str(out), "ROWS": "asl_b15"}
    request = reproduce.request_of(environment, "hashemi2018_isbi", ())
    jobs = list(reproduce.plan(reproduce.PAPERS["hashemi2018_isbi"], request))
    called: list[list[str]] = []
    monkeypatch.setitem(
        reproduce.submit.__globals__,
        "find_isbi2015",
        lambda _: [Case("c", "s", {"FLAIR": out}, ())],
    )
    monkeypatch.setattr(subprocess, "run", lambda words, check: called.append(words))
    reproduce.submit(request, jobs)
    predict, pack = called
    override = OverridesParser.create().parse_override(
        next(word for word in predict if word.startswith("checkpoint"))
    )
    assert [str(name) for name in override.value()] == [str(job.folder) for job in jobs]
    assert pack[-1] == str(out / "submissions" / "asl_b15.zip")


def test_seeds_rows_and_further_words_are_taken() -> None:
    jobs = jobs_of(
        "salehi2017", "trainer.threads=1", SEEDS="3 4", ROWS="tversky_b07", OUT="somewhere"
    )
    assert [(job.row, job.seed, job.folder.as_posix()) for job in jobs] == [
        ("tversky_b07", seed, f"somewhere/tversky_b07/fold{fold}_seed{seed}")
        for seed in (3, 4)
        for fold in (0, 1)
    ]
    assert all("trainer.threads=1" in job.words for job in jobs)


@pytest.mark.parametrize("name", PAPERS)
def test_a_dry_run_of_the_shell_script_prints_a_command_for_each_run(
    name: str, tmp_path: Path
) -> None:
    environment = os.environ | {
        "DRY_RUN": "1",
        "PYTHON": sys.executable,
        "OUT": str(tmp_path / "out"),
    }
    if name != "salehi2017":  # a process of its own once; the others differ in a word
        assert (
            f'reproduce.py" {name} "$@"' in (ROOT / "scripts" / f"reproduce_{name}.sh").read_text()
        )
        return
    line = [str(ROOT / "scripts" / f"reproduce_{name}.sh"), "trainer.threads=1"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 10
    assert all(
        "train.py 'experiment=[salehi2017/tversky_b" in line for line in done.stdout.splitlines()
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", PAPERS)
def test_a_shell_script_says_that_nothing_is_installed(name: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    line = [str(ROOT / "scripts" / f"reproduce_{name}.sh")]
    done = subprocess.run(
        line, env=os.environ | {"PYTHON": str(python)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {python}: tversky_seg is not installed; run make setup\n"


@pytest.mark.parametrize("dataset", ["lits", "luna16"])
def test_the_table_says_whose_numbers_stand_beside_ours(dataset: str) -> None:
    request = reproduce.request_of({"DATASET": dataset}, "shirokikh2020", ())
    text = reproduce.table(reproduce.PAPERS["shirokikh2020"], request, {"iwdl": [{"n_cases": 15}]})
    assert {"lits": ", LiTS**", "luna16": ", LUNA16**"}[dataset] in text
    assert {"lits": "| iwdl | paper | 0.49 | 0.79 |", "luna16": "| iwdl | paper | 0.77 | 0.83 |"}[
        dataset
    ] in text


@pytest.mark.parametrize(
    ("environment", "found"),
    [({"DATA": "/none"}, "DATA: /none is no folder; "), ({"SCALE": "huge"}, "SCALE: huge; expected one of small, full"),
     ({"ROWS": "luck"}, "ROWS: luck; expected one of tversky_b05"), ({"DATASET": "x"}, "DATASET: x; "),
     ({"SEEDS": "0 a"}, "SEEDS: 0 a; expected whole numbers from 0")],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(environment: dict[str, str], found: str) -> None:
    with pytest.raises(ValueError, match=found.replace("/", "/")):
        reproduce.request_of(environment, "salehi2017", ())


@pytest.mark.parametrize(
    "word", ["seed=3", "data.fold=1", "output_dir=x", "experiment=hippocampus", "-m", "max_steps"]
)
def test_words_that_the_plan_sets_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match=f"{word}: "):
        jobs_of("salehi2017", "trainer.threads=1", word)


def test_lists_may_have_commas_and_name_each_once() -> None:
    jobs = jobs_of("salehi2017", SEEDS="0,1, 1", ROWS="tversky_b07,tversky_b07")
    assert len({job.folder for job in jobs}) == len(jobs) == 4


def test_a_folder_of_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    reproduce.keep_plan(
        jobs_of("salehi2017", "trainer.max_stps=5", OUT=str(tmp_path)), tmp_path
    )  # none of these began
    jobs = jobs_of("salehi2017", OUT=str(tmp_path))
    reproduce.keep_plan(jobs, tmp_path)
    jobs[0].folder.mkdir(parents=True)
    (jobs[0].folder / "config.yaml").touch()
    free = ("trainer.threads=1", "trainer.max_hours=8")
    reproduce.keep_plan(jobs_of("salehi2017", *free, SEEDS="0 1", OUT=str(tmp_path)), tmp_path)
    with pytest.raises(ValueError, match="tversky_b05/fold0_seed0 was begun with other settings"):
        reproduce.keep_plan(
            jobs_of("salehi2017", "trainer.max_steps=5", OUT=str(tmp_path)), tmp_path
        )


def call_script(*words: str, **environment: str) -> int:
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(sys, "argv", ["reproduce.py", *words]),
    ):
        return int(reproduce.main())


def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "plan.json").write_text("{")
    for found, environment in (
        ("file: File exists", {"OUT": str(tmp_path / "file")}),
        ("plan.json: cannot be read", {"OUT": str(tmp_path / "damaged")}),
        ("JOBS: many; expected a number", {"JOBS": "many", "OUT": str(tmp_path / "out")}),
    ):
        assert call_script("salehi2017", **environment) == 2
        errors = capsys.readouterr().err
        assert found in errors
        assert (errors.startswith("error: "), errors.count("\n")) == (True, 1)
    assert not (tmp_path / "out").exists()
    with mock.patch.object(reproduce, "run_all", side_effect=KeyboardInterrupt):
        assert call_script("salehi2017", OUT=str(tmp_path / "out")) == 130
    assert capsys.readouterr().err == "error: stopped; repeat to go on\n"


def test_help_is_shown_and_any_dry_run_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_script("salehi2017", "--help") == 0
    assert "DRY_RUN" in capsys.readouterr().out
    assert call_script("salehi2017", DRY_RUN="true", OUT=str(tmp_path / "out")) == 0
    assert capsys.readouterr().out.count("train.py") == 10
    assert not (tmp_path / "out").exists()


def test_runs_side_by_side_share_the_cores(tmp_path: Path) -> None:
    shares = []
    with mock.patch.dict(os.environ), mock.patch.object(os, "cpu_count", return_value=8):
        os.environ.pop("OMP_NUM_THREADS", None)
        with mock.patch.object(reproduce, "run_all", side_effect=lambda jobs, **_: shares.append(
            os.environ.get("OMP_NUM_THREADS")) or jobs):  # fmt: skip
            for jobs in "13":
                assert call_script("salehi2017", JOBS=jobs, OUT=str(tmp_path / jobs)) == 2, (
                    "no run is there"
                )
    assert shares == [None, "2"]


def test_the_numbers_of_the_papers_are_those_of_the_experiment_files() -> None:
    for row, values in reproduce.PAPERS["salehi2017"].rows.items():
        text = (ROOT / "configs" / "experiment" / "salehi2017" / f"{row}.yaml").read_text()
        assert all(f"{value:.2f}" in text for value in values.values())
    for row, (_, _, dice, recall) in reproduce.SHIROKIKH.items():
        text = (ROOT / "configs" / "experiment" / "shirokikh2020" / f"{row}.yaml").read_text()
        assert f"LiTS {dice:.2f}, {recall:.2f}" in text


# How it is run


def test_a_failed_run_stops_no_other_and_jobs_run_side_by_side(tmp_path: Path) -> None:
    jobs = jobs_of("salehi2017", ROWS="tversky_b05 tversky_b07", OUT=str(tmp_path))
    meet = "import pathlib, sys, time; me, other = map(pathlib.Path, sys.argv[1:]); me.touch()\n"
    meet += "while not other.exists(): time.sleep(0.01)"
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    lines = [["-c", meet, a, b], ["-c", meet, b, a], ["-c", "raise SystemExit(2)"], ["-c", ""]]
    by_folder = {
        job.folder: [sys.executable, "-S", *line] for job, line in zip(jobs, lines, strict=True)
    }
    with mock.patch.object(reproduce, "command", lambda job: by_folder[job.folder]):
        assert reproduce.run_all(jobs, n_jobs=2) == [jobs[2]]


def test_a_signal_to_end_reaches_the_runs_and_no_other_begins(tmp_path: Path) -> None:
    jobs = jobs_of("salehi2017", OUT=str(tmp_path))
    wait = f"import pathlib, time; p = pathlib.Path({str(tmp_path / 'begun')!r}); p.open('a').write('x'); time.sleep(60)"
    watcher = "import os, pathlib, time; p = pathlib.Path({!r})\nwhile not p.exists(): time.sleep(0.01)\nos.kill({}, 15)"
    killer = subprocess.Popen(
        [sys.executable, "-S", "-c", watcher.format(str(tmp_path / "begun"), os.getpid())]
    )
    with (
        mock.patch.object(reproduce, "command", return_value=[sys.executable, "-S", "-c", wait]),
        pytest.raises(SystemExit, match="143"),
    ):
        reproduce.run_all(jobs, n_jobs=1)
    assert (killer.wait(), (tmp_path / "begun").read_text()) == (0, "x")


# What is written


@pytest.fixture(scope="module")
def table_of_two_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of Salehi in two folds of four tiny synthetic subjects, the trainings in this process; one row fails."""
    folder = tmp_path_factory.mktemp("reproduce")
    words = [f"data.root={folder / 'phantom'}", "data.importer.n_train=4", "data.importer.spacing_mm=6",
             "data.importer.n_workers=0", f"data.cache_dir={folder / 'cache'}", "model.width=4", "model.n_levels=2",
             "sampler.patch_size=16", "trainer.max_steps=2", "trainer.validate_every=2",
             "inference.overlap=0", "evaluation.n_bootstrap=50", "evaluation.viewer=none"]  # fmt: skip
    environment = {"OUT": str(folder / "out"), "ROWS": "tversky_b05 tversky_b07 tversky_b09"}

    class Here:
        def __init__(self, line: list[str]) -> None:
            self.status = 2 if "tversky_b07" in line[2] else call("train", *line[2:]).status

        def wait(self) -> int:
            return self.status

    opened = mock.Mock(side_effect=lambda line: nullcontext(Here(line)))
    with (
        mock.patch.object(reproduce, "subprocess", SimpleNamespace(Popen=opened)),
        mock.patch.dict(os.environ, environment),
        mock.patch.object(sys, "argv", ["reproduce.py", "salehi2017", *words]),
    ):
        assert reproduce.main() == 1
        assert opened.call_count == 6
        assert reproduce.main() == 1
        assert opened.call_count == 8, "the failed runs alone are run again"
    return folder / "out"


def test_the_table_has_the_papers_numbers_and_ours(table_of_two_rows: Path) -> None:
    text = (table_of_two_rows / "table.md").read_text()
    assert "| tversky_b05 | paper | 53.42 | 49.85 | 99.93 | 51.77 | 52.57 |" in text
    assert "| tversky_b09 | ours | " in text
    assert "tversky_b07" not in text, "its runs failed"
    assert "SCALE=small" in text
    assert "4 cases" in text
    names = {path.name for path in table_of_two_rows.iterdir()}
    assert names >= {
        "plan.json",
        "table.csv",
        "summary",
        "comparison",
        "cohorts",
        "tversky_b05",
        "tversky_b09",
    }
    assert (table_of_two_rows / "comparison" / "pr_curves.png").exists()
    assert (table_of_two_rows / "summary" / "frontier.png").exists()


def test_folds_are_judged_as_one_cohort_with_the_numbers_of_each(
    table_of_two_rows: Path, tmp_path: Path
) -> None:
    runs = [table_of_two_rows / "tversky_b05" / f"fold{fold}_seed0" for fold in (0, 1)]
    joined = evaluate_folds(runs, tmp_path / "joined")
    single = [json.loads((run / "evaluation" / "metrics.json").read_text()) for run in runs]
    rows = {case["case_id"]: case for metrics in single for case in metrics["cases"]}
    assert joined["n_cases"] == 4 == len(rows)
    for case in joined["cases"]:
        for name in ("dice", "pr_auc", "lesion_tpr", "assd_mm"):
            assert case[name] == rows[case["case_id"]][name], name
    assert joined["pooled"]["pr_auc"] is not None
    assert [case.split for case in read_manifest(tmp_path / "joined" / "manifest.csv")] == [
        None
    ] * 4
    before = (tmp_path / "joined" / "evaluation" / "metrics.json").stat().st_mtime_ns
    evaluate_folds(runs, tmp_path / "joined")
    assert (tmp_path / "joined" / "evaluation" / "metrics.json").stat().st_mtime_ns == before


def test_a_fold_twice_or_unfinished_is_refused(table_of_two_rows: Path, tmp_path: Path) -> None:
    run = table_of_two_rows / "tversky_b05" / "fold0_seed0"
    with pytest.raises(DataError, match="is held out in two of 2 runs"):
        evaluate_folds([run, run], tmp_path / "a")
    with pytest.raises(DataError, match="finish the run first"):
        evaluate_folds([run, tmp_path / "none"], tmp_path / "b")


# The submission to the ISBI site


def test_a_submission_holds_61_plain_masks_named_by_scan_and_method(tmp_path: Path) -> None:
    folder = masks(tmp_path / "masks")
    assert isbi_submission.pack(folder, tmp_path / "out.zip", method="asl") == 61
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        names = archive.namelist()
        archive.extract("test01_01_asl.nii", tmp_path)
    assert len(names) == 61
    assert all(name.endswith("_asl.nii") for name in names)
    image, source = (
        nib.load(tmp_path / "test01_01_asl.nii"),
        nib.load(folder / "test01_01_mask.nii.gz"),
    )
    assert image.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(image.dataobj), np.asarray(source.dataobj))
    assert np.allclose(image.affine, source.affine)


def test_an_incomplete_submission_is_refused_or_asked_for(tmp_path: Path) -> None:
    folder = masks(tmp_path / "masks", n=60)
    with pytest.raises(DataError, match="60 scans of 14 subjects; expected 61 of 14"):
        isbi_submission.pack(folder, tmp_path / "out.zip", method="asl")
    assert not (tmp_path / "out.zip").exists()
    assert isbi_submission.pack(folder, tmp_path / "out.zip", method="asl", is_complete=False) == 60
    with pytest.raises(DataError, match="--method"):
        isbi_submission.pack(folder, tmp_path / "out.zip", method="a/b")


@pytest.mark.parametrize(
    ("values", "text"),
    [((99.96, 99.96004), "99.96 ± 0.00"), ((70.0, 72.82), "71.41 ± 1.99"), ((70.0, 71.0), "70.5 ± 0.7"),
     ((0.5,), "0.5"), ((float("nan"), 0.25), "0.25"), ((float("nan"),), "–")],
)  # fmt: skip
def test_spreads_have_the_decimals_of_their_mean(values: tuple[float, ...], text: str) -> None:
    assert reproduce._spread(values) == text
