"""scripts/kill_resume.py sees every difference between two runs."""

from pathlib import Path

import pytest
import torch

from helpers.command_line import composed, script
from tversky_seg.config import check_config

kill_resume = script("kill_resume")


def make_run(folder: Path, *, weight: float = 1.0, moment: float = 2.0, log: str = "step") -> Path:
    for name in kill_resume.RESULT_FILES:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(log)
    checkpoint = {
        "model": {"weight": torch.tensor([weight])},
        "optimizer": {"state": {0: {"exp_avg": torch.tensor([moment])}}, "param_groups": [{}]},
        "step": 3,
    }
    (folder / "checkpoints").mkdir()
    for name in ("last.pt", "best.pt"):
        torch.save(checkpoint, folder / "checkpoints" / name)
    return folder


def test_equal_runs_have_no_difference(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b")
    assert kill_resume.compare_runs(a, b) == []


@pytest.mark.parametrize(
    ("change", "key"),
    [({"weight": 1.5}, "model.weight"), ({"moment": 2.5}, "optimizer.state.0.exp_avg")],
)
def test_a_tensor_of_other_values_is_named(
    change: dict[str, float], key: str, tmp_path: Path
) -> None:
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", **change)
    assert kill_resume.compare_runs(a, b) == [f"{key} of last.pt", f"{key} of best.pt"]


def test_other_result_files_are_named(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", log="another step")
    assert kill_resume.compare_runs(a, b) == list(kill_resume.RESULT_FILES)


def test_the_settings_of_its_training_are_valid(tmp_path: Path) -> None:
    manifest = kill_resume.make_cohort(tmp_path, n_cases=1)
    cfg = composed(*kill_resume.train_words(manifest, tmp_path / "run", ["seed=3"]))
    check_config(cfg, config_name="train")
    assert cfg.seed == 3
