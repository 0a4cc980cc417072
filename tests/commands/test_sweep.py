"""Sweeps as a user meets them."""

from pathlib import Path

from helpers.command_line import train
from helpers.runs import Run, assert_same_results


def test_a_sweep_makes_a_directory_for_each_setting_and_outlives_a_failing_job(
    finished: Run, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    outcome = train(finished.manifest, sweep, "-m", "loss.alpha=null,-1")
    assert outcome.status == 1
    assert outcome.stderr.startswith("error: loss.alpha: ")
    assert outcome.stderr.count("\n") == 1
    assert "job 1 of 2: loss.alpha=null\n" in outcome.stdout
    assert "job 2 of 2: loss.alpha=-1\n" in outcome.stdout
    # The names hold what varies, and none of the settings that all jobs share.
    good = sweep / "loss.alpha=null"
    bad = sweep / "loss.alpha=-1"
    assert outcome.stderr.endswith(f" (in {bad})\n")
    assert {path for path in sweep.iterdir() if path.is_dir()} == {good, bad}
    assert_same_results(finished.folder, good)
    assert not list(bad.iterdir())
    assert "job 2" not in (good / "train.log").read_text()
