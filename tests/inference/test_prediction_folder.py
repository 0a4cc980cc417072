from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from helpers.networks import FirstChannel
from helpers.oblique_cases import FLAIR, a_case
from tversky_seg.data.affines import affine_shift_voxels
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import read_volume
from tversky_seg.inference.lesion_table import VOXELS_PER_SEARCH, distance_to_edge
from tversky_seg.inference.operating_point import OperatingPoint
from tversky_seg.inference.predict import predict_cases
from tversky_seg.inference.prediction_folder import (
    check_file_names,
    prediction_files,
    write_prediction,
)
from tversky_seg.inference.settings import Inference

OBLIQUE = np.array(
    [[0.0, -2.0, 0.1, 10.0], [1.0, 0.1, 0.0, -20.0], [0.0, 0.2, 3.0, 5.0], [0, 0, 0, 1.0]]
)

OBLIQUE_WITHOUT_SHEAR = np.array(
    [[0.0, -2.0, 0.0, 10.0], [1.0, 0.0, 0.0, -20.0], [0.0, 0.0, 3.0, 5.0], [0, 0, 0, 1.0]]
)


def test_the_mask_is_the_stored_probability_at_the_threshold(tmp_path: Path) -> None:
    levels = (np.arange(65536) / 65535).reshape(64, 32, 32).astype(np.float32)
    for threshold in (0.0, 1 / 3, 0.5, float(np.float32(20000 / 65535)), 0.99999, 1.0):
        write_prediction(tmp_path, "a", levels[None], np.eye(4), points=OperatingPoint(threshold))
        stored, mask = (
            read_volume(tmp_path / f"a_{kind}.nii.gz").data for kind in ("probability", "mask")
        )
        np.testing.assert_array_equal(mask, stored >= np.float32(threshold))
        np.testing.assert_allclose(stored, levels, atol=1e-5)


def test_the_lesion_table_by_hand(tmp_path: Path) -> None:
    probability = np.zeros((1, 10, 10, 10), np.float32)
    probability[0, 1:4, 2, 2] = 0.6, 0.9, 0.6
    probability[0, 7, 7, 7] = probability[0, 8, 8, 8] = 0.8  # joined over the corner
    probability[0, 1, 8, 8] = 1.0
    affine = np.diag([-1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = 100, -50, 7
    rows = write_prediction(tmp_path, "a", probability, affine, points=OperatingPoint(0.5, 12.0))
    assert [row.pop("edge_distance_mm") for row in rows] == [None, None], "the brain is unknown"
    assert [row.pop("structural_uncertainty") for row in rows] == [None, None], "one network"
    # Two voxels of 0.6 and one of 0.9 are less sure than 0.8.
    assert [row.pop("doubt_rank") for row in rows] == [1, 2]
    assert [row.pop("mean_entropy") for row in rows] == pytest.approx([0.80363, 0.72193], abs=1e-4)
    assert rows == [
        {
            "case_id": "a",
            "lesion": 1,
            "volume_mm3": 18,
            "x_mm": 98,
            "y_mm": -46,
            "z_mm": 13,
            "mean_probability": 0.7,
        },
        {
            "case_id": "a",
            "lesion": 2,
            "volume_mm3": 12,
            "x_mm": 92.5,
            "y_mm": -35,
            "z_mm": 29.5,
            "mean_probability": 0.8,
        },
    ]
    assert read_volume(tmp_path / "a_mask.nii.gz").data.sum() == 5, "the lesion of 6 mm3 is gone"
    assert read_volume(tmp_path / "a_probability.nii.gz").data[1, 8, 8] == 1, (
        "its probability stays"
    )


def test_a_lesion_stays_if_one_voxel_reaches_the_peak(tmp_path: Path) -> None:
    probability = np.zeros((1, 10, 10, 10), np.float32)
    probability[0, 1:4, 2, 2] = 0.6, 0.9, 0.6
    probability[0, 6:9, 7, 7] = 0.8
    probability[0, 1, 8, 8] = 1.0
    points = OperatingPoint(0.5, 0.0, min_peak=0.85)
    rows = write_prediction(tmp_path, "a", probability, np.eye(4), points=points)
    assert [row["volume_mm3"] for row in rows] == [3, 1], "numbered anew, the largest first"
    mask = read_volume(tmp_path / "a_mask.nii.gz").data > 0
    np.testing.assert_array_equal(mask, (probability[0] > 0.5) & (probability[0] != 0.8))
    # Together with a size.
    points = OperatingPoint(0.5, 2.0, min_peak=0.85)
    rows = write_prediction(tmp_path, "a", probability, np.eye(4), points=points)
    assert [row["volume_mm3"] for row in rows] == [3]
    # A stored 0.8 is level 52,428 of 65,535, and reaches 0.8.
    points = OperatingPoint(0.5, 2.0, min_peak=0.8)
    assert len(write_prediction(tmp_path, "a", probability, np.eye(4), points=points)) == 2


def test_lesions_are_those_of_scipy(tmp_path: Path) -> None:
    probability = ndimage.gaussian_filter(
        np.random.default_rng(1).random((30, 30, 30)), 1.5
    ).astype(np.float32)
    threshold = float(np.quantile(probability, 0.9))
    rows = write_prediction(
        tmp_path, "a", probability[None], OBLIQUE, points=OperatingPoint(threshold)
    )
    mask = read_volume(tmp_path / "a_mask.nii.gz").data > 0
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.sort(np.bincount(labels.ravel())[1:])[::-1] * abs(np.linalg.det(OBLIQUE[:3, :3]))
    np.testing.assert_allclose([row["volume_mm3"] for row in rows], sizes, atol=1e-3)
    largest = 1 + np.argmax(np.bincount(labels.ravel())[1:])
    centre = OBLIQUE[:3, :3] @ ndimage.center_of_mass(labels == largest) + OBLIQUE[:3, 3]
    np.testing.assert_allclose([rows[0][f"{axis}_mm"] for axis in "xyz"], centre, atol=1e-3)


def test_an_empty_prediction_is_written_and_has_no_rows(tmp_path: Path) -> None:
    assert write_prediction(tmp_path, "a", np.zeros((1, 5, 5, 5), np.float32), np.eye(4)) == []
    assert not read_volume(tmp_path / "a_mask.nii.gz").data.any()


def test_several_classes_have_files_rows_and_thresholds_of_their_own(tmp_path: Path) -> None:
    probability = np.full((2, 4, 4, 4), 0.4, np.float32)
    classes = ("liver", "tumour")
    rows = write_prediction(
        tmp_path,
        "a",
        probability,
        np.eye(4),
        classes=classes,
        points={"liver": OperatingPoint(0.3), "tumour": OperatingPoint(0.3, min_peak=0.5)},
    )
    assert [(row["class"], row["volume_mm3"]) for row in rows] == [("liver", 64)]
    expected = {"a_labels.nii.gz"}
    for files in prediction_files(tmp_path, "a", classes).values():
        expected |= {files.probability.name, files.mask.name}
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert (tmp_path / "a_tumour_mask.nii.gz").is_file()


def test_few_voxels_and_many_lie_equally_far_from_the_edge() -> None:
    brain = ndimage.binary_opening(np.random.default_rng(0).random((30, 40, 50)) > 0.2)
    brain[:, 20:, :] = True  # up to the edge of the field of view
    voxels = np.argwhere(np.ones_like(brain))
    step = VOXELS_PER_SEARCH + 203
    assert len(voxels[::step]) > 40
    many = distance_to_edge(voxels, brain, spacing_mm=(1.0, 2.0, 0.5))
    few = distance_to_edge(voxels[::step], brain, spacing_mm=(1.0, 2.0, 0.5))
    np.testing.assert_allclose(many[::step], few, atol=1e-9)
    assert (many[~brain.ravel()] == 0).all()


@pytest.mark.parametrize(("sform_code", "qform_code"), [(2, 1), (4, 1), (1, 1), (0, 1), (2, 0)])
def test_outputs_keep_both_forms_of_the_header_and_their_codes(
    tmp_path: Path, sform_code: int, qform_code: int
) -> None:
    """ITK goes by the qform unless the code of the sform is 1; others go by the sform."""
    case = a_case(tmp_path)
    source = nib.load(case.images["FLAIR"])
    scanner = OBLIQUE_WITHOUT_SHEAR.copy()
    scanner[0, 3] += 30
    source.header.set_sform(OBLIQUE_WITHOUT_SHEAR, sform_code)
    source.header.set_qform(scanner, qform_code)
    image = nib.Nifti1Image(np.asarray(source.dataobj), None, source.header)
    nib.save(image, case.images["FLAIR"])
    predict_cases(FirstChannel(), [case], FLAIR, tmp_path / "p", inference=Inference(patch_size=8))
    expected = nib.load(case.images["FLAIR"]).header
    for kind in ("mask", "probability"):
        header = nib.load(tmp_path / "p" / f"a_{kind}.nii.gz").header
        assert (header["sform_code"], header["qform_code"]) == (sform_code, qform_code)
        if sform_code:
            np.testing.assert_allclose(header.get_sform(), expected.get_sform())
        if qform_code:
            np.testing.assert_allclose(header.get_qform(), expected.get_qform(), atol=1e-5)
    assert (
        affine_shift_voxels(
            nib.load(case.images["FLAIR"]).affine,
            nib.load(tmp_path / "p" / "a_mask.nii.gz").affine,
            (20, 14, 9),
        )
        < 1e-3
    )


def test_without_any_form_the_affine_in_use_is_written(tmp_path: Path) -> None:
    case = a_case(tmp_path)
    source = nib.load(case.images["FLAIR"])
    source.header.set_sform(None, 0)
    source.header.set_qform(None, 0)
    nib.save(nib.Nifti1Image(np.asarray(source.dataobj), None, source.header), case.images["FLAIR"])
    predict_cases(FirstChannel(), [case], FLAIR, tmp_path / "p", inference=Inference(patch_size=8))
    mask = nib.load(tmp_path / "p" / "a_mask.nii.gz")
    np.testing.assert_allclose(mask.affine, nib.load(case.images["FLAIR"]).affine)
    assert mask.header["sform_code"] == 1


@pytest.mark.parametrize(
    ("case_ids", "classes"),
    [
        (["a", "a_b"], ["c", "b_c"]),
        (["anna", "anna_new"], ["lesion", "new_lesion"]),
        (["a", "A_b"], ["c", "B_C"]),  # one file on systems that ignore case
    ],
)
def test_names_that_would_be_one_file_are_refused(case_ids: list[str], classes: list[str]) -> None:
    with pytest.raises(DataError) as error:
        check_file_names(case_ids, classes)
    for name in (*case_ids, *classes):
        assert name in str(error.value)
    check_file_names(case_ids, classes[:1])
    check_file_names(["x", "y"], classes)


def test_nothing_is_predicted_where_two_masks_would_be_one_file(tmp_path: Path) -> None:
    cases = [a_case(tmp_path, name) for name in ("a", "a_b")]
    settings = replace(FLAIR, classes={"c": (1,), "b_c": (2,)})
    inference = Inference(patch_size=8)
    with pytest.raises(DataError, match="a_b_c"):
        predict_cases(FirstChannel(), cases, settings, tmp_path / "out", inference=inference)
    assert not (tmp_path / "out").exists()
