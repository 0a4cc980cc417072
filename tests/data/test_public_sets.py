"""Importers of public data sets on miniatures with the official names, and on real files."""

import logging
from collections.abc import Callable
from pathlib import Path

import hydra
import nibabel as nib
import numpy as np
import pytest

from helpers.cohorts import save
from helpers.command_line import composed
from tversky_seg.data.dataset import find_cases
from tversky_seg.data.datasets.brats_mets import find_brats_mets
from tversky_seg.data.datasets.followup import find_followup
from tversky_seg.data.datasets.import_command import IMPORTERS, main
from tversky_seg.data.datasets.isbi2015 import find_isbi2015
from tversky_seg.data.datasets.isles2022 import find_isles2022
from tversky_seg.data.datasets.lesjak2016 import find_lesjak2016
from tversky_seg.data.datasets.mslesseg import find_mslesseg
from tversky_seg.data.datasets.msseg2 import find_msseg2
from tversky_seg.data.datasets.recognition import data_sets_of
from tversky_seg.data.datasets.shifts_ms import find_shifts_ms
from tversky_seg.data.datasets.simvent_ms import find_simvent_ms
from tversky_seg.data.datasets.wmh2017 import find_wmh2017
from tversky_seg.data.discovery.make import make_manifest
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import read_manifest
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocess
from tversky_seg.data.split import split_cases

NAMES = (
    "brats_mets",
    "followup",
    "isles2022",
    "lesjak2016",
    "mslesseg",
    "msseg2",
    "shifts_ms",
    "simvent_ms",
    "wmh2017",
)
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
    assert [case.baseline for case in cases] == [None, "P2_T1", None, None]
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
    assert "left out (2), as MSLesSeg_RAW/P2/T1/P2_T1_FLAIR.nii.gz: raw" in raw.getMessage()
    assert (raw.levelname, unknown.levelname) == ("INFO", "WARNING")
    assert "P2_T1_FLAIR_copy.nii.gz: neither name nor folder is known" in unknown.getMessage()


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


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_folder_is_one_line_that_names_a_file_of_the_data_set(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path}: does not look like .*; expected .*\.nii"):
        IMPORTERS[name].find(tmp_path)


def msseg2(root: Path) -> Path:
    """Two training patients, the second without a new lesion, and one of the test set."""
    for place, value in (("training/013", 1), ("training/015", 0), ("testing/002", 1)):
        for time in ("01", "02"):
            name = f"flair_time{time}_on_middle_space.nii.gz"
            save(root / place / name, image(int(time)), LAS)
        save(root / place / "ground_truth.nii.gz", mask(value), LAS)
        for expert in range(1, 5):
            save(root / place / f"ground_truth_expert{expert}.nii.gz", mask(value), LAS)
    return root


def test_msseg2_is_a_pair_with_new_lesions_and_four_raters(tmp_path: Path) -> None:
    cases = find_msseg2(msseg2(tmp_path / "MSSEG-2"))
    assert [(case.case_id, case.split) for case in cases] == [
        ("002", "test"),
        ("013", "train"),
        ("015", "train"),
    ]
    assert {name: file.name for name, file in cases[1].images.items()} == {
        "FLAIR@2": "flair_time02_on_middle_space.nii.gz",
        "FLAIR@1": "flair_time01_on_middle_space.nii.gz",
    }
    assert (cases[1].consensus, len(cases[1].raters)) == (True, 4)
    for case, n_lesions in zip(cases[1:], (1, 0), strict=True):
        assert preprocess(case, Preprocessing(("FLAIR@2", "FLAIR@1"))).n_lesions == (n_lesions,)


@pytest.mark.parametrize("below", ["", "MSSEG-2/training"])
def test_msseg2_training_set_alone_is_split_by_folds(tmp_path: Path, below: str) -> None:
    root = msseg2(tmp_path / "MSSEG-2")
    (root / "testing").rename(tmp_path / "MSSEG-2/elsewhere")
    cases = find_msseg2(tmp_path / below)
    assert {case.split for case in cases} == {None}
    assert {"013", "015"} <= {case.case_id for case in cases}


WMH_SUBJECTS = (
    "training/Utrecht/0",
    "training/Singapore/50",
    "training/Amsterdam/GE3T/100",
    "test/Amsterdam/GE1T5/150",
    "test/Amsterdam/Philips_VU .PETMR_01./160",
)


def wmh2017(root: Path) -> Path:
    """A subject of each scanner; 2 is other pathology; two more observers of the training set."""
    for place in WMH_SUBJECTS:
        for name in ("FLAIR", "T1", "3DT1"):
            for folder in ("orig", "pre"):
                save(root / place / folder / f"{name}.nii.gz", image(), LAS)
        other = np.roll(mask(2, dtype=np.float32), 3, axis=0)
        save(root / place / "wmh.nii.gz", mask(dtype=np.float32) + other, LAS)
        if place.startswith("training"):
            for observer in ("observer_o3", "observer_o4"):
                folder = root / "additional_annotations" / observer / place
                save(folder / "result.nii.gz", mask(dtype=np.float32), LAS)
    return root


def test_wmh2017_sites_are_scanners_and_the_official_split_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="tversky_seg"):
        cases = find_wmh2017(wmh2017(tmp_path))
    assert [(case.case_id, case.site, case.split, len(case.labels)) for case in cases] == [
        ("Utrecht_0", "Utrecht", "train", 3),
        ("Singapore_50", "Singapore", "train", 3),
        ("Amsterdam_GE3T_100", "Amsterdam_GE3T", "train", 3),
        ("Amsterdam_GE1T5_150", "Amsterdam_GE1T5", "test", 1),
        ("Amsterdam_Philips_160", "Amsterdam_Philips", "test", 1),
    ]
    assert {file.parent.name for file in cases[0].images.values()} == {"pre"}
    assert [file.name for file in cases[0].labels] == ["wmh.nii.gz"] + ["result.nii.gz"] * 2
    assert sorted(line.split(", as ")[0][-4:] for line in caplog.messages) == [" (5)", "(15)"]


def test_wmh2017_parts_are_known_from_the_nearest_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = wmh2017(tmp_path / "test")
    assert {case.split for case in find_wmh2017(root)} == {"train", "test"}
    assert {case.split for case in find_wmh2017(root / "training")} == {None}
    monkeypatch.chdir(root / "training/Utrecht")
    assert [case.case_id for case in find_wmh2017(Path())] == ["Utrecht_0"]


def test_wmh2017_other_pathology_is_ignored(tmp_path: Path) -> None:
    root = wmh2017(tmp_path)
    dataset = hydra.utils.instantiate(
        composed("data=wmh2017", f"data.root={root}").data, _convert_="all"
    )
    settings = Preprocessing(dataset.modalities, dataset.classes, ignore=dataset.ignore)
    prepared = preprocess(find_cases(dataset)[0], settings)
    assert prepared.n_lesions == (1,)
    assert prepared.ignored is not None
    assert prepared.ignored.sum() == mask().sum()


def shifts_ms(root: Path) -> Path:
    """Scans of two archives, whose numbers begin anew in each part of a cohort."""
    parts = ("pt2/best/train", "pt2/best/dev_in", "pt2/best/eval_in", "pt2/ljubljana/dev_out")
    for part in (*parts, "pt1/msseg/train"):
        for number in (2, 10):
            save(root / f"{part}/flair/{number}_FLAIR_isovox.nii.gz", image(), LAS)
            save(root / f"{part}/t1/{number}_T1_isovox.nii.gz", image(), LAS)
            save(root / f"{part}/gt/{number}_gt_isovox.nii.gz", mask(), LAS)
            brain = (image() > 0).astype(np.uint8)
            save(root / f"{part}/fg_mask/{number}_isovox_fg_mask.nii.gz", brain, LAS)
    return root


def test_shifts_parts_are_the_split_and_cohorts_are_sites(tmp_path: Path) -> None:
    cases = find_shifts_ms(shifts_ms(tmp_path))
    assert {(case.site, case.split) for case in cases} == {
        ("best", "train"),
        ("best", "val"),
        ("best", "test"),
        ("ljubljana", "test"),
        ("msseg", "train"),
    }
    assert len({case.subject_id for case in cases}) == 10
    best = [case for case in cases if case.site == "best"]
    assert [case.case_id for case in best[:2]] == ["best_train_2", "best_train_10"]
    assert list(best[0].images) == ["FLAIR", "T1"]
    assert best[0].brain_mask is not None
    alone = find_shifts_ms(tmp_path / "pt2/ljubljana")
    assert [(case.case_id, case.split) for case in alone] == [
        ("ljubljana_dev_out_2", None),
        ("ljubljana_dev_out_10", None),
    ]


def brats_mets(root: Path) -> Path:
    """Two examinations of a subject, a duplicate, one without T2, and one to be predicted."""
    regions = mask(2)
    regions[4, 5, 3], regions[5, 5, 3] = 1, 3
    for case in ("Training/{}-00001-000", "Training/{}-00001-001", "Training/{}-00418-000"):
        save_brats(root / case.format("BraTS-MET"), regions)
    save_brats(root / "Training/BraTS-MET-00507-000", regions)
    save_brats(root / "Validation/BraTS-MET-00833-000", None)
    return root


def save_brats(folder: Path, regions: np.ndarray | None) -> None:
    for name in ("t1c", "t1n", "t2w", "t2f"):
        save(folder / f"{folder.name}-{name}.nii.gz", image(), LAS)
    if regions is not None:
        save(folder / f"{folder.name}-seg.nii.gz", regions, LAS)


def test_brats_regions_are_nested_classes(tmp_path: Path) -> None:
    root = brats_mets(tmp_path)
    dataset = hydra.utils.instantiate(
        composed("data=brats_mets", f"data.root={root}").data, _convert_="all"
    )
    cases = find_cases(dataset)
    assert [(case.case_id, case.subject_id, case.split) for case in cases] == [
        ("BraTS-MET-00001-000", "BraTS-MET-00001", None),
        ("BraTS-MET-00001-001", "BraTS-MET-00001", None),
        ("BraTS-MET-00418-000", "BraTS-MET-00418", None),
        ("BraTS-MET-00507-000", "BraTS-MET-00418", None),
        ("BraTS-MET-00833-000", "BraTS-MET-00833", "test"),
    ]
    prepared = preprocess(cases[0], Preprocessing(dataset.modalities, dataset.classes))
    assert prepared.target is not None
    assert prepared.target.sum(axis=(1, 2, 3)).tolist() == [12, 2, 1]


def test_brats_examination_may_lack_t2(tmp_path: Path) -> None:
    root = brats_mets(tmp_path)
    (root / "Training/BraTS-MET-00001-001/BraTS-MET-00001-001-t2w.nii.gz").unlink()
    assert list(find_brats_mets(root)[1].images) == ["T1C", "T1", "FLAIR"]


@pytest.mark.parametrize("is_earlier_release", [False, True])
def test_isles_flair_is_resampled_to_the_grid_of_dwi(
    tmp_path: Path, is_earlier_release: bool
) -> None:
    subject = "sub-strokecase0001"
    stem = f"{subject}_ses-0001"
    flair_grid = np.diag([-2.0, 2, 2, 1])
    voxels = image(shape=(6, 7, 4))
    if is_earlier_release:
        folder = tmp_path / "rawdata" / subject / "ses-0001"
        files = [folder / f"{stem}_{name}.nii.gz" for name in ("dwi", "adc", "flair")]
    else:
        folder = tmp_path / subject / "ses-0001"
        names = ("dwi/{}_dwi", "dwi/{}_adc", "anat/{}_FLAIR")
        files = [folder / f"{name.format(stem)}.nii.gz" for name in names]
    for file, data, grid in zip(
        files, (image(), image(1), voxels), (LAS, LAS, flair_grid), strict=True
    ):
        save(file, data, grid)
    label = save(tmp_path / f"derivatives/{subject}/ses-0001/{stem}_msk.nii.gz", mask(), LAS)
    (case,) = find_isles2022(tmp_path)
    assert (case.case_id, case.labels, list(case.images)) == (
        subject,
        (label,),
        ["DWI", "ADC", "FLAIR"],
    )
    prepared = preprocess(case, Preprocessing(("DWI", "ADC", "FLAIR")))
    assert prepared.image.shape[0] == 3
    assert prepared.n_lesions == (1,)


@pytest.mark.parametrize(
    ("folder", "stem"), [("patient12", "study{}_{}"), ("patient1", "patient1_study{}_{}reg")]
)
def test_lesjak2016_is_a_pair_with_changes(
    folder: str, stem: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    patient = tmp_path / "longitudinal/coregistered" / folder
    before = "" if folder == "patient12" else "patient1_"
    for study in (1, 2):
        for word in ("FLAIR", "T1W", "T2W"):
            save(patient / f"{stem.format(study, word)}.nii.gz", image(study), LAS)
    save(patient / f"{before}gt.nii.gz", mask(), LAS)
    save(patient / f"{before}brainmask.nii.gz", (image() > 0).astype(np.int16), LAS)
    save(tmp_path / f"longitudinal/raw/{folder}/study1_FLAIR.nii.gz", image(), LAS)
    with caplog.at_level(logging.INFO, logger="tversky_seg"):
        (case,) = find_lesjak2016(tmp_path)
    assert list(case.images) == ["FLAIR@2", "FLAIR@1", "T1@2", "T1@1", "T2@2", "T2@1"]
    assert case.images["FLAIR@1"].parent.parent.name == "coregistered"
    assert (len(case.labels), case.brain_mask is not None) == (1, True)
    (line,) = caplog.messages
    assert "left out (1), as longitudinal/raw/" in line


def test_lesjak2016_real_pair_has_46_changes(real_data: Path) -> None:
    (case,) = find_lesjak2016(real_data / "open_ms_longitudinal")
    assert list(case.images) == ["FLAIR@2", "FLAIR@1"]
    assert preprocess(case, Preprocessing(("FLAIR@2", "FLAIR@1"))).n_lesions == (46,)


def followup(root: Path) -> Path:
    """Ann at baseline, 6 and 12 months; Bob twice, by dates, once with new lesions; Cal once."""
    for session in ("baseline", "m12", "m6"):
        for name, voxels in (("ann_FLAIR", image()), ("ann_T1w", image()), ("lesions", mask())):
            save(root / f"ann/{session}/{name}.nii.gz", voxels, LAS)
    for session in ("20240101", "20230101"):
        save(root / f"bob/{session}/anat/flair.nii.gz", image(), LAS)
    save(root / "bob/20240101/anat/new_lesions.nii.gz", mask(), LAS)
    save(root / "cal/1/flair.nii.gz", image(), LAS)
    save(root / "cal/1/lesions.nii.gz", mask(), LAS)
    return root


def test_followup_sessions_follow_each_other_in_time(tmp_path: Path) -> None:
    cases = find_followup(followup(tmp_path))
    assert [(case.case_id, case.subject_id, case.baseline) for case in cases] == [
        ("ann_baseline", "ann", None),
        ("ann_m6", "ann", "ann_baseline"),
        ("ann_m12", "ann", "ann_m6"),
        ("bob_20230101", "bob", None),
        ("bob_20240101", "bob", "bob_20230101"),
        ("cal_1", "cal", None),
    ]
    assert (list(cases[0].images), len(cases[0].labels)) == (["FLAIR", "T1"], 1)
    assert cases[4].labels == ()


def test_followup_pairs_have_the_new_lesions_as_label(tmp_path: Path) -> None:
    cases = find_followup(followup(tmp_path), rows="pairs")
    assert [case.case_id for case in cases] == ["ann_m6", "ann_m12", "bob_20240101"]
    first, _, bob = cases
    assert list(first.images) == ["FLAIR@2", "T1@2", "FLAIR@1", "T1@1"]
    assert first.images["FLAIR@1"].parent.name == "baseline"
    assert [file.parent.name for file in (*first.labels, *first.labels_at)] == [
        "m6",
        "baseline",
        "m6",
    ]
    assert [file.name for file in bob.labels] == ["new_lesions.nii.gz"]


def test_followup_faults_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.importer\.rows: 'all'; expected one of sessions"):
        find_followup(tmp_path, rows="all")
    save(tmp_path / "cal/1/flair.nii.gz", image(), LAS)
    with pytest.raises(DataError, match=r"no subject has two sessions"):
        find_followup(tmp_path, rows="pairs")
    save(tmp_path / "cal/1/3D_flair.nii.gz", image(), LAS)
    with pytest.raises(DataError, match=r"cal/1: holds 3D_flair\.nii\.gz and flair\.nii\.gz"):
        find_followup(tmp_path)


def test_isbi2015_time_points_name_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "training/training01"
    for session in ("01", "02"):
        stem = f"training01_{session}"
        save(folder / f"preprocessed/{stem}_flair_pp.nii", image(), LAS)
        save(folder / f"masks/{stem}_mask1.nii", mask(), LAS)
        save(folder / f"orig/{stem}_flair.nii.gz", image(), LAS)
    with caplog.at_level(logging.INFO, logger="tversky_seg"):
        cases = find_isbi2015(tmp_path)
    assert [case.baseline for case in cases] == [None, "training01_01"]
    (line,) = caplog.messages
    assert "left out (2), as training/training01/orig/" in line


def test_a_case_without_an_image_that_is_not_required_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, manifest = mslesseg(tmp_path / "MSLesSeg Dataset"), tmp_path / "m.csv"
    (root / "train/P2/T1/P2_T1_T2.nii.gz").unlink()
    main(["mslesseg", str(root), str(manifest), "--require", "FLAIR,T1"])
    first, second, *_ = read_manifest(manifest, require=("FLAIR",))
    assert (list(first.images), second.baseline) == (["FLAIR", "T1"], "P2_T1")


def test_a_manifest_names_only_baselines_that_it_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, manifest = mslesseg(tmp_path / "MSLesSeg Dataset"), tmp_path / "m.csv"
    main(["mslesseg", str(root), str(manifest)])
    assert [case.baseline for case in read_manifest(manifest)][:2] == [None, "P2_T1"]
    (root / "train/P2/T1/P2_T1_T2.nii.gz").unlink()
    main(["mslesseg", str(root), str(manifest)])
    assert [case.baseline for case in read_manifest(manifest)] == [None] * 3


def test_a_pointer_of_git_lfs_is_named_before_a_manifest_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, manifest = simvent_ms(tmp_path / "clone"), tmp_path / "m.csv"
    for file in root.rglob("*_FLAIR.nii.gz"):
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(SystemExit):
        main(["simvent_ms", str(root), str(manifest)])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert last.endswith(
        "a Git LFS pointer, not the image; fetch it by `git lfs pull` (and 3 more)"
    )
    assert not manifest.exists()


MINIATURES = (
    ("brats_mets", brats_mets),
    ("mslesseg", mslesseg),
    ("msseg2", msseg2),
    ("shifts_ms", shifts_ms),
    ("simvent_ms", simvent_ms),
    ("wmh2017", wmh2017),
)


@pytest.mark.parametrize(("name", "make"), MINIATURES)
def test_a_folder_is_recognised_by_the_names_of_its_files(
    name: str, make: Callable[[Path], Path], tmp_path: Path
) -> None:
    root = make(tmp_path)
    assert data_sets_of(root.rglob("*.nii.gz")) == [name]
    assert f"tversky-seg import {name} {root} OUT.csv" in make_manifest(root).notes[0]
    with pytest.raises(DataError, match=rf"like ISBI 2015 \(files named as in data={name}\); exp"):
        find_isbi2015(root)
