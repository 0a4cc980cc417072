"""Numbers published by other projects for given masks; oracles.json names the source of each."""

import json

import numpy as np
import pytest
from scipy import ndimage

from tversky_seg.metrics.agreement import isbi_score
from tversky_seg.metrics.lesion_rule import lesion_counts
from tversky_seg.metrics.lesions import match_lesions
from tversky_seg.metrics.overlap import overlap_counts
from tversky_seg.metrics.surface import surface_distances


@pytest.fixture(scope="module")
def oracles(real_data):
    return json.loads((real_data / "metric_oracles" / "oracles.json").read_text())


def draw(shape, *boxes):
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask[box] = True
    return mask


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_measures_of_the_tiny_lesion_masks(real_data, oracles, connectivity):
    import nibabel

    expected = oracles["lesion_metrics_tiny"]
    files = [
        nibabel.load(real_data / "metric_oracles/lesion_metrics_tiny" / name)
        for name in ("pred.nii.gz", "truth.nii.gz")
    ]
    prediction, reference = (np.asarray(file.dataobj) for file in files)
    overlap = overlap_counts(prediction, reference)
    lesions = lesion_counts(prediction, reference, spacing_mm=(1, 1, 1), connectivity=connectivity)
    assert overlap.dice == pytest.approx(expected["dsc"])
    assert overlap.jaccard == pytest.approx(expected["jaccard"])
    assert overlap.precision == pytest.approx(expected["ppv"])
    assert overlap.sensitivity == pytest.approx(expected["tpr"])
    assert lesions.tpr == pytest.approx(expected["ltpr"])
    assert lesions.fpr == pytest.approx(expected["lfdr"])
    assert abs(overlap.volume_difference) == pytest.approx(expected["avd"])
    score = isbi_score(
        dice=overlap.dice,
        precision=overlap.precision,
        lesion_fpr=lesions.fpr,
        lesion_tpr=lesions.tpr,
        correlation=0,
    )
    assert score / 0.75 == pytest.approx(expected["isbi15_score"])


def test_voxel_counts_of_nested_squares(oracles):
    expected = oracles["metrics_reloaded"]["sn2.10"]
    reference = draw((14, 14), np.s_[5:9, 5:9])
    predictions = draw((14, 14), np.s_[6:8, 6:8]), draw((14, 14), np.s_[4:10, 4:10])
    for i, prediction in enumerate(predictions):
        counts = overlap_counts(prediction, reference)
        assert [getattr(counts, name) for name in ("tp", "fp", "fn", "tn")] == [
            expected[k][i] for k in ("tp", "fp", "fn", "tn")
        ]
        distances = surface_distances(prediction, reference, spacing_mm=(1, 1))
        published = oracles["metrics_reloaded"]["sn2.10_distances"]
        assert distances.assd_mm == pytest.approx(published["ASSD"][i], abs=0.006)
        assert distances.hd_mm == pytest.approx(published["HD"][i], abs=0.005)
        assert distances.surface_dice == pytest.approx(published["NSD_tau1"][i], abs=0.0005)


def test_distances_of_a_square_with_a_cross(oracles):
    expected = oracles["metrics_reloaded"]["fig10"]
    reference = draw((11, 11), np.s_[3:8, 3:8])
    prediction = reference | draw((11, 11), np.s_[5, 1:10], np.s_[1:10, 5])
    distances = surface_distances(prediction, reference, spacing_mm=(1, 1))
    assert distances.assd_mm == pytest.approx(expected["ASSD"], abs=0.005)
    assert distances.surface_dice == pytest.approx(expected["NSD_tau1"], abs=0.005)
    wide = surface_distances(prediction, reference, spacing_mm=(1, 1), tolerance_mm=2)
    assert wide.surface_dice == 1
    assert overlap_counts(prediction, reference).dice == pytest.approx(expected["DSC"], abs=0.0005)


def test_hd95_is_the_larger_directed_percentile_not_the_pooled_one(oracles):
    prediction = draw((14, 14), np.s_[9:12, 9:12])
    reference = prediction | draw((14, 14), np.s_[1, 1])
    distances = surface_distances(prediction, reference, spacing_mm=(1, 1))
    assert distances.hd95_mm == pytest.approx(
        oracles["metrics_reloaded"]["fig5c"]["HD95"], abs=0.005
    )
    assert distances.hd_mm == pytest.approx(oracles["metrics_reloaded"]["fig5c"]["HD"], abs=0.005)


def test_f1_of_voxels(oracles):
    expected = oracles["metrics_reloaded"]["f1"]
    reference, prediction = np.repeat([1, 0], 50), np.repeat([1, 0, 1, 0], [45, 5, 10, 40])
    assert overlap_counts(prediction, reference).f(1) == pytest.approx(expected["f1_1"], abs=0.005)


def test_hd95_and_dice_of_single_voxels_and_of_half_spaces(oracles):
    voxels, halves = oracles["surface_distance_3d"]["cases"][:2]
    masks = [draw(voxels["shape"], tuple(voxels[name][0])) for name in ("pred", "gt")]
    assert surface_distances(*masks, spacing_mm=voxels["spacing"]).hd95_mm == voxels["hd95"]
    assert overlap_counts(*masks).dice == voxels["dice"]
    masks = [draw(halves["shape"], np.s_[:n]) for n in (51, 50)]
    assert surface_distances(*masks, spacing_mm=halves["spacing"]).hd95_mm == halves["hd95"]
    assert overlap_counts(*masks).dice == pytest.approx(halves["dice"], abs=0.0005)


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_lesions_of_a_real_mask_are_scipys(real_data, connectivity):
    import nibabel

    (path,) = (real_data / "open_ms_data/cross_sectional/MNI/patient07").glob(
        "GOLD_STANDARD*.nii.gz"
    )
    file = nibabel.load(path)
    mask = np.asarray(file.dataobj) > 0.5
    structure = ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])
    labels, n_lesions = ndimage.label(mask, structure)
    spacing_mm = file.header.get_zooms()
    match = match_lesions(mask, mask, spacing_mm=spacing_mm, connectivity=connectivity)
    volumes = match.reference.volume_mm3
    assert sorted(volumes) == sorted(np.bincount(labels.ravel())[1:])
    assert len(volumes) == n_lesions
    if connectivity == 26:
        assert n_lesions == 37
