"""scripts/dev/lesions_by_threshold.py: counts by hand, and arguments that are refused."""

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from helpers.cohorts import save, write_rows
from helpers.command_line import script

lesions_by_threshold = script("dev/lesions_by_threshold")

SHAPE = (12, 12, 12)


def cube(*corner: int, side: int = 1) -> tuple[slice, ...]:
    return tuple(slice(c, c + side) for c in corner)


SMALL = cube(1, 1, 1)
LARGE = cube(5, 5, 5, side=2)


def make_case(
    folder: Path, case_id: str, scores: list[tuple[float, tuple[slice, ...]]], lesions: list
) -> dict[str, str]:
    """Write probability and label of a case; return its row of the manifest."""
    probability = np.zeros(SHAPE, np.float32)
    for score, box in scores:
        probability[box] = score
    label = np.zeros(SHAPE, np.uint8)
    for box in lesions:
        label[box] = 1
    save(folder / "predictions" / f"{case_id}_probability.nii.gz", probability)
    file = save(folder / f"{case_id}_label.nii.gz", label).name
    return {"case_id": case_id, "subject_id": case_id, "FLAIR": file, "label": file}


def make_run(folder: Path) -> Path:
    """Write two cases with probabilities, and one without.

    Lesions of 1 and 8 voxels are detected at 0.9 and 0.6, another of 1 voxel never. False positive
    lesions have 0.7 and 0.3.
    """
    false_positive = cube(9, 9, 9)
    scores = [(0.9, SMALL), (0.6, LARGE), (0.7, false_positive)]
    a = make_case(folder, "a", scores, [SMALL, LARGE])
    b = make_case(folder, "b", [(0.3, cube(2, 2, 2))], [cube(8, 8, 8)])
    not_predicted = {**a, "case_id": "trained_on"}
    write_rows(folder / "manifest.csv", [a, b, not_predicted])
    return folder


def run_script(*arguments: object) -> int:
    """Call the script in this process; return its exit status."""
    with mock.patch.object(sys, "argv", ["lesions_by_threshold.py", *map(str, arguments)]):
        try:
            lesions_by_threshold.main()
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else 1
    return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


def test_points_by_hand(folder: Path) -> None:
    source, cases = lesions_by_threshold.cases_with_probability(folder)
    assert [case.case_id for case in cases] == ["a", "b"]
    thresholds = 1 / (1 + np.exp(-lesions_by_threshold.LOG_ODDS))
    points = lesions_by_threshold.points_by_threshold(source, cases, "lesion")
    for low, high, expected in (  # false per case, recall, recall of single voxels, mean Dice
        (0.9, 1.0, (0, 0, 0, 0)),
        (0.7, 0.9, (0, 1 / 3, 1 / 2, 2 / 10 / 2)),
        (0.6, 0.7, (0.5, 1 / 3, 1 / 2, 2 / 11 / 2)),
        (0.3, 0.6, (0.5, 2 / 3, 1 / 2, 18 / 19 / 2)),
        (0.0, 0.3, (1.0, 2 / 3, 1 / 2, 18 / 19 / 2)),
    ):
        inside = (thresholds > low + 0.01) & (thresholds < high - 0.01)
        assert inside.any()
        expected_points = np.broadcast_to(expected, (inside.sum(), 4))
        np.testing.assert_allclose(points[inside], expected_points, rtol=1e-6)


def test_equal_false_positives_are_searched_from_the_highest_threshold() -> None:
    at_false_per_case = lesions_by_threshold.at_false_per_case
    points = np.zeros((73, 4))
    points[:, 0] = np.linspace(72, 0, 73)
    points[:, 1] = np.linspace(1, 0, 73)
    # At low thresholds all lesions merge into one, so that none is false.
    points[:10, 0] = 0.0
    log_odds, values = at_false_per_case(points, 1.5)
    assert log_odds == pytest.approx(12 - 1.5 * 0.25)
    np.testing.assert_allclose(values, [1.5, 1.5 / 72, 0, 0])
    assert at_false_per_case(points, 100)[0] == -6
    assert np.isnan(at_false_per_case(points + 1, 0.5)[1]).all()


def test_the_table_has_the_best_dice_and_the_number_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script(folder, "--false", "0.25") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "| best Dice |" in lines[2]
    assert lines[2].endswith("| 0.5 | 0.667 | 0.500 | 0.474 |")
    assert "| 0.25 false |" in lines[3]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["absent"], "absent"), (["--false", "-1"], "-1"), (["--false", "nan"], "nan")],
)
def test_bad_arguments_end_in_one_line(
    folder: Path, arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if named != "absent":
        arguments = [str(folder), *arguments]
    assert run_script(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert named in printed.err


def test_masks_without_probabilities_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "predictions" / "a_mask.nii.gz", np.zeros(SHAPE, np.uint8))
    file = str(folder / "a_label.nii.gz")
    row = {"case_id": "a", "subject_id": "a", "FLAIR": file, "label": file}
    write_rows(tmp_path / "manifest.csv", [row])
    assert run_script(tmp_path) == 2
    assert f"{tmp_path}: " in capsys.readouterr().err
