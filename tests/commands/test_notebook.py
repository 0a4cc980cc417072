"""docs/first_steps.ipynb runs from its first cell to its last, and predict.py takes its result."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.cohorts import make_cohort
from helpers.command_line import ROOT, call

NOTEBOOK = json.loads((ROOT / "docs" / "first_steps.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
SOURCES = ["".join(cell["source"]) for cell in CELLS]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the notebook on six tiny cases for two steps; give the names that it defines."""
    folder = tmp_path_factory.mktemp("notebook")
    make_cohort(folder / "scans")
    names: dict[str, Any] = {"__name__": "__main__"}
    parameters, *steps = SOURCES
    exec(parameters, names)
    names["folder"] = folder / "scans"
    names["output_dir"] = folder / "run"
    names["patch_size"] = 16
    names["max_steps"] = 2
    for source in steps:
        exec(source, names)
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
    parameters = SOURCES[0]
    folders = set()
    for source in (
        parameters,
        parameters.replace("alpha = 0.3", "alpha = 0.2"),
        parameters.replace("max_steps = 500", "max_steps = 900"),
    ):
        names: dict[str, Any] = {}
        exec(source, names)
        folders.add(names["output_dir"])
    assert len(folders) == 3


def test_the_first_cell_holds_the_parameters() -> None:
    assert CELLS[0]["metadata"]["tags"] == ["parameters"]


def test_the_notebook_is_kept_without_results_and_needs_no_hydra() -> None:
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in CELLS)
    text = "\n".join(SOURCES)
    assert "hydra" not in text
    assert "omegaconf" not in text
    assert NOTEBOOK["nbformat"] == 4
