"""docs/first_steps.ipynb runs to its last cell, and leaves what the commands leave."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.cohorts import make_cohort
from helpers.command_line import ROOT, call

NOTEBOOK = json.loads((ROOT / "docs" / "first_steps.ipynb").read_text())
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the notebook leaves, on six tiny cases and with a training of two steps."""
    here = tmp_path_factory.mktemp("notebook")
    make_cohort(here / "scans")
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in CELLS:
        exec("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            names |= {
                "folder": here / "scans",
                "output_dir": here / "run",
                "patch_size": 16,
                "max_steps": 2,
            }
    return names


def test_the_notebook_goes_from_a_folder_to_a_report(after: dict[str, Any]) -> None:
    folder: Path = after["output_dir"]
    assert (folder / "evaluation" / "report.html").exists()
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    assert {case["case_id"] for case in metrics["cases"]} == {
        case.case_id for case in after["split"].test
    }
    assert after["faults"] == {}


def test_predict_takes_the_notebooks_checkpoint(after: dict[str, Any], tmp_path: Path) -> None:
    outcome = call(
        "predict",
        f"checkpoint={after['best']}",
        f"input={after['folder']}",
        f"output_dir={tmp_path}",
    )
    assert outcome.status == 0, outcome.stderr
    case_id = after["split"].test[0].case_id
    assert (tmp_path / f"{case_id}_mask.nii.gz").exists()


def test_other_settings_have_another_folder_so_that_no_finished_run_is_taken_for_theirs() -> None:
    parameters = "".join(CELLS[0]["source"])
    folders = set()
    for source in (
        parameters,
        parameters.replace("0.3, 0.7", "0.2, 0.8"),
        parameters.replace("500", "900"),
    ):
        names: dict[str, Any] = {}
        exec(source, names)
        folders.add(names["output_dir"])
    assert len(folders) == 3


def test_the_notebook_is_kept_without_results_and_needs_no_hydra() -> None:
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in CELLS)
    text = "".join("".join(cell["source"]) for cell in CELLS)
    assert "hydra" not in text
    assert "omegaconf" not in text
    assert NOTEBOOK["nbformat"] == 4
