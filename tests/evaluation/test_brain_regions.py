"""Regions of the brain: the rule on drawn maps, the template's maps, an evaluation."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tversky_seg.data.case import Case
from tversky_seg.evaluation import brain_regions
from tversky_seg.evaluation.brain_regions import (
    DEEP,
    INFRATENTORIAL,
    JUXTACORTICAL,
    PERIVENTRICULAR,
    RegionAtlas,
    is_mni,
    mni_atlas,
    regions_of_lesions,
)
from tversky_seg.evaluation.evaluator import evaluate
from tversky_seg.evaluation.region_counts import RegionCounts, summarize_regions
from tversky_seg.metrics.lesions import match_lesions

SHAPE = (40, 20, 20)
LAS = np.array([[-2.0, 0, 0, 39], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def drawn_atlas() -> RegionAtlas:
    """Ventricles at x = 0, cortex at x = 39, infratentorial below z = 5; 1 mm along x, y, z."""
    x = np.broadcast_to(np.arange(40, dtype=np.float32)[:, None, None], SHAPE)
    below = np.zeros(SHAPE, dtype=bool)
    below[..., :5] = True
    return RegionAtlas(x, 39 - x, below, np.eye(4))


def regions(*boxes: tuple[slice, slice, slice]) -> list[str]:
    """Regions of boxes in a case of 2 mm voxels whose x axis runs the other way."""
    mask = np.zeros((20, 20, 20), dtype=bool)
    for box in boxes:
        mask[box] = True
    lesions = match_lesions(mask, mask, spacing_mm=(2, 1, 1)).reference
    found = regions_of_lesions(lesions, mask, LAS, connectivity=26, atlas=drawn_atlas())
    order = np.argsort(lesions.centre[:, 0])
    return [found[k] for k in order]


def test_regions_follow_distance_in_mm_and_precedence() -> None:
    upper = slice(10, 12)
    # x_mm = 39 - 2 i: voxel 18 is at 3 mm from the ventricles, voxel 17 at 5 mm.
    assert regions(np.s_[18:19, 2:4, upper]) == [PERIVENTRICULAR]
    assert regions(np.s_[17:18, 2:4, upper]) == [DEEP]
    assert regions(np.s_[0:2, 2:4, upper]) == [JUXTACORTICAL]
    assert regions(np.s_[1:2, 2:4, upper]) == [DEEP], "2 mm from the cortex"
    assert regions(np.s_[0:20, 2:4, upper]) == [PERIVENTRICULAR], "it touches both"
    assert regions(np.s_[18:19, 2:4, 1:4]) == [INFRATENTORIAL]
    assert regions(np.s_[18:19, 2:4, 3:7]) == [PERIVENTRICULAR], "half of it is not most of it"
    assert regions(np.s_[0:1, 2:4, upper], np.s_[8:10, 9:11, upper], np.s_[19:20, 2:4, upper]) == [
        JUXTACORTICAL,
        DEEP,
        PERIVENTRICULAR,
    ]
    assert regions() == []


def test_names_of_mni_space() -> None:
    assert all(map(is_mni, ("MNI", "mni152", "MNI152NLin6Asym")))
    assert not any(map(is_mni, (None, "native", "Talairach")))


def test_beyond_the_atlas_all_is_far_away() -> None:
    ventricle, cortex, below = drawn_atlas().at(np.array([[1.0, 2, 3], [-9.0, 0, 0]]))
    assert ventricle.tolist() == [1, math.inf]
    assert cortex.tolist() == [38, math.inf]
    assert below.tolist() == [True, False]


def test_small_lesions_that_the_rule_drops_do_not_mix_up_the_others() -> None:
    mask = np.zeros((20, 20, 20), dtype=bool)
    mask[19, 2, 10] = True
    mask[8:11, 9:12, 10:13] = True
    lesions = match_lesions(mask, mask, spacing_mm=(2, 1, 1), min_volume_mm3=10).reference
    found = regions_of_lesions(lesions, mask, LAS, connectivity=26, atlas=drawn_atlas())
    assert found == [DEEP]


@pytest.mark.slow
def test_the_template_knows_its_anatomy() -> None:
    atlas = mni_atlas()
    # Points in mm that any atlas in MNI space agrees on.
    points = {
        "body of the lateral ventricle": (10, 5, 20),
        "pons": (0, -25, -35),
        "cerebellar hemisphere": (30, -60, -40),
        "precentral gyrus": (-38, -20, 58),
        "centrum semiovale": (25, -15, 36),
        "thalamus": (-12, -20, 8),
        "temporal pole": (40, 10, -34),
        "occipital cortex above the tentorium": (8, -80, 6),
    }
    ventricle, cortex, below = atlas.at(np.array(list(points.values()), dtype=float))
    at = dict(zip(points, zip(ventricle, cortex, below, strict=True), strict=True))
    assert at["body of the lateral ventricle"][0] == 0
    assert at["pons"][2]
    assert at["cerebellar hemisphere"][2]
    assert at["precentral gyrus"][1] <= 3
    assert at["centrum semiovale"][0] > 3
    assert at["centrum semiovale"][1] > 1
    assert at["thalamus"][1] > 5
    assert not any(at[name][2] for name in points if name not in ("pons", "cerebellar hemisphere"))
    # Lateral ventricles of a young adult: about 20 ml. Cerebellum and brainstem: about 150 ml or
    # more, 12 % of the brain.
    assert 12_000 < np.count_nonzero(atlas.ventricle_mm == 0) < 30_000
    assert 130_000 < np.count_nonzero(atlas.infratentorial) < 260_000


def test_counts_by_region_add_up_and_affected_regions_are_counted() -> None:
    one = {
        PERIVENTRICULAR: RegionCounts(2, 1, 1, 0, 30, 12, 0),
        JUXTACORTICAL: RegionCounts(0, 0, 2, 2, 0, 8, 8),
        INFRATENTORIAL: RegionCounts(1, 1, 1, 0, 5, 5, 0),
        DEEP: RegionCounts(3, 3, 3, 0, 9, 9, 0),
    }
    summary = summarize_regions(["a", "b", "c"], ["s", "s", "t"], [one, None, one])
    assert summary is not None
    assert summary["left_out"] == ["b"]
    by_region = summary["by_region"]
    assert by_region[PERIVENTRICULAR]["n_reference"] == 4
    assert by_region[PERIVENTRICULAR]["recall"] == 0.5
    assert by_region[JUXTACORTICAL]["false_volume_mm3"] == 16
    assert math.isnan(by_region[JUXTACORTICAL]["recall"])
    assert summary["cases"][0]["n_mcdonald_reference"] == 2, "deep white matter does not count"
    assert summary["cases"][0]["n_mcdonald_predicted"] == 3
    assert summarize_regions(["b"], ["s"], [None]) is None


def save(path: Path, data: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(data.astype(np.uint8), LAS), path)
    return path


def test_an_evaluation_counts_cases_in_mni_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(brain_regions, "mni_atlas", drawn_atlas)
    monkeypatch.setattr("tversky_seg.report.page.draw_charts", lambda *_: iter(()))
    reference = np.zeros((20, 20, 20))
    reference[18:20, 2:4, 10:12] = 1  # periventricular, detected
    reference[8:10, 9:11, 10:12] = 1  # deep, missed
    prediction = np.zeros((20, 20, 20))
    prediction[18:20, 2:4, 10:12] = 1
    prediction[0:2, 14:16, 10:12] = 1  # juxtacortical, false
    cases = []
    for case_id, space in (("a", "MNI"), ("b", None)):
        label = save(tmp_path / f"{case_id}_label.nii.gz", reference)
        (tmp_path / "p").mkdir(exist_ok=True)
        save(tmp_path / "p" / f"{case_id}_mask.nii.gz", prediction)
        cases.append(Case(case_id, case_id, images={}, labels=(label,), space=space))
    metrics = evaluate(tmp_path / "p", cases, output_dir=tmp_path / "e", viewer="none")
    regions_of = metrics["regions"]
    assert regions_of["n_cases"] == 1
    assert regions_of["left_out"] == ["b"]
    assert regions_of["by_region"][PERIVENTRICULAR]["n_detected"] == 1
    assert regions_of["by_region"][DEEP]["recall"] == 0
    assert regions_of["by_region"][JUXTACORTICAL]["n_false"] == 1
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["regions"] == regions_of
    with (tmp_path / "e" / "lesions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    named = {(row["case_id"], row["mask"], row["region"]) for row in rows}
    assert ("a", "prediction", JUXTACORTICAL) in named
    assert ("b", "prediction", "") in named
    page = (tmp_path / "e" / "report.html").read_text()
    assert "By region of the brain" in page
    assert "manifest column space" in page
    assert not caplog.records
    native = [replace(case, space="native") for case in cases]
    metrics = evaluate(tmp_path / "p", native, output_dir=tmp_path / "n", viewer="none")
    assert metrics["regions"] is None
    assert "space is native, expected MNI" in caplog.text
