import json
import logging
from collections.abc import Callable
from pathlib import Path

import hydra
import nibabel as nib
import numpy as np
import pytest

from helpers.cohorts import save, scan
from helpers.command_line import SMALL, call, composed
from tversky_seg.data.dataset import Dataset, find_cases
from tversky_seg.data.datasets.decathlon import find_decathlon
from tversky_seg.data.datasets.lesjak2017 import find_lesjak2017
from tversky_seg.data.datasets.msseg2016 import find_msseg2016
from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import to_input_grid
from tversky_seg.data.manifest import read_manifest, write_manifest
from tversky_seg.data.nifti import read_volume
from tversky_seg.data.preprocessing.case_cache import prepare
from tversky_seg.data.preprocessing.pipeline import Preprocessing
from tversky_seg.data.split import split_cases


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names_of(files: dict[str, Path]) -> dict[str, str]:
    return {modality: file.name for modality, file in files.items()}


def public_patient(
    part: str, centre: str, *, ending: str = ".nii.gz", masks: bool = True
) -> list[str]:
    folder = f"{part}/{centre}/Patient_01"
    files = [
        f"Preprocessed_Data/{m}_preprocessed{ending}" for m in ("FLAIR", "T1", "T2", "DP", "GADO")
    ]
    files += [f"Raw_Data/{m}{ending}" for m in ("FLAIR", "T1", "T2", "DP", "GADO")]
    if masks:
        files += [f"Masks/{name}{ending}" for name in ("Consensus", "Brain_Mask")]
        files += [f"Masks/ManualSegmentation_{rater}{ending}" for rater in range(1, 8)]
    return [f"{folder}/{name}" for name in files]


def test_msseg_public_release_keeps_official_split_site_and_raters(tmp_path: Path) -> None:
    touch(
        tmp_path, *public_patient("Training", "Center_01"), *public_patient("Testing", "Center_03")
    )
    test, train = find_msseg2016(tmp_path)
    assert (train.split, train.site, test.split, test.site) == ("train", "01", "test", "03")
    assert train.case_id == "Training_Center_01_Patient_01"
    assert list(train.images) == ["FLAIR", "T1", "T2", "DP", "GADO"]
    assert train.images["DP"].parent.name == "Preprocessed_Data"
    assert [f.name for f in train.labels] == ["Consensus.nii.gz"] + [
        f"ManualSegmentation_{r}.nii.gz" for r in range(1, 8)
    ]
    assert train.brain_mask is not None
    assert train.brain_mask.name == "Brain_Mask.nii.gz"


def test_msseg_patients_of_equal_number_in_training_and_testing_are_two_subjects(
    tmp_path: Path,
) -> None:
    touch(
        tmp_path, *public_patient("Training", "Center_01"), *public_patient("Testing", "Center_01")
    )
    assert len({case.subject_id for case in find_msseg2016(tmp_path)}) == 2


def test_msseg_without_testing_folder_leaves_the_split_to_folds(tmp_path: Path) -> None:
    touch(tmp_path, *public_patient("Training", "Center_01"))
    assert [case.split for case in find_msseg2016(tmp_path)] == [None]


def test_msseg_takes_raw_images_where_none_are_prepared_and_pd_for_dp(tmp_path: Path) -> None:
    patient = tmp_path / "Training/Center_07/Patient_02"
    touch(patient, "Raw_Data/FLAIR.nii", "Raw_Data/PD.nii", "Masks/Consensus.nii")
    (case,) = find_msseg2016(tmp_path)
    assert names_of(case.images) == {"FLAIR": "FLAIR.nii", "DP": "PD.nii"}
    assert [file.name for file in case.labels] == ["Consensus.nii"]


def test_msseg_unlabelled_test_subject_is_kept_to_be_predicted(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *public_patient("Training", "Center_01"),
        *public_patient("Testing", "Center_03", masks=False),
    )
    cases = find_cases(Dataset(root=tmp_path, importer=find_msseg2016, modalities=("FLAIR", "T1")))
    assert {case.split: len(case.labels) for case in cases} == {"train": 8, "test": 0}


def test_msseg_challenge_release_joins_images_with_segmentations(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "Pre-processed/01016SACH/FLAIR_preprocessed.nii.gz",
        "Pre-processed/01016SACH/DP_preprocessed.nii.gz",
        "Pre-processed/01016SACH/Mask_registered.nii.gz",
        "ManualSegmentation/01016SACH/ManualSegmentation_2.nii.gz",
        "ManualSegmentation/01016SACH/Consensus.nii.gz",
        "Raw/01016SACH/3DFLAIR.nii.gz",
    )
    (case,) = find_msseg2016(tmp_path)
    assert (case.case_id, case.site, case.split) == ("01016SACH", "01", None)
    assert names_of(case.images) == {
        "FLAIR": "FLAIR_preprocessed.nii.gz",
        "DP": "DP_preprocessed.nii.gz",
    }
    assert [file.name for file in case.labels] == [
        "Consensus.nii.gz",
        "ManualSegmentation_2.nii.gz",
    ]
    assert case.brain_mask is not None


@pytest.mark.parametrize("folder", ["", "Unprocessed training dataset"])
def test_msseg_challenge_release_with_raw_images_alone(tmp_path: Path, folder: str) -> None:
    names = (
        "3DFLAIR.nii.gz",
        "3DT1.nii.gz",
        "3DT1GADO.nii.gz",
        "T2.nii.gz",
        "DP.nii.gz",
        "Consensus.nii.gz",
    )
    touch(tmp_path / folder / "07001MOEL", *names)
    (case,) = find_msseg2016(tmp_path)
    assert list(case.images) == ["FLAIR", "T1", "T2", "DP", "GADO"]
    assert case.images["T1"].name == "3DT1.nii.gz"
    assert [file.name for file in case.labels] == ["Consensus.nii.gz"]


RAW_ARCHIVE = "Unprocessed training dataset"
PREPARED_ARCHIVE = "Pre-processed training dataset"


@pytest.mark.parametrize("root", ["", RAW_ARCHIVE, PREPARED_ARCHIVE])
def test_msseg_archives_of_the_challenge_are_read_side_by_side(tmp_path: Path, root: str) -> None:
    patient = "TrainingDataset_MSSEG/01016SACH"
    raw = ("3DFLAIR", "3DT1", "T2", "DP", "3DT1GADO", "Consensus", "ManualSegmentation_1")
    touch(tmp_path / RAW_ARCHIVE / patient, *(f"{name}.nii.gz" for name in raw))
    prepared = [f"{name}_preprocessed.nii.gz" for name in ("FLAIR", "T1", "T2", "DP", "GADO")]
    touch(tmp_path / PREPARED_ARCHIVE / patient, *prepared)
    (case,) = find_msseg2016(tmp_path / root)
    assert (case.case_id, case.site, case.consensus) == ("01016SACH", "01", True)
    assert [file.name for file in case.labels] == [
        "Consensus.nii.gz",
        "ManualSegmentation_1.nii.gz",
    ]
    assert list(case.images) == ["FLAIR", "T1", "T2", "DP", "GADO"]
    is_prepared = "preprocessed" in case.images["T1"].name
    assert is_prepared == (root != RAW_ARCHIVE)


def test_lesjak_parts_have_their_own_names(tmp_path: Path) -> None:
    base = tmp_path / "cross_sectional"
    suffix = "_N4_noneck_reduced_winsor_regtoFLAIR_regtoMNI.nii.gz"
    touch(
        base / "MNI/patient01",
        *(f"{n}{suffix}" for n in ("FLAIR", "T1", "T2", "T1POST", "GOLD_STANDARD")),
    )
    touch(
        base / "coregistered/patient01",
        *("FLAIR.nii.gz", "T1W.nii.gz", "T2W.nii.gz", "T1WKS.nii.gz", "T1W_to_FLAIR.txt"),
        *("patient01_brainmask.nii.gz", "consensus_gt.nii.gz"),
    )
    (mni,) = find_lesjak2017(tmp_path)
    (native,) = find_lesjak2017(base, part="coregistered")
    assert [mni.images[m].name.split("_")[0] for m in mni.images] == ["FLAIR", "T1", "T2", "T1POST"]
    assert (mni.brain_mask, len(mni.labels)) == (None, 1)
    assert names_of(native.images) == {
        "FLAIR": "FLAIR.nii.gz",
        "T1": "T1W.nii.gz",
        "T2": "T2W.nii.gz",
        "T1POST": "T1WKS.nii.gz",
    }
    assert native.brain_mask == base / "coregistered/patient01/patient01_brainmask.nii.gz"


def test_lesjak_real_data_names_the_mask_only_patients_once(
    real_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = Dataset(
        root=real_data / "open_ms_data",
        importer=find_lesjak2017,
        modalities=("FLAIR", "T1", "T2"),
        folds=2,
    )
    with caplog.at_level(logging.WARNING, logger="tversky_seg"):
        cases = find_cases(dataset)
    assert {case.case_id for case in cases} == {"patient07", "patient19"}
    assert all(file.is_file() for case in cases for file in (*case.images.values(), *case.labels))
    (message,) = [record.getMessage() for record in caplog.records]
    assert "27 of 29" in message
    assert "patient30" in message
    first, second = (split_cases(cases, folds=2, fold=fold) for fold in (0, 1))
    assert first.train == second.test
    assert first.test == second.train
    assert len(first.test) == 1


def decathlon(root: Path, *, modality: dict[str, str] | None = None) -> None:
    listing = {
        "modality": modality or {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "cancer"},
        "training": [
            {"image": f"./imagesTr/liver_{i}.nii.gz", "label": f"./labelsTr/liver_{i}.nii.gz"}
            for i in (0, 10)
        ],
        "test": ["./imagesTs/liver_132.nii.gz"],
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(listing))


def test_decathlon_takes_the_modality_name_and_leaves_the_test_images_unlabelled(
    tmp_path: Path,
) -> None:
    decathlon(tmp_path)
    touch(
        tmp_path,
        *(f"{folder}/liver_{i}.nii.gz" for folder in ("imagesTr", "labelsTr") for i in (0, 10)),
    )
    touch(tmp_path, "imagesTs/liver_132.nii.gz")
    cases = find_cases(Dataset(root=tmp_path, importer=find_decathlon, folds=2))
    assert [case.case_id for case in cases] == ["liver_0", "liver_10", "liver_132"]
    assert [list(case.images) for case in cases] == [["CT"]] * 3
    split = split_cases(cases, folds=2)
    assert len(split.train) == 1
    assert {case.case_id for case in split.test} >= {"liver_132"}


def test_decathlon_names_listed_cases_without_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    decathlon(tmp_path)
    touch(
        tmp_path, "imagesTr/liver_0.nii.gz", "labelsTr/liver_0.nii.gz", "imagesTr/liver_10.nii.gz"
    )
    with caplog.at_level(logging.WARNING, logger="tversky_seg"):
        assert [case.case_id for case in find_decathlon(tmp_path)] == ["liver_0"]
    assert "2 of 3" in caplog.text
    assert "liver_10" in caplog.text


def test_decathlon_real_task_is_found_whole(real_data: Path) -> None:
    cases = find_decathlon(real_data / "Task04_Hippocampus")
    assert len(cases) == 130
    assert {tuple(case.images) for case in cases} == {("MRI",)}
    assert all(case.label is not None and case.label.is_file() for case in cases)


def save_task(root: Path) -> Path:
    """A task with two modalities in each file, T1w the negative of FLAIR; one test image."""
    decathlon(root, modality={"0": "FLAIR", "1": "T1w"})
    affine = np.array([[-1.5, 0, 0, 20], [0, 0, 2.0, -5], [0, -2, 0.1, 7], [0, 0, 0, 1]])
    for seed, name in enumerate(("Tr/liver_0", "Tr/liver_10", "Ts/liver_132")):
        image, label = scan(seed, shape=(18, 16, 20))
        image = image.astype(np.int16)
        save(
            root / f"images{name}.nii.gz",
            np.stack([image, (200 - image) * (image > 0)], axis=-1),
            affine,
        )
        if name.startswith("Tr"):
            save(root / f"labels{name}.nii.gz", label, affine)
    return root


def test_decathlon_modalities_are_the_frames_of_a_file(tmp_path: Path) -> None:
    cases = find_decathlon(save_task(tmp_path / "Task"))
    assert [(case.case_id, list(case.images), len(case.labels)) for case in cases] == [
        ("liver_0", ["FLAIR", "T1w"], 1),
        ("liver_10", ["FLAIR", "T1w"], 1),
        ("liver_132", ["FLAIR", "T1w"], 0),
    ]
    settings, cache = Preprocessing(("FLAIR", "T1w"), normalization="none"), tmp_path / "cache"
    prepared = prepare(cases[0], settings, cache_dir=cache)
    stored = nib.load(tmp_path / "Task/imagesTr/liver_0.nii.gz")
    flair, t1w = (
        to_input_grid(channel * scale, prepared.geometry)
        for channel, scale in zip(prepared.image, prepared.image_scale, strict=True)
    )
    assert flair == pytest.approx(stored.dataobj[..., 0], abs=0.01)
    assert t1w == pytest.approx(stored.dataobj[..., 1], abs=0.01)
    assert np.array_equal(prepared.geometry.input_affine, stored.affine)
    turned = prepare(
        cases[0], Preprocessing(("T1w", "FLAIR"), normalization="none"), cache_dir=cache
    )
    assert np.array_equal(turned.image[0], prepared.image[1])
    assert len(list(cache.iterdir())) == 2
    prepare(cases[0], settings, cache_dir=cache)
    assert len(list(cache.iterdir())) == 2


def test_decathlon_frames_are_trained_on_and_predicted_from_a_manifest_and_by_name(
    tmp_path: Path,
) -> None:
    root, run = save_task(tmp_path / "Task"), tmp_path / "run"
    data = (
        "data=decathlon",
        f"data.root={root}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.folds=2",
    )
    outcome = call(
        "train",
        *data,
        *SMALL,
        f"output_dir={run}",
        "evaluation.viewer=none",
        "data.spacing_mm=native",
    )
    assert outcome.status == 0, outcome.stderr
    manifest = tmp_path / "task.csv"
    write_manifest(find_decathlon(root), manifest)
    assert read_manifest(manifest)[2].images["T1w"].name == "liver_132.nii.gz@1"
    by_name = (
        f"{{FLAIR: {root}/imagesTs/liver_132.nii.gz@0, T1w: {root}/imagesTs/liver_132.nii.gz@1}}"
    )
    for name, given in (("manifest", manifest), ("by_name", by_name)):
        outcome = call(
            "predict", f"checkpoint={run}", f"input={given}", f"output_dir={tmp_path / name}"
        )
        assert outcome.status == 0, outcome.stderr
    image = nib.load(root / "imagesTs/liver_132.nii.gz")
    masks = [
        nib.load(tmp_path / name / "liver_132_mask.nii.gz") for name in ("manifest", "by_name")
    ]
    assert masks[0].shape == image.shape[:3]
    assert masks[0].affine == pytest.approx(image.affine, abs=1e-5)
    assert np.array_equal(masks[0].dataobj, masks[1].dataobj)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "image.nii.gz",
            "4 x 5 x 6 x 2; expected one 3D volume, or the frame named, as image.nii.gz@0",
        ),
        (
            "image.nii.gz@2",
            "image.nii.gz@2: has shape 4 x 5 x 6 x 2, no frame 2; expected one from 0 to 1",
        ),
    ],
)
def test_a_frame_that_is_not_there_or_not_named_is_one_clear_line(
    tmp_path: Path, name: str, message: str
) -> None:
    save(tmp_path / "image.nii.gz", np.zeros((4, 5, 6, 2), np.int16))
    with pytest.raises(DataError, match=message):
        read_volume(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [("<html>", "JSON"), ("{}", "modality"), ("[]", "JSON")],
)
def test_decathlon_refuses_another_json(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=message):
        find_decathlon(tmp_path)


@pytest.mark.parametrize(
    ("importer", "expected"),
    [
        (find_msseg2016, "Training/Center_01"),
        (find_lesjak2017, "cross_sectional/MNI/patient01"),
        (find_decathlon, r"dataset\.json"),
    ],
)
def test_a_folder_of_something_else_is_refused_by_what_was_expected(
    tmp_path: Path, importer: Callable[[Path], object], expected: str
) -> None:
    touch(
        tmp_path,
        "holiday/beach.jpg",
        "Training/notes.txt",
        "Training/Center_01/Patient_01/Masks/Consensus.nii.gz",
    )
    with pytest.raises(DataError, match=expected):
        importer(tmp_path)


def test_lesjak_refuses_an_unknown_part(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.importer\.part.*'mni'.*MNI, coregistered"):
        find_lesjak2017(tmp_path, part="mni")


@pytest.mark.parametrize(
    "name", ["msseg2016", "isbi2015", "lesjak2017", "lits", "luna16", "decathlon", "nnunet", "bids"]
)
def test_configuration_file_builds_the_dataset(name: str, tmp_path: Path) -> None:
    cfg = composed(f"data={name}", f"data.root={tmp_path}")
    dataset = hydra.utils.instantiate(cfg.data, _convert_="all")
    assert isinstance(dataset, Dataset)
    with pytest.raises(DataError, match="expected"):
        find_cases(dataset)
