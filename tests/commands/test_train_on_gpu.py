"""The command of the README on a GPU."""

from pathlib import Path

from helpers.command_line import call
from helpers.cuda import on_gpu
from tversky_seg.runtime.files import read_json


@on_gpu
def test_three_steps_of_the_default_run(tmp_path: Path) -> None:
    words = [
        f"data.root={tmp_path / 'phantom'}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.importer.n_train=4",
        "data.importer.n_test=1",
        "data.importer.spacing_mm=3",
        "trainer.max_steps=3",
        "trainer.device=cuda",
        f"output_dir={tmp_path / 'run'}",
    ]
    outcome = call("train", *words)
    assert outcome.status == 0, outcome.stderr
    metrics = read_json(tmp_path / "run" / "evaluation" / "metrics.json")
    assert metrics["n_cases"] == 1
