"""Importers of public data sets on miniatures with the official names, and on real files."""

import logging
from pathlib import Path

import hydra
import nibabel as nib
import numpy as np
import pytest

from helpers.cohorts import save
from helpers.command_line import composed
from tversky_seg.data.dataset import find_cases
from tversky_seg.data.datasets.mslesseg import find_mslesseg
from tversky_seg.data.datasets.simvent_ms import find_simvent_ms
from tversky_seg.data.errors import DataError
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocess
from tversky_seg.data.split import split_cases

SHAPE = (12, 14, 8)
LAS = np.diag([-1.0, 1, 1, 1])
LESION = (slice(4, 6), slice(5, 8), slice(3, 5))


def image(seed: int = 0, *, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A noisy box, 0 outside."""
    voxels = np.zeros(shape, np.float32)
    voxels[1:-1, 1:-1, 1:-1] = np.random.default_rng(seed).normal(100, 10, [n - 2 for n in shape])
    return voxels


def mask(value: float = 1, *, dtype: type = np.uint8) -> np.ndarray:
    """A lesion of 12 voxels."""
    voxels = np.zeros(SHAPE, dtype)
    voxels[LESION] = value
    return voxels


def save_scaled(path: Path, stored: np.ndarray, slope: float) -> None:
    """Write integers with a slope in the header, as a scanner's software does."""
    file = nib.Nifti1Image(stored, LAS)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.header.set_slope_inter(slope, 0)
    nib.save(file, path)


def mslesseg(root: Path, *, has_test: bool = True) -> Path:
    """P2 with two examinations, P10 with one, P54 in the test set, and a raw scan."""
    scans = ["train/P2/T1/P2_T1", "train/P2/T2/P2_T2", "train/P10/T1/P10_T1"]
    if has_test:
        scans.append("test/P54/P54")
    for stem in scans:
        for name in ("FLAIR", "T1", "T2"):
            save(root / f"{stem}_{name}.nii.gz", image(), LAS)
        save(root / f"{stem}_MASK.nii.gz", mask(dtype=np.float32), LAS)
    return root


def test_mslesseg_examinations_are_sessions_of_one_subject(tmp_path: Path) -> None:
    cases = find_mslesseg(mslesseg(tmp_path / "MSLesSeg Dataset"))
    assert [(case.case_id, case.subject_id, case.session, case.split) for case in cases] == [
        ("P2_T1", "P2", "T1", "train"),
        ("P2_T2", "P2", "T2", "train"),
        ("P10_T1", "P10", "T1", "train"),
        ("P54", "P54", None, "test"),
    ]
    assert [len(case.labels) for case in cases] == [1] * 4
    split = split_cases(cases)
    assert [case.case_id for case in split.test] == ["P54"]


def test_mslesseg_t2_is_the_modality_and_not_the_second_examination(tmp_path: Path) -> None:
    root = mslesseg(tmp_path)
    (root / "train/P2/T2/P2_T2_T2.nii.gz").unlink()
    by_name = {case.case_id: case for case in find_mslesseg(root)}
    assert list(by_name["P2_T1"].images) == ["FLAIR", "T1", "T2"]
    assert {name: file.name for name, file in by_name["P2_T2"].images.items()} == {
        "FLAIR": "P2_T2_FLAIR.nii.gz",
        "T1": "P2_T2_T1.nii.gz",
    }


@pytest.mark.parametrize("below", ["", "MSLesSeg Dataset", "MSLesSeg Dataset/train"])
def test_mslesseg_is_found_from_above_and_from_one_part(tmp_path: Path, below: str) -> None:
    mslesseg(tmp_path / "MSLesSeg Dataset", has_test=False)
    cases = find_mslesseg(tmp_path / below)
    assert [(case.case_id, case.split) for case in cases] == [
        ("P2_T1", None),
        ("P2_T2", None),
        ("P10_T1", None),
    ]


def test_what_is_left_out_is_one_line_for_each_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = mslesseg(tmp_path)
    for name in ("T1/P2_T1_FLAIR", "T2/P2_T2_FLAIR"):
        save(root / f"MSLesSeg_RAW/P2/{name}.nii.gz", image(), LAS)
    save(root / "train/P2/T1/P2_T1_FLAIR_copy.nii.gz", image(), LAS)
    save(root / "train/P2/T1/._P2_T1_FLAIR.nii.gz", image(), LAS)
    with caplog.at_level(logging.INFO, logger="tversky_seg"):
        find_mslesseg(root)
    (raw, unknown) = caplog.records
    assert "left out 2 images, as MSLesSeg_RAW/P2/T1/P2_T1_FLAIR.nii.gz: raw" in raw.getMessage()
    assert (raw.levelname, unknown.levelname) == ("INFO", "WARNING")
    assert "P2_T1_FLAIR_copy.nii.gz: a name that" in unknown.getMessage()


def test_an_archive_that_is_not_unpacked_is_named(tmp_path: Path) -> None:
    (tmp_path / "MSLesSeg Dataset.zip").touch()
    with pytest.raises(DataError, match=r"holds MSLesSeg Dataset\.zip; unpack it, to train/P1/"):
        find_mslesseg(tmp_path)


def test_mslesseg_real_scans_keep_three_examinations_of_a_patient_together(
    real_data: Path,
) -> None:
    cases = find_mslesseg(real_data / "mslesseg")
    assert [(case.case_id, len(case.images)) for case in cases] == [
        ("P14_T1", 2),
        ("P14_T2", 3),
        ("P14_T3", 3),
        ("P39_T1", 2),
    ]
    splits = [split_cases(cases, folds=2, fold=fold) for fold in (0, 1)]
    assert sorted(len(split.test) for split in splits) == [1, 3]


def simvent_ms(root: Path) -> Path:
    """Two subjects: T1 stored flipped in y, an affine that says so, label values under a slope."""
    flipped = LAS @ np.array([[1, 0, 0, 0], [0, -1, 0, SHAPE[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    for seed, name in enumerate(("104252", "105074")):
        folder = root / f"src/comparison/final_data_for_models/subjects/subj_{name}"
        flair = image(seed)
        save_scaled(folder / f"{name}_FLAIR.nii.gz", (flair * 200).astype(np.int16), 1 / 32767)
        save(folder / f"{name}_FLAIR_brain.nii.gz", flair, LAS)
        save(folder / f"{name}_T1_to_FLAIR.nii.gz", (flair * 3)[:, ::-1], flipped)
        save(folder / f"{name}_FLAIR_brain_mask.nii.gz", (flair > 0).astype(np.int16), LAS)
        rims, ventricles = np.roll(mask(), 3, axis=0), np.roll(mask(), -3, axis=1)
        save(folder / f"{name}_abWMHmask.nii.gz", mask(), LAS)
        save(folder / f"{name}_nWMHmask.nii.gz", rims.astype(np.int16), LAS)
        save(folder / f"{name}_WMHmask.nii.gz", mask() | rims, LAS)
        save(folder / f"{name}_VENTmask.nii.gz", ventricles, LAS)
        stored = 255 * mask() + 191 * rims + 64 * ventricles
        save_scaled(folder / f"{name}_manual_4labels.nii.gz", stored.astype(np.uint8), 257)
        save(root / f"src/comparison/WMH/LPA/{name}_lpa_wmh.nii.gz", mask(), LAS)
    return root


def test_simvent_t1_is_turned_to_flair_by_its_affine(tmp_path: Path) -> None:
    cases = find_simvent_ms(simvent_ms(tmp_path))
    assert [case.case_id for case in cases] == ["104252", "105074"]
    prepared = preprocess(cases[0], Preprocessing(("FLAIR", "T1"), normalization="zscore"))
    flair, t1 = (prepared.image * prepared.image_scale[:, None, None, None]).astype(float)
    # T1 is three times FLAIR, hence equal once normalised.
    assert t1 == pytest.approx(flair, abs=0.02)
    assert prepared.n_lesions == (1,)
    assert len(prepared.lesion_voxels) == mask().sum()


def test_simvent_four_labels_are_classes_under_their_slope(tmp_path: Path) -> None:
    classes = {"ventricle": (16448,), "normal_rim": (49087,), "lesion": (65535,)}
    case = find_simvent_ms(simvent_ms(tmp_path), label="manual_4labels")[1]
    prepared = preprocess(case, Preprocessing(("FLAIR",), classes))
    assert prepared.target is not None
    assert prepared.target.sum(axis=(1, 2, 3)).tolist() == [12, 12, 12]
    with pytest.raises(DataError, match=r"data\.importer\.label: 'WMH'; expected one of abWMHmask"):
        find_simvent_ms(tmp_path, label="WMH")


def test_simvent_says_why_each_other_mask_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="tversky_seg"):
        find_simvent_ms(simvent_ms(tmp_path))
    lines = "\n".join(caplog.messages)
    for name in ("nWMHmask", "VENTmask", "_WMHmask", "manual_4labels", "FLAIR_brain", "lpa_wmh"):
        assert f"{name}.nii.gz: " in lines
    assert len(caplog.messages) == 6


def test_simvent_real_subjects_have_the_published_lesion_loads(real_data: Path) -> None:
    cases = find_simvent_ms(real_data / "simvent_ms")
    assert [case.case_id for case in cases] == ["104252", "105074", "105465"]
    prepared = preprocess(cases[1], Preprocessing(("FLAIR", "T1")))
    assert prepared.n_lesions == (34,)


@pytest.mark.parametrize("name", ["mslesseg", "simvent_ms"])
def test_an_empty_folder_is_one_line_that_names_a_file_of_the_data_set(
    name: str, tmp_path: Path
) -> None:
    cfg = composed(f"data={name}", f"data.root={tmp_path}")
    dataset = hydra.utils.instantiate(cfg.data, _convert_="all")
    with pytest.raises(DataError, match=rf"{tmp_path}: does not look like .*; expected .*\.nii"):
        find_cases(dataset)
