"""Notebooks run from their first cell to their last; predict.py takes the result of one."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pytest

from helpers.cohorts import make_cohort
from helpers.command_line import ROOT, call
from tversky_seg.data import read_manifest

NAMES = ("first_steps", "own_loss", "compare_losses")
LARGEST_BYTES = 400_000  # of a notebook with its outputs


def code_cells(name: str) -> list[dict[str, Any]]:
    """Read the code cells of a notebook."""
    text = (ROOT / "docs" / f"{name}.ipynb").read_text(encoding="utf-8")
    return [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]


def sources(name: str) -> list[str]:
    """Read the code of a notebook, cell by cell."""
    return ["".join(cell["source"]) for cell in code_cells(name)]


@pytest.fixture(scope="module", autouse=True)
def _no_window() -> None:
    """Draw figures into memory; notebooks show them by themselves."""
    matplotlib.use("Agg")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the notebook on six tiny cases for two steps; give the names that it defines."""
    folder = tmp_path_factory.mktemp("notebook")
    make_cohort(folder / "scans")
    names: dict[str, Any] = {"__name__": "__main__"}
    parameters, *steps = sources("first_steps")
    exec(parameters, names)
    names["folder"] = folder / "scans"
    names["output_dir"] = folder / "run"
    names["patch_size"] = 16
    names["max_steps"] = 2
    for source in steps:
        exec(source, names)
    plt.close("all")
    return names


def test_the_notebook_goes_from_a_folder_to_a_report(names: dict[str, Any]) -> None:
    evaluation = names["output_dir"] / "evaluation"
    assert (evaluation / "report.html").exists()
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    evaluated = {case["case_id"] for case in metrics["cases"]}
    assert evaluated == {case.case_id for case in names["split"].test}
    assert not names["errors"]


def test_predict_takes_the_notebooks_checkpoint(names: dict[str, Any], tmp_path: Path) -> None:
    outcome = call(
        "predict",
        f"checkpoint={names['best']}",
        f"input={names['folder']}",
        f"output_dir={tmp_path}",
    )
    assert outcome.status == 0, outcome.stderr
    case_id = names["split"].test[0].case_id
    assert (tmp_path / f"{case_id}_mask.nii.gz").exists()


def test_other_settings_have_another_folder_so_that_no_finished_run_is_taken_for_theirs() -> None:
    parameters = sources("first_steps")[0]
    folders = set()
    for source in (
        parameters,
        parameters.replace("alpha = 0.3", "alpha = 0.2"),
        parameters.replace("max_steps = 100", "max_steps = 900"),
    ):
        names: dict[str, Any] = {}
        exec(source, names)
        folders.add(names["output_dir"])
    assert len(folders) == 3


@pytest.mark.parametrize("name", ["own_loss", "compare_losses"])
def test_the_shorter_notebooks_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = read_manifest(make_cohort(tmp_path / "scans", n=4))
    monkeypatch.setattr("tversky_seg.data.phantom.make_phantom", lambda *_, **__: cases)
    monkeypatch.chdir(tmp_path)
    parameters, *steps = sources(name)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(parameters, names)
    names["max_steps"] = 1
    for source in steps:
        exec(
            source.replace("patch_size=32", "patch_size=16").replace(
                "patch_size=48", "patch_size=16"
            ),
            names,
        )
    plt.close("all")
    assert (tmp_path / "runs" / name).is_dir()


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_with_its_results_small_and_without_hydra(name: str) -> None:
    cells = code_cells(name)
    assert cells[0]["metadata"]["tags"] == ["parameters"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    kinds = {output["output_type"] for output in outputs}
    assert "error" not in kinds
    assert any("image/png" in output.get("data", {}) for output in outputs)
    # Each cell ran, once, in the order of the page.
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    path = ROOT / "docs" / f"{name}.ipynb"
    assert path.stat().st_size < LARGEST_BYTES
    text = "\n".join(sources(name))
    assert "hydra" not in text
    assert "omegaconf" not in text
    # Nothing of the machine that it ran on.
    stored = path.read_text(encoding="utf-8")
    assert "/tmp/" not in stored
    assert "/home/" not in stored
