"""Lesions cut out anew at each threshold: counts by hand, and what is refused."""

import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

from helpers.cohorts import save, write_rows

SCRIPT = Path(__file__).parents[2] / "scripts" / "dev" / "lesions_by_threshold.py"
SHAPE = (12, 12, 12)


def box(*corner, side=1):
    return tuple(slice(c, c + side) for c in corner)


SMALL, LARGE = box(1, 1, 1), box(5, 5, 5, side=2)


def make_run(folder):
    """Write two cases.

    Lesions of 1 and 8 voxels are detected at 0.9 and 0.6, one of 1 voxel never; false lesions lie
    at 0.7 and 0.3.
    """
    contents = {
        "a": ([(0.9, SMALL), (0.6, LARGE), (0.7, box(9, 9, 9))], [SMALL, LARGE]),
        "b": ([(0.3, box(2, 2, 2))], [box(8, 8, 8)]),
    }
    rows = []
    for case, (scores, lesions) in contents.items():
        probability, label = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.uint8)
        for score, where in scores:
            probability[where] = score
        for where in lesions:
            label[where] = 1
        save(folder / "predictions" / f"{case}_probability.nii.gz", probability)
        file = save(folder / f"{case}_label.nii.gz", label).name
        rows.append({"case_id": case, "subject_id": case, "FLAIR": file, "label": file})
    write_rows(folder / "manifest.csv", [*rows, {**rows[0], "case_id": "trained_on"}])
    return folder


def run_script(*words):
    out, err, before, status = StringIO(), StringIO(), sys.argv, 0
    sys.argv = [str(SCRIPT), *map(str, words)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv = before
    return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


def test_points_by_hand(folder):
    script = runpy.run_path(str(SCRIPT))
    source, cases = script["judged_cases"](folder)
    assert [case.case_id for case in cases] == ["a", "b"]
    thresholds = 1 / (1 + np.exp(-script["LOG_ODDS"]))
    points = script["points_by_threshold"](source, cases, "lesion")
    for low, high, expected in (  # false per case, recall, recall of single voxels, mean Dice
        (0.9, 1.0, (0, 0, 0, 0)),
        (0.7, 0.9, (0, 1 / 3, 1 / 2, 2 / 10 / 2)),
        (0.6, 0.7, (0.5, 1 / 3, 1 / 2, 2 / 11 / 2)),
        (0.3, 0.6, (0.5, 2 / 3, 1 / 2, 18 / 19 / 2)),
        (0.0, 0.3, (1.0, 2 / 3, 1 / 2, 18 / 19 / 2)),
    ):
        inside = (thresholds > low + 0.01) & (thresholds < high - 0.01)
        assert inside.any()
        np.testing.assert_allclose(
            points[inside], np.broadcast_to(expected, (inside.sum(), 4)), rtol=1e-6
        )


def test_at_equal_false_lesions_from_the_strictest_threshold_down():
    at_false = runpy.run_path(str(SCRIPT))["at_false"]
    points = np.zeros((73, 4))
    points[:, 0] = np.linspace(72, 0, 73)
    points[:, 1] = np.linspace(1, 0, 73)
    points[:10, 0] = 0.0  # low thresholds: all lesions in one, so that none is false
    odds, values = at_false(points, 1.5)
    assert odds == pytest.approx(12 - 1.5 * 0.25)
    np.testing.assert_allclose(values, [1.5, 1.5 / 72, 0, 0])
    assert at_false(points, 100)[0] == -6
    assert np.isnan(at_false(points + 1, 0.5)[1]).all()


def test_prints_a_table(folder):
    status, out, _ = run_script(folder, "--false", "0.25")
    lines = out.splitlines()
    assert (status, len(lines)) == (0, 4)
    assert "| best Dice |" in lines[2]
    assert lines[2].endswith("| 0.5 | 0.667 | 0.500 | 0.474 |")
    assert "| 0.25 false |" in lines[3]


@pytest.mark.parametrize("words", [["absent"], ["--false", "-1"], ["--false", "nan"]])
def test_bad_words_end_in_one_line(folder, words):
    status, out, err = run_script(*([folder] if words[0] == "--false" else []), *words)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: ")


def test_masks_alone_are_refused(folder, tmp_path):
    label = np.zeros(SHAPE, np.uint8)
    save(tmp_path / "predictions" / "a_mask.nii.gz", label)
    write_rows(
        tmp_path / "manifest.csv",
        [
            {
                "case_id": "a",
                "subject_id": "a",
                "FLAIR": (file := str(folder / "a_label.nii.gz")),
                "label": file,
            }
        ],
    )
    status, _, err = run_script(tmp_path)
    assert status == 2
    assert "holds no probability of a case with a label" in err
