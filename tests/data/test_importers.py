"""Each importer on a small tree with the official names and headers, up to prepared cases."""

import csv
import inspect
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from helpers.command_line import SMALL, call
from helpers.networks import Constant
from tversky_seg.data.bids_inputs import cases_in_bids
from tversky_seg.data.case import Case
from tversky_seg.data.dataset import Dataset, find_cases
from tversky_seg.data.datasets.bids import find_bids
from tversky_seg.data.datasets.decathlon import find_decathlon
from tversky_seg.data.datasets.import_command import IMPORTERS, main
from tversky_seg.data.datasets.isbi2015 import find_isbi2015
from tversky_seg.data.datasets.lesjak2017 import find_lesjak2017
from tversky_seg.data.datasets.lits import find_lits
from tversky_seg.data.datasets.luna16 import find_luna16, lung_mask
from tversky_seg.data.datasets.luna16_lidc import Contour, nodule_mask
from tversky_seg.data.datasets.msseg2016 import find_msseg2016
from tversky_seg.data.datasets.nnunet import find_nnunet
from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import to_input_grid
from tversky_seg.data.manifest import read_manifest
from tversky_seg.data.nifti import read_volume
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocess
from tversky_seg.data.split import split_cases
from tversky_seg.inference.predict import predict_cases
from tversky_seg.inference.settings import Inference

ROOT = Path(__file__).parents[2]
SHAPE = (32, 32, 32)
LAS = np.diag([-1.0, 1, 1, 1])


@cache
def ball(centre: tuple[float, ...], radius: float, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.linalg.norm(places - np.array(centre), axis=-1) <= radius


@cache
def brain() -> np.ndarray:
    noise = np.random.default_rng(0).normal(100, 10, SHAPE)
    return np.where(ball((16, 16, 16), 13), noise, 0).astype(np.float32)


def save(path: Path, data: np.ndarray, affine: np.ndarray = LAS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def lesion(x: int, radius: float = 3) -> np.ndarray:
    return ball((x, 16, 16), radius).astype(np.uint8)


def isbi2015(root: Path, *, ending: str = ".nii") -> Path:
    for subject, n_sessions in (("training01", 2), ("training02", 1), ("test01", 1)):
        part = "training" if subject.startswith("training") else "testdata_website"
        folder = root / part / subject
        for session in range(1, n_sessions + 1):
            name = f"{subject}_{session:02d}"
            for modality in ("flair", "mprage", "pd", "t2"):
                save(folder / "preprocessed" / f"{name}_{modality}_pp{ending}", brain())
                save(folder / "orig" / f"{name}_{modality}.nii.gz", brain())
            if part == "training":
                save(folder / "masks" / f"{name}_mask1{ending}", lesion(14))
                save(folder / "masks" / f"{name}_mask2{ending}", lesion(16))
    return root


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_isbi_time_points_are_sessions_and_test_scans_are_predicted_not_evaluated(
    tmp_path: Path, ending: str
) -> None:
    cases = find_isbi2015(isbi2015(tmp_path, ending=ending))
    assert [(c.case_id, c.subject_id, c.session, len(c.labels), c.split) for c in cases] == [
        ("training01_01", "training01", "01", 2, None),
        ("training01_02", "training01", "02", 2, None),
        ("training02_01", "training02", "01", 2, None),
        ("test01_01", "test01", "01", 0, "test"),
    ]
    assert list(cases[0].images) == ["FLAIR", "T1", "T2", "PD"]
    assert (cases[0].consensus, [f.name for f in cases[0].raters]) == (
        False,
        [f"training01_01_mask{rater}{ending}" for rater in (1, 2)],
    )
    split = split_cases(cases, folds=2, fold=0)
    assert {case.subject_id for case in split.train}.isdisjoint(
        case.subject_id for case in split.test
    )
    assert "test01_01" in {case.case_id for case in split.test}
    prepared = preprocess(cases[0], Preprocessing(("FLAIR", "T1", "T2", "PD"), rater=2))
    assert prepared.n_lesions == (1,)


def test_isbi_is_found_from_its_training_folder_too(tmp_path: Path) -> None:
    isbi2015(tmp_path / "training_final_v4")
    assert len(find_isbi2015(tmp_path)) == 4
    assert len(find_isbi2015(tmp_path / "training_final_v4" / "training")) == 3


def lits(root: Path) -> Path:
    """Liver (1) with a tumour (2) in CT as the archive has them; volume 28 is in batch 2."""
    for number, batch in ((0, 1), (1, 1), (28, 2), (40, 2)):
        liver, tumour = ball((18, 16, 14), 8), ball((20, 16, 14), 2)
        ct = np.where(ball((16, 16, 16), 15), 20, -1000) + 60 * liver - 30 * tumour
        folder = root / "media/nas/01_Datasets/CT/LITS" / f"Training Batch {batch}"
        affine = np.diag([-0.7, -0.7, 2.5, 1])
        save(folder / f"volume-{number}.nii", ct.astype(np.int16), affine)
        save(folder / f"segmentation-{number}.nii", (liver * 1 + tumour).astype(np.uint8), affine)
    save(root / "LITS-Challenge-Test-Data" / "test-volume-0.nii", ct.astype(np.int16), affine)
    return root


def test_lits_batches_are_joined_and_the_test_volumes_are_predicted(tmp_path: Path) -> None:
    cases = find_lits(lits(tmp_path))
    assert [c.case_id for c in cases] == [
        "volume-0",
        "volume-1",
        "volume-28",
        "volume-40",
        "test-volume-0",
    ]
    assert [(len(c.labels), c.split) for c in cases] == [(1, None)] * 4 + [(0, "test")]
    split = [(c.case_id, c.split) for c in find_lits(tmp_path, split="shirokikh2020")]
    assert [part for _, part in split] == ["test", "test", "val", "train"]
    with pytest.raises(DataError, match=r"data\.importer\.split.*'p3'.*shirokikh2020"):
        find_lits(tmp_path, split="p3")


def test_lits_masks_without_geometry_get_that_of_their_scan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, repaired = lits(tmp_path / "LITS"), tmp_path / "repaired"
    file = next(root.rglob("segmentation-28.nii"))
    label = nib.load(file).get_fdata().astype(np.uint8)
    matlab = np.eye(4)
    matlab[:3, 3] = 1
    save(file, label, matlab)
    before = file.read_bytes()
    with caplog.at_level(logging.WARNING, logger="tversky_seg"):
        cases = {case.case_id: case for case in find_lits(root, repaired=str(repaired))}
    assert "segmentation-28" in caplog.text
    assert "segmentation-40" not in caplog.text
    case = cases["volume-28"]
    assert case.label == repaired / "segmentation-28.nii.gz"
    assert np.array_equal(np.asarray(nib.load(case.label).dataobj), label)
    preprocess(case, Preprocessing(("CT",), {"liver": (1, 2)}, normalization="window"))
    assert file.read_bytes() == before, "the download stays as it was"
    assert cases["volume-40"].label.name == "segmentation-40.nii"
    times = case.label.stat().st_mtime_ns
    assert find_lits(root, repaired=str(repaired))[2].label.stat().st_mtime_ns == times


def test_lits_masks_of_another_shape_are_left_to_preprocessing(tmp_path: Path) -> None:
    root = lits(tmp_path / "LITS")
    save(next(root.rglob("segmentation-28.nii")), np.zeros((5, 5, 5), np.uint8))
    case = find_lits(root, repaired=str(tmp_path / "repaired"))[2]
    with pytest.raises(DataError, match=r"segmentation-28.*\(5, 5, 5\)"):
        preprocess(case, Preprocessing(("CT",), normalization="window"))


def test_lits_classes_are_nested_and_its_window_is_cut_at_both_ends(tmp_path: Path) -> None:
    case = find_lits(lits(tmp_path))[0]
    settings = Preprocessing(
        ("CT",), {"liver": (1, 2), "tumour": (2,)}, normalization="window", limits=(-300, 300)
    )
    prepared = preprocess(case, settings)
    assert prepared.n_lesions == (1, 1)
    assert prepared.target is not None
    assert (prepared.target[1] <= prepared.target[0]).all()
    values = prepared.image * prepared.image_scale[0]
    assert values.min() == 0
    inside = values[0][prepared.target[1] > 0]
    assert inside == pytest.approx(np.full(inside.shape, (50 + 300) / 600), abs=1e-4)


def test_lits_liver_box_is_shirokikhs_and_can_be_undone(tmp_path: Path) -> None:
    case = find_lits(lits(tmp_path))[0]
    settings = Preprocessing(
        ("CT",), {"tumour": (2,)}, normalization="window", crop_values=(1,), crop_margin=5
    )
    prepared = preprocess(case, settings)
    label = np.asarray(nib.load(case.labels[0]).dataobj)
    sides = [np.flatnonzero((label == 1).any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    assert prepared.geometry.shape == tuple(
        min(side[-1] + 6, 32) - max(side[0] - 5, 0) for side in sides
    )  # axes are flipped, not permuted
    assert prepared.target is not None
    back = to_input_grid(prepared.target[0].astype(np.float32), prepared.geometry)
    assert np.array_equal(back > 0.5, label == 2)
    whole = preprocess(
        Case("a", "a", case.images), settings
    )  # without label there is nothing to crop to
    assert whole.geometry.shape > prepared.geometry.shape
    with pytest.raises(
        DataError, match=r"holds none of the label values \[7\] of data.crop_values"
    ):
        preprocess(case, Preprocessing(("CT",), {"liver": (1, 2)}, crop_values=(7,)))


def test_labelled_cases_are_cropped_only_where_a_prediction_asks_for_it(tmp_path: Path) -> None:
    case = find_lits(lits(tmp_path))[0]
    assert case.label is not None
    settings = Preprocessing(("CT",), {"tumour": (2,)}, normalization="window", crop_values=(1,))
    label = np.asarray(nib.load(case.label).dataobj)
    box = tuple(slice(side.min() - 5, side.max() + 6) for side in np.nonzero(label == 1))
    outside = np.ones(label.shape, bool)
    outside[box] = False
    inference = Inference(patch_size=16, threshold=0.0)
    n_outside = {}
    for crops in (False, True):
        folder = tmp_path / str(crops)
        asked = replace(inference, crop_labelled=crops)
        assert predict_cases(Constant(0.3), [case], settings, folder, inference=asked) == {}
        probability = read_volume(folder / "volume-0_probability.nii.gz").data
        n_outside[crops] = np.count_nonzero(probability[outside])
        assert np.count_nonzero(probability[~outside])
    assert n_outside[False] > 0
    assert n_outside[True] == 0
    written = (tmp_path / "True/volume-0_mask.nii.gz").stat().st_mtime_ns
    # A label that is read is an input: where it changes, the case is predicted again.
    assert predict_cases(Constant(0.3), [case], settings, folder, inference=asked) == {}
    assert (folder / "volume-0_mask.nii.gz").stat().st_mtime_ns == written
    os.utime(case.label, (1, 1))
    assert predict_cases(Constant(0.3), [case], settings, folder, inference=asked) == {}
    assert (folder / "volume-0_mask.nii.gz").stat().st_mtime_ns > written
    with pytest.raises(DataError, match="crop_labelled"):
        predict_cases(Constant(0.3), [case], settings, folder, inference=inference)


def test_lits_tumours_alone_are_trained_on_and_evaluated_in_the_liver_box(tmp_path: Path) -> None:
    data = (
        "data=lits",
        f"data.root={lits(tmp_path / 'LITS')}",
        f"data.cache_dir={tmp_path / 'cache'}",
    )
    asked = (
        "data.classes={tumour: [2]}",
        "data.importer.split=shirokikh2020",
        "evaluation.viewer=none",
    )
    refused = call("train", *data, *asked, *SMALL, f"output_dir={tmp_path / 'no'}").error
    assert "holds the label values 1 that no class names" in refused
    run = tmp_path / "run"
    outcome = call("train", *data, *asked, *SMALL, "data.crop_values=[1, 2]", f"output_dir={run}")
    assert outcome.status == 0, outcome.stderr
    metrics = json.loads((run / "evaluation/metrics.json").read_text())
    assert [case["case_id"] for case in metrics["cases"]] == ["volume-0", "volume-1"]
    tumour_mm3 = np.count_nonzero(ball((20, 16, 14), 2)) * 0.7 * 0.7 * 2.5
    assert metrics["cases"][0]["reference_volume_mm3"] == pytest.approx(tumour_mm3, rel=1e-5)
    assert json.loads((run / "predictions/predictions.json").read_text())["background_values"] == [
        1,
        2,
    ]
    again = ("evaluate", f"predictions={run / 'predictions'}", f"manifest={run / 'manifest.csv'}")
    assert call(*again, f"output_dir={tmp_path / 'again'}").status == 0
    masks = ("evaluation.pattern={case_id}_mask.nii.gz", "classes={tumour: [2]}")
    assert (
        "evaluation.background_values"
        in call(*again, *masks, f"output_dir={tmp_path / 'masks'}").error
    )
    named = (*masks, "evaluation.background_values=[1]")
    assert call(*again, *named, f"output_dir={tmp_path / 'masks'}").status == 0


def nnunet(root: Path, **changes: object) -> Path:
    listing = {
        "channel_names": {"0": "FLAIR", "1": "T1 post"},
        "labels": {"background": 0, "liver": [1, 2], "tumour": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    } | changes
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(listing))
    for part, name in (("Tr", "la_001"), ("Tr", "la_002"), ("Ts", "la_009")):
        for channel in (0, 1):
            save(root / f"images{part}" / f"{name}_{channel:04d}.nii.gz", brain())
        if part == "Tr":
            save(root / "labelsTr" / f"{name}.nii.gz", lesion(14))
    return root


def test_nnunet_channels_have_their_names_and_test_images_are_predicted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="tversky_seg"):
        cases = find_cases(
            Dataset(root=nnunet(tmp_path), importer=find_nnunet, modalities=("FLAIR", "T1_post"))
        )
    assert [(c.case_id, len(c.labels), c.split) for c in cases] == [
        ("la_001", 1, None),
        ("la_002", 1, None),
        ("la_009", 0, "test"),
    ]
    assert cases[0].images["T1_post"].name == "la_001_0001.nii.gz"
    assert "{liver: [1, 2], tumour: [2]}" in caplog.text


def test_nnunet_labelled_test_images_are_the_test_set(tmp_path: Path) -> None:
    save(nnunet(tmp_path) / "labelsTs" / "la_009.nii.gz", lesion(14))
    split = split_cases(find_nnunet(tmp_path))
    assert [case.case_id for case in split.test] == ["la_009"]


def test_nnunet_files_may_be_listed(tmp_path: Path) -> None:
    entry = {
        "images": ["imagesTr/la_002_0000.nii.gz", "imagesTr/la_002_0001.nii.gz"],
        "label": "labelsTr/la_002.nii.gz",
    }
    cases = find_nnunet(nnunet(tmp_path, dataset={"patient": entry}))
    assert [case.case_id for case in cases] == ["patient", "la_009"]
    assert all(file.is_file() for case in cases for file in (*case.images.values(), *case.labels))


def test_nnunet_version_1_is_read_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = nnunet(tmp_path / "Task07_Lesion")
    listing = {
        "modality": {"0": "FLAIR", "1": "T1 post"},
        "labels": {"0": "background", "1": "edema", "2": "core"},
        "training": [{"image": "./imagesTr/la_001.nii.gz", "label": "./labelsTr/la_001.nii.gz"}],
        "test": ["./imagesTs/la_009.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(listing))
    with caplog.at_level(logging.INFO, logger="tversky_seg"):
        cases = find_nnunet(root)
    assert [(c.case_id, len(c.labels), c.split) for c in cases] == [
        ("la_001", 1, None),
        ("la_002", 1, None),
        ("la_009", 0, "test"),
    ]
    assert cases[0].images["T1_post"].name == "la_001_0001.nii.gz"
    assert "{edema: [1], core: [2]}" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_ending": ".nrrd"}, r"file_ending.*\.nrrd"),
        ({"channel_names": "CT"}, "channel_names"),
    ],
)
def test_nnunet_refuses_what_it_cannot_read(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_nnunet(nnunet(tmp_path, **changes))


def test_nnunet_tells_the_value_to_ignore(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tversky_seg"):
        find_nnunet(nnunet(tmp_path, labels={"background": 0, "a": 1, "ignore": 2}))
    assert "data.classes='{a: [1]}' data.ignore=[2]" in caplog.text


def bids(root: Path) -> Path:
    for subject in ("01", "02", "03"):
        stem = f"sub-{subject}_ses-a"
        for suffix in ("FLAIR", "T1w", "ce-gad_T1w"):
            save(root / f"sub-{subject}/ses-a/anat/{stem}_{suffix}.nii.gz", brain())
        (root / f"sub-{subject}/ses-a/anat/{stem}_FLAIR.json").write_text("{}")
        if subject != "03":
            folder = root / f"derivatives/lesions/sub-{subject}/ses-a/anat"
            save(folder / f"{stem}_label-lesion_desc-rater1_mask.nii.gz", lesion(14))
            save(folder / f"{stem}_label-lesion_desc-consensus_mask.nii.gz", lesion(15))
            save(folder / f"{stem}_desc-brain_mask.nii.gz", ball((16, 16, 16), 13).astype(np.uint8))
    (root / "participants.tsv").write_text(
        "participant_id\tage\tsite\nsub-01\t30\tLjubljana\nsub-02\t40\tn/a\n"
    )
    return root


def test_bids_joins_raw_images_with_the_masks_among_the_derivatives(tmp_path: Path) -> None:
    one, two, three = find_bids(bids(tmp_path))
    assert (one.case_id, one.subject_id, one.session, one.site) == (
        "sub-01_ses-a",
        "sub-01",
        "a",
        "Ljubljana",
    )
    assert set(one.images) == {"FLAIR", "T1w", "T1wce"}
    assert one.consensus
    assert [label.name.split("_")[3] for label in one.labels] == ["desc-consensus", "desc-rater1"]
    assert one.brain_mask is not None
    assert (two.site, three.labels) == (None, ())
    assert preprocess(one, Preprocessing(("FLAIR", "T1w"))).n_lesions == (1,)


def test_bids_prefers_images_in_the_space_of_the_mask(tmp_path: Path) -> None:
    folder = bids(tmp_path) / "derivatives/other/sub-01/ses-a/anat"
    for name in ("FLAIR", "label-lesion_mask"):
        save(folder / f"sub-01_ses-a_space-MNI_{name}.nii.gz", lesion(14))
    with pytest.raises(DataError, match=r"lesions, other.*data\.importer\.derivative"):
        find_bids(tmp_path)
    case = find_bids(tmp_path, derivative="other")[0]
    assert {name: file.parent for name, file in case.images.items()} == {"FLAIR": folder}


@pytest.mark.parametrize(
    "mask",
    [
        "derivatives/manual/sub-01/anat/sub-01_label-lesion_mask",
        "derivatives/labels/sub-01/anat/sub-01_FLAIR_lesion-manual",  # ivadomed
        "derivatives/labels/sub-01/anat/sub-01_FLAIR_label-lesion_seg",  # Spinal Cord Toolbox
        "sub-01/anat/sub-01_label-lesion_roi",  # as fMRIPrep asks for
        "sub-01/anat/sub-01_FLAIR_roi",  # OpenNeuro
        "derivatives/sub-01/anat/sub-01_msk",  # ISLES 2022
    ],
)
def test_bids_masks_are_known_by_the_names_of_common_tools(tmp_path: Path, mask: str) -> None:
    save(tmp_path / "sub-01/anat/sub-01_FLAIR.nii.gz", brain())
    save(tmp_path / "sub-01/anat/sub-01_T1w.nii.gz", brain())
    save(tmp_path / f"{mask}.nii.gz", lesion(14))
    (case,) = find_bids(tmp_path)
    assert case.labels == (tmp_path / f"{mask}.nii.gz",)
    assert set(case.images) == {"FLAIR", "T1w"}


@pytest.mark.parametrize("find", [find_decathlon, find_nnunet])
@pytest.mark.parametrize(
    "odd", [{"training": [{"image": 3}]}, {"channel_names": {"a": 1}}, {"dataset": {"a": 1}}]
)
def test_a_listing_of_another_form_is_one_line_that_names_it(
    tmp_path: Path, find: Callable[[Path], list[Case]], odd: dict[str, object]
) -> None:
    listing = {"modality": {"0": "CT"}, "training": [], "channel_names": {"0": "CT"}}
    listing |= {"labels": {"lesion": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(listing | odd))
    with pytest.raises(DataError, match=str(tmp_path)):
        find(tmp_path)


def test_bids_images_outside_anat_are_said_to_be_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("ses-1/anat/sub-01_ses-1_FLAIR", "ses-1/dwi/sub-01_ses-1_adc", "func/sub-01_bold"):
        save(tmp_path / f"sub-01/{name}.nii.gz", brain())
    save(tmp_path / "derivatives/sub-01/ses-1/sub-01_ses-1_msk.nii.gz", lesion(14))
    for list_cases in (find_bids, lambda root: cases_in_bids(root, ["FLAIR"])):
        caplog.clear()
        (case,) = list_cases(tmp_path)
        assert list(case.images) == ["FLAIR"]
        (line,) = caplog.messages
        assert "only images in anat are read; passed over 1 in func, as sub-01/func/" in line
        assert "1 in dwi, as sub-01/ses-1/dwi/sub-01_ses-1_adc.nii.gz; a manifest CSV" in line


def test_bids_masks_of_a_derivative_come_before_those_of_the_raw_data(tmp_path: Path) -> None:
    folder = bids(tmp_path) / "sub-01/ses-a/anat"
    save(folder / "sub-01_ses-a_FLAIR_roi.nii.gz", lesion(10))
    assert [len(case.labels) for case in find_bids(tmp_path)] == [2, 2, 0]


def test_bids_other_masks_are_no_lesions(tmp_path: Path) -> None:
    others = ("desc-brain_mask", "label-GM_seg", "label-thalamus_roi", "FLAIR")
    for name in [f"sub-01_{other}" for other in others]:
        save(tmp_path / f"derivatives/sct/sub-01/anat/{name}.nii.gz", brain())
    with pytest.raises(DataError, match="derivatives/"):
        find_bids(tmp_path)


def luna16(root: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Two scans of 0.5 x 0.5 x 2 mm with equal pixels and outlines; the second patient lay turned.

    LUNA16 keeps the pixels of the DICOM image, which the readers outlined, and tells by
    TransformMatrix how they lie in space.
    """
    sitk = pytest.importorskip("SimpleITK", reason="the extra luna16 is not installed")
    shape = (40, 36, 20)
    left, right = ball((11, 18, 10), 7, shape), ball((28, 18, 10), 7, shape)
    lungs = np.where(left, 3, 0) + np.where(right, 4, 0)
    lungs[19:21, 17:19, 15:20] = 5
    ct = np.random.default_rng(1).integers(-900, 100, shape).astype(np.int16)
    expected = {}
    rows = ["seriesuid,coordX,coordY,coordZ,diameter_mm"]
    for uid, sign, subset in (("1.3.6.1", 1, 0), ("1.3.6.2", -1, 1)):
        files = {f"subset{subset}": ct, "seg-lungs-LUNA16": lungs.astype(np.uint8)}
        for folder, data in files.items():
            image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
            image.SetSpacing((0.5, 0.5, 2.0))
            image.SetDirection((sign, 0, 0, 0, sign, 0, 0, 0, 1))
            image.SetOrigin((-10.0 * sign, -9.0 * sign, -100.0))
            (root / folder).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, str(root / folder / f"{uid}.mhd"))
        centre = image.TransformIndexToPhysicalPoint((10, 18, 10))
        rows.append(",".join([uid, *map(str, centre), "5"]))
        (root / "tcia-lidc-xml/157").mkdir(parents=True, exist_ok=True)
        (root / f"tcia-lidc-xml/157/{uid}.xml").write_text(lidc_xml(uid))
        expected[uid] = np.zeros(shape, dtype=bool)
        # What the two readers have in common, outlines included.
        expected[uid][9:13, 16:21, 10] = True
    (root / "annotations.csv").write_text("\n".join(rows))
    return root, expected


def lidc_xml(uid: str) -> str:
    def reader(x: tuple[int, int], *, far: bool = False) -> str:
        corners = [(x[0], 16), (x[1], 16), (x[1], 20), (x[0], 20)]
        if far:
            corners = [(30, 2), (33, 2), (33, 4)]
        edges = "".join(
            f"<edgeMap><xCoord>{i}</xCoord><yCoord>{j}</yCoord></edgeMap>" for i, j in corners
        )
        roi = f"<roi><imageZposition>-80.0</imageZposition><inclusion>TRUE</inclusion>{edges}</roi>"
        nodule = f"<unblindedReadNodule><noduleID>1</noduleID>{roi}</unblindedReadNodule>"
        return f"<readingSession>{nodule}</readingSession>"

    sessions = (
        reader((7, 12)) + reader((9, 14)) + reader((0, 0), far=True) + reader((0, 0), far=True)
    )
    header = f"<ResponseHeader><SeriesInstanceUid>{uid}</SeriesInstanceUid></ResponseHeader>"
    return f'<?xml version="1.0"?><LidcReadMessage xmlns="http://www.nih.gov">{header}{sessions}</LidcReadMessage>'


def test_luna_scans_are_converted_once_with_the_masks_of_two_of_four_readers(
    tmp_path: Path,
) -> None:
    root, expected = luna16(tmp_path / "download")
    before = sorted(path for path in root.rglob("*"))
    cases = find_luna16(root, converted=str(tmp_path / "nifti"))
    assert [(c.case_id, c.fold, c.split) for c in cases] == [
        ("1.3.6.1", 0, None),
        ("1.3.6.2", 1, None),
    ]
    for case in cases:
        label = nib.load(case.labels[0])
        assert np.array_equal(np.asarray(label.dataobj) > 0, expected[case.case_id])
        assert label.affine[2, 3] == -100
    settings = Preprocessing(("CT",), normalization="window", limits=(-1000, 300))
    first, second = (preprocess(case, settings) for case in cases)
    assert first.target is not None
    assert second.target is not None
    turned = second.target[:, ::-1, ::-1]
    assert np.array_equal(first.target, turned), "the second patient lay turned"
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "nifti").rglob("*.nii.gz")}
    assert [
        c.split for c in find_luna16(root, converted=str(tmp_path / "nifti"), split="shirokikh2020")
    ] == ["train"] * 2
    assert times == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "nifti").rglob("*.nii.gz")
    }
    assert sorted(path for path in root.rglob("*")) == before, "the download stays as it was"


def test_luna_scans_that_cannot_be_converted_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, _ = luna16(tmp_path / "download")
    (root / "subset1/1.3.6.2.raw").unlink()
    with caplog.at_level(logging.WARNING, logger="tversky_seg"):
        assert len(find_luna16(root, converted=str(tmp_path / "nifti"))) == 1
    assert "1.3.6.2.mhd: cannot be read" in caplog.text
    (root / "tcia-lidc-xml/157/1.3.6.1.xml").unlink()
    (root / "tcia-lidc-xml/157/1.3.6.2.xml").unlink()
    with pytest.raises(DataError, match=r"XML.*LIDC"):
        find_luna16(root, converted=str(tmp_path / "other"))


def test_lung_mask_drops_the_trachea_and_closes_like_scipy() -> None:
    from scipy import ndimage

    labels = np.where(ball((11, 18, 16), 7, (40, 36, 30)), 3, 0) + np.where(
        ball((28, 18, 16), 6, (40, 36, 30)), 4, 0
    )
    labels[19:21, 5, 5] = 5
    kept = np.pad(np.isin(labels, (3, 4)), 14)
    closed = ndimage.binary_dilation(ndimage.binary_closing(kept, iterations=10), iterations=3)
    assert np.array_equal(lung_mask(labels), closed[14:-14, 14:-14, 14:-14])


def test_an_excluded_outline_is_cut_out_of_a_nodule() -> None:
    def square(low: int, high: int) -> np.ndarray:
        return np.array([(low, low), (high, low), (high, high), (low, high)])

    nodule = [Contour(3, False, square(4, 6)), Contour(3, True, square(2, 8))]
    mask = nodule_mask([[nodule], [nodule]], np.array([[5.0, 5, 3]]), (12, 12, 6))
    assert mask.sum() == 7 * 7 - 3 * 3
    assert not nodule_mask([[nodule], [nodule]], np.zeros((0, 3)), (12, 12, 6)).any()
    assert not nodule_mask([[nodule]], np.array([[5.0, 5, 3]]), (12, 12, 6)).any()


def msseg2016(root: Path, *, ending: str = ".nii.gz") -> Path:
    for part, centre in (("Training", "01"), ("Training", "07"), ("Testing", "03")):
        patient = root / part / f"Center_{centre}" / "Patient_01"
        for modality in ("FLAIR", "T1", "T2", "DP", "GADO"):
            save(patient / f"Preprocessed_Data/{modality}_preprocessed{ending}", brain())
        save(patient / f"Masks/Brain_Mask{ending}", ball((16, 16, 16), 13).astype(np.uint8))
        save(patient / f"Masks/Consensus{ending}", lesion(16, 2))
        for rater in range(1, 8):
            save(patient / f"Masks/ManualSegmentation_{rater}{ending}", lesion(10 + rater))
    return root


def test_msseg_raters_are_numbered_as_their_files(tmp_path: Path) -> None:
    case = find_msseg2016(msseg2016(tmp_path))[-1]
    assert case.consensus
    assert [file.name for file in case.raters] == [
        f"ManualSegmentation_{rater}.nii.gz" for rater in range(1, 8)
    ]
    masks = {
        rater: preprocess(case, Preprocessing(("FLAIR",), rater=rater))
        for rater in ("consensus", 7, "majority")
    }
    found = {rater: len(prepared.lesion_voxels) for rater, prepared in masks.items()}
    votes = sum(lesion(10 + rater).astype(int) for rater in range(1, 8))
    assert found == {
        "consensus": lesion(16, 2).sum(),
        7: lesion(17).sum(),
        "majority": (votes >= 4).sum(),
    }


def half_voxel_brain_masks(root: Path, part: str) -> Path:
    shifted = LAS.copy()
    shifted[:3, 3] = LAS[:3, :3] @ (0.5, 0.5, 0.5)
    for patient in ("patient01", "patient02"):
        folder = root / "cross_sectional" / part / patient
        for name in ("FLAIR", "T1W", "T2W"):
            save(folder / f"{name}.nii.gz", brain())
        save(folder / "consensus_gt.nii.gz", lesion(14))
        save(folder / "brainmask.nii.gz", ball((16, 16, 16), 13).astype(np.uint8), shifted)
    return root


@pytest.mark.parametrize("part", ["coregistered", "coregistered_resampled"])
def test_lesjak_half_voxel_brain_masks_are_one_warning(
    tmp_path: Path, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    from tversky_seg.data.preprocessing.parallel import prepare_all

    cases = find_lesjak2017(half_voxel_brain_masks(tmp_path, part), part=part)
    with caplog.at_level(logging.WARNING, logger="tversky_seg"):
        prepared = prepare_all(
            cases, Preprocessing(("FLAIR", "T1")), cache_dir=tmp_path / "cache", n_workers=1
        )
    assert [len(case.foreground_voxels) for case in prepared] == [ball((16, 16, 16), 13).sum()] * 2
    (message,) = [record.getMessage() for record in caplog.records]
    assert "half a voxel off" in message
    assert "2 of 2 cases" in message


def test_a_manifest_is_written_that_lists_what_the_importer_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, manifest = msseg2016(tmp_path / "MSSEG"), tmp_path / "m.csv"
    main(["msseg2016", str(root), str(manifest), "--modalities", "FLAIR,T1"])
    printed = capsys.readouterr().out
    assert "3 cases" in printed
    assert "FLAIR, T1" in printed
    with manifest.open() as file:
        header = next(csv.reader(file))
    assert header[:5] == ["case_id", "subject_id", "FLAIR", "T1", "label"]
    assert header[-4:] == ["consensus", "brain_mask", "site", "split"]
    dataset = Dataset(root=root, importer=find_msseg2016, modalities=("FLAIR", "T1"))
    assert read_manifest(manifest) == find_cases(dataset)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["msseg2016", "nowhere", "m.csv"], "nowhere"),
        (["msseg2016", "nowhere"], "OUT.csv"),
        (["msseg2016", "a", "b", "--part", "MNI"], "--part"),
        (["lesjak2017", "a", "b", "--part", "mni"], "mni"),
        (["msseg2017", "a", "b"], "msseg2017"),
    ],
)
def test_a_fault_of_an_import_is_one_line_and_status_2(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    printed = capsys.readouterr().err
    assert (stop.value.code, printed.count("\n")) == (2, 1)
    assert printed.startswith("error: ")
    assert named in printed


def test_each_data_set_has_its_configuration_and_a_line_of_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configs = {file.stem for file in (ROOT / "configs/data").glob("[!_]*.yaml")}
    assert set(IMPORTERS) == configs - {"manifest", "phantom"}
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for name in IMPORTERS:
        assert sum(line.split()[:1] == [name] for line in lines) == 1


@pytest.mark.parametrize("name", IMPORTERS)
def test_options_of_the_command_are_those_of_the_importer(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    importer = IMPORTERS[name]
    parameters = inspect.signature(importer.find).parameters
    assert {option.name for option in importer.options} == set(parameters) - {"root"}
    with pytest.raises(SystemExit):
        main([name, "--help"])
    printed = capsys.readouterr().out
    assert "Args:" not in printed
    assert "Raises:" not in printed


def test_the_script_runs(tmp_path: Path) -> None:
    root, manifest = isbi2015(tmp_path / "ISBI"), tmp_path / "m.csv"
    command = [sys.executable, "scripts/import_dataset.py", "isbi2015", str(root), str(manifest)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert [case.session for case in read_manifest(manifest)] == ["01", "02", "01", "01"]


def test_real_decathlon_and_lesjak_become_manifests(real_data: Path, tmp_path: Path) -> None:
    main(["decathlon", str(real_data / "Task04_Hippocampus"), str(tmp_path / "d.csv")])
    main(["lesjak2017", str(real_data / "open_ms_data"), str(tmp_path / "l.csv"), "--part", "MNI"])
    assert len(read_manifest(tmp_path / "d.csv")) == 130
    assert len(read_manifest(tmp_path / "l.csv", modalities=("FLAIR", "T1", "T2", "T1POST"))) == 2
