"""scripts/dev/compare_nodules.py: measures by hand, thresholds of other folds, and refusals."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from helpers.cohorts import save, write_rows
from helpers.command_line import script

compare_nodules = script("dev/compare_nodules")

LESION = (slice(None), 0, 0)  # four voxels
HALF_OF_IT = (slice(2), 0, 0)
BESIDE = (slice(None), 1, 1)  # four voxels, too
SUBJECTS = {"c1": "s1", "c2": "s1", "c3": "s2"}
FOLDS = {0: ("c1", "c2"), 1: ("c3",)}


def probability(*scores: tuple[tuple, float]) -> np.ndarray:
    values = np.zeros((4, 4, 4), np.float32)
    for box, score in scores:
        values[box] = score
    return values


CAUTIOUS = probability((HALF_OF_IT, 0.9))  # Dice 2/3 at every threshold up to 0.88
BOLD = probability((LESION, 0.9), (BESIDE, 0.6))  # Dice 2/3 at 0.5, and 1 above 0.6
EMPTY = probability()


def write_run(folder: Path, name: str, predictions: Mapping[str, np.ndarray]) -> None:
    for case_id, values in predictions.items():
        save(folder / name / "predictions" / f"{case_id}_probability.nii.gz", values)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodules")
    label = probability((LESION, 1)).astype(np.uint8)
    rows = []
    for case_id, subject_id in SUBJECTS.items():
        file = save(folder / f"{case_id}.nii.gz", label).name
        rows.append({"case_id": case_id, "subject_id": subject_id, "CT": file, "label": file})
    for fold, case_ids in FOLDS.items():
        write_run(folder, f"cautious_s0_f{fold}", dict.fromkeys(case_ids, CAUTIOUS))
        write_run(folder, f"bold_s0_f{fold}", dict.fromkeys(case_ids, BOLD))
        write_run(folder, f"empty_s0_f{fold}", dict.fromkeys(case_ids, EMPTY))
    write_run(folder, "bold_s1_f0", dict.fromkeys(FOLDS[0], EMPTY))
    return write_rows(folder / "manifest.csv", rows)


def test_measures_by_hand() -> None:
    reference = probability((LESION, 1)) > 0
    measures = compare_nodules.measure(BOLD, reference)
    # tp 4, fp 4, fn 0 up to 0.5; tp 4, fp 0 at 0.73 and 0.88; nothing from 0.95.
    expected = {
        compare_nodules.HALF: (8 / 12, 20 / 24, 1, 1 / 2, 1),
        3: (1, 1, 1, 1, 1),
        4: (1, 1, 1, 1, 1),
        5: (0, 0, 0, np.nan, 0),
    }
    for place, values in expected.items():
        np.testing.assert_allclose(measures[place], values)


def test_a_threshold_is_chosen_on_the_other_folds() -> None:
    folds = []
    for fold, values in enumerate((BOLD, EMPTY)):
        measures = compare_nodules.measure(values, probability((LESION, 1)) > 0)
        folds.append(compare_nodules.Fold(fold, {f"c{fold}": measures}))
    assert compare_nodules.best_threshold(folds, without=1) == 3
    # Of equal ones the lowest.
    assert compare_nodules.best_threshold(folds, without=0) == 0


def test_the_tables_hold_paired_differences(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare_nodules.main([str(manifest), str(manifest.parent), "cautious:bold", "empty:bold"])
    printed = capsys.readouterr()
    # A seed without all folds does not count.
    assert "bold, seed 1: 2 of 3 cases; left out" in printed.err
    at_half, chosen = printed.out.split("threshold chosen on the other folds")
    (cautious,) = (line for line in at_half.splitlines() if line.startswith("| `cautious` | all"))
    assert cautious == "| `cautious` | all | 3 | 0.667 | 0.556 | 0.500 | 1.000 | 1.000 |"
    differences = [line for line in at_half.splitlines() if line.startswith("| `bold` minus")]
    assert differences[0].startswith("| `bold` minus `cautious` | all | 2 | +0.000 (+0.000 to")
    # Both folds are equal here.
    assert "| -0.500 (-0.500 to -0.500); -0.500 to -0.500 |" in differences[0]
    # The precision of an empty mask is undefined: no pair, no difference.
    (against_nothing,) = (line for line in differences if "`empty` | all" in line)
    assert "+0.667 (+0.667 to +0.667)" in against_nothing
    assert "| – |" in against_nothing
    assert "| `bold` minus `cautious` | all | 2 | +0.333 (+0.333 to +0.333)" in chosen


def test_an_unknown_setting_is_refused(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare_nodules.main([str(manifest), str(manifest.parent), "bold:bolder"])
    assert (
        "has no setting 'bolder'; expected two of bold, cautious, empty" in capsys.readouterr().err
    )
