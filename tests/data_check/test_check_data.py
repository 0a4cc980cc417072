"""Dataset check: every fault is named with file and remedy; costs and plan are right."""

import csv
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from helpers.cohorts import AFFINE, MODALITIES, add_case, make_cohort, save, scan, write_rows
from helpers.command_line import ROOT, Outcome, call, train
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.patches.paper_samplers import Shirokikh2020Sampler
from tversky_seg.data.patches.samplers import (
    ForegroundSampler,
    LesionSampler,
    SizeTemperedSampler,
    UniformSampler,
)
from tversky_seg.data.preprocessing.parallel import prepare_all
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocess
from tversky_seg.data_check.coverage import draws_for_all, expected_draws, lesion_shares
from tversky_seg.data_check.examine import examine, examine_cases
from tversky_seg.data_check.finding import Finding
from tversky_seg.data_check.memory import GIB, free_memory, loader_bytes, step_bytes
from tversky_seg.data_check.page import _sentence, _short_path
from tversky_seg.data_check.plan import make_plan
from tversky_seg.models import FCDenseNet3D, UNet3D

SETTINGS = Preprocessing(modalities=MODALITIES)
NETWORK = ("model.width=4", "model.n_levels=2", "sampler.patch_size=16")


def check(manifest: Path, *words: object) -> Outcome:
    """Run the check on a manifest, in this process."""
    folder = manifest.parent
    return call(
        "check_data",
        "data=manifest",
        f"data.manifest={manifest}",
        f"data.cache_dir={folder / 'cache'}",
        f"output_dir={folder / 'check'}",
        "n_workers=1",
        "timed_steps=0",
        *NETWORK,
        *words,
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV."""
    with path.open() as file:
        return list(csv.DictReader(file))


def findings_in(folder: Path) -> list[dict[str, str]]:
    """Read the rows of findings.csv."""
    return rows_of(folder / "check" / "findings.csv")


def one_case(folder: Path, **files: str) -> Case:
    """Write a case of two modalities and a label, some of the files replaced."""
    row = add_case(folder, "c0", seed=0) | files
    return Case(
        "c0",
        "s0",
        {name: folder / row[name] for name in MODALITIES},
        labels=(folder / row["label"],),
    )


def broken(folder: Path, name: str, content: bytes) -> Case:
    """Write a case of which one file holds other bytes."""
    case = one_case(folder)
    (folder / f"c0_{name}.nii.gz").write_bytes(content)
    return case


def files_at_fault(case: Case) -> list[str]:
    """List the names of the files with an error."""
    findings = examine(case, SETTINGS).findings
    return [Path(finding.where).name for finding in findings if finding.level == "error"]


def test_a_sound_cohort_has_no_errors_and_gets_a_page_that_needs_no_other_file(tmp_path):
    outcome = check(make_cohort(tmp_path, n=6))
    assert outcome.status == 0, outcome
    assert "6 cases checked: 0 errors" in outcome.stdout
    page = (tmp_path / "check" / "report.html").read_text()
    assert page.count("<svg") == 3, "lesion sizes, prevalence, spacing"
    assert page.count("data:image/png;base64,") == 6, "a picture of each case"
    assert not re.findall(r"(?:src|href)=\"http", page)
    rows = rows_of(tmp_path / "check" / "cases.csv")
    assert [row["case"] for row in rows] == [f"c{i}" for i in range(6)]
    assert rows[0]["shape"] == "24 x 26 x 22"
    assert rows[0]["spacing (mm)"] == "2 x 2 x 2"
    assert {row["set"] for row in rows} == {"train", "val", "test"}
    table = outcome.stdout[outcome.stdout.index("\ncase") :]
    lines = [line.split()[0] for line in table.splitlines() if line.startswith("c")]
    assert lines[:7] == ["case", *(f"c{i}" for i in range(6))], "plain text, a line for each case"
    assert not set("\x1b│┃━─") & set(outcome.stdout)


@pytest.mark.parametrize(
    ("name", "content", "finding"),
    [
        (
            "FLAIR",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "Git LFS",
        ),
        ("T1", b"<!DOCTYPE html><html>Not found</html>", "web page"),
        ("T1", b"Please sign in to download.\n", "text"),
        ("label", b"", "empty"),
    ],
)
def test_other_content_under_the_name_of_an_image_is_named(tmp_path, name, content, finding):
    report = examine(broken(tmp_path, name, content), SETTINGS)
    errors = [f for f in report.findings if f.level == "error"]
    assert [Path(f.where).name for f in errors] == [f"c0_{name}.nii.gz"]
    assert finding in errors[0].found
    assert errors[0].remedy


def test_a_cut_gzip_is_an_error(tmp_path):
    case = one_case(tmp_path)
    file = tmp_path / "c0_T1.nii.gz"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (error,) = examine(case, SETTINGS).findings
    assert (error.level, Path(error.where).name) == ("error", "c0_T1.nii.gz")
    assert "cut off" in error.found


def test_nan_voxels_are_counted(tmp_path):
    image, _ = scan(0)
    image[5, 5, 5:8] = np.nan
    image[6, 6, 6] = np.inf
    case = one_case(tmp_path)
    save(tmp_path / "c0_T1.nii.gz", image.astype(np.float32))
    report = examine(case, SETTINGS)
    assert report.n_non_finite == 4
    assert report.findings[0].found.startswith("4 voxels")


def test_all_faults_of_a_case_are_named_and_not_the_first_alone(tmp_path):
    case = broken(tmp_path, "T1", b"<html></html>")
    label = scan(0)[1]
    save(tmp_path / "c0_label.nii.gz", (label * 7).astype(np.uint8))
    assert files_at_fault(case) == ["c0_T1.nii.gz", "c0_label.nii.gz"]
    (tmp_path / "c0_FLAIR.nii.gz").write_bytes(b"")
    # Without a grid the values of the label are not examined.
    assert files_at_fault(case) == ["c0_FLAIR.nii.gz", "c0_T1.nii.gz"]


@pytest.mark.parametrize(
    ("shift", "flip", "level"),
    [(0.0, False, None), (0.001, False, None), (0.5, False, "warning"), (0.0, True, "error")],
)
def test_affines_off_by_rounding_are_fine_by_half_a_voxel_a_warning_by_a_flip_an_error(
    tmp_path, shift, flip, level
):
    case = one_case(tmp_path)
    affine = AFFINE.copy()
    affine[:3, 3] += 2.0 * shift
    if flip:
        affine[0] *= -1
    save(tmp_path / "c0_label.nii.gz", scan(0)[1], affine)
    report = examine(case, SETTINGS)
    about = [f.level for f in report.findings if "affine" in f.found]
    assert about == ([level] if level else [])
    assert report.affine_shift == pytest.approx(23 if flip else shift, rel=0.3)
    assert report.is_stored_flipped == flip


def test_a_label_of_another_shape_is_an_error(tmp_path):
    case = one_case(tmp_path)
    save(tmp_path / "c0_label.nii.gz", scan(0, shape=(20, 26, 22))[1])
    (error,) = [f for f in examine(case, SETTINGS).findings if f.level == "error"]
    assert "(20, 26, 22)" in error.found
    assert "(24, 26, 22)" in error.found


def test_a_mask_that_a_scale_factor_decodes_to_almost_one_is_read_and_noted(tmp_path):
    case = one_case(tmp_path)
    header = nib.Nifti1Image(scan(0)[1] * 255, AFFINE)
    header.header.set_slope_inter(np.float32(1 / 255) * (1 - 1e-7), 0)
    nib.save(header, tmp_path / "c0_label.nii.gz")
    report = examine(case, SETTINGS)
    assert report.n_lesions == examine(one_case(tmp_path / "plain"), SETTINGS).n_lesions
    assert [f.level for f in report.findings] == ["note"]
    assert "0.999999" in report.findings[0].found


def test_a_negative_background_a_lesion_outside_the_brain_and_no_lesion_are_warnings(tmp_path):
    case = one_case(tmp_path)
    image, label = scan(0)
    save(tmp_path / "c0_FLAIR.nii.gz", np.where(image == 0, -1000, image).astype(np.int16))
    label[0, 0, 0] = 1
    save(tmp_path / "c0_label.nii.gz", label)
    report = examine(case, SETTINGS)
    assert [f.level for f in report.findings] == ["warning", "warning", "note"]
    assert "background" in report.findings[0].found
    assert "-1000" in report.findings[0].found
    assert report.findings[1].found.startswith("1 of ")
    assert "outside" in report.findings[1].found
    assert "one voxel" in report.findings[2].found
    assert report.intensities["FLAIR"][0] == -1000
    save(tmp_path / "c0_label.nii.gz", label * 0)
    report = examine(case, SETTINGS)
    (finding,) = report.findings[1:]
    assert (finding.level, finding.where) == ("warning", str(case.label))
    assert report.prevalence == 0


def test_an_inverted_mask_is_a_warning(tmp_path):
    case = one_case(tmp_path)
    save(tmp_path / "c0_label.nii.gz", (scan(0)[1] == 0).astype(np.uint8))
    assert any("% of the brain" in f.found for f in examine(case, SETTINGS).findings)


def test_a_report_measures_what_training_sees(tmp_path):
    case = one_case(tmp_path)
    report, prepared = examine(case, SETTINGS, with_picture=True), preprocess(case, SETTINGS)
    assert report.n_lesions == prepared.n_lesions[0]
    assert report.n_lesion_voxels == prepared.target.sum()
    assert report.volumes_mm3["lesion"].sum() == 8 * prepared.target.sum()
    assert report.prevalence == prepared.target.sum() / len(prepared.foreground_voxels)
    (cached,) = prepare_all([case], SETTINGS, cache_dir=tmp_path / "cache")
    on_disk = sum(file.stat().st_size for file in cached.folder.glob("*.npy"))
    assert report.cache_bytes == pytest.approx(on_disk, rel=0.01)
    assert report.picture.startswith(b"\x89PNG")
    assert not set(report.prepared.arrays) - {"lesion_offsets"}, "no volume travels with a report"


def test_workers_report_what_one_process_does(tmp_path):
    cases = [replace(one_case(tmp_path / str(i)), case_id=f"c{i}") for i in range(2)]
    alone, together = (examine_cases(cases, SETTINGS, n_workers=n) for n in (1, 2))
    assert [r.case.case_id for r in together] == ["c0", "c1"]
    assert [(r.n_foreground, r.cache_bytes, r.findings) for r in alone] == [
        (r.n_foreground, r.cache_bytes, r.findings) for r in together
    ]


def test_faults_of_the_list_are_all_named_and_the_sound_cases_examined(tmp_path):
    rows = [add_case(tmp_path, f"c{i}", seed=i) | {"split": "train"} for i in range(5)]
    rows[1]["T1"] = "absent.nii.gz"
    rows[2]["T1"] = ""
    rows[3] |= {"subject_id": rows[0]["subject_id"], "split": "test"}
    outcome = check(
        write_rows(tmp_path / "manifest.csv", [*rows, rows[4]]), "data.modalities=[FLAIR,T1]"
    )
    assert outcome.status == 1
    found = [row["found"] for row in findings_in(tmp_path) if row["level"] == "error"]
    assert any("T1" in text for text in found)
    assert any("duplicate" in text for text in found)
    assert any("test and train" in text for text in found)
    assert any(text == "no such file" for text in found)
    assert "3 cases checked" in outcome.stdout


def test_what_the_check_calls_an_error_training_refuses_in_the_same_words(tmp_path):
    manifest = make_cohort(tmp_path, n=4)
    (tmp_path / "c1_T1.nii.gz").write_bytes(b"<html></html>")
    save(tmp_path / "c2_label.nii.gz", scan(2)[1] * 3)
    assert check(manifest).status == 1
    lines = [
        f"{row['where']}: {row['found']}; {row['remedy']}"
        for row in findings_in(tmp_path)
        if row["level"] == "error"
    ]
    assert len(lines) == 2
    refused = train(manifest, tmp_path / "run").error
    assert refused.startswith(tuple(lines))
    assert refused.endswith("(and 1 more: run scripts/check_data.py)")


def test_copies_and_other_units_are_found_between_cases(tmp_path):
    manifest = make_cohort(tmp_path, n=4)
    shutil.copy(tmp_path / "c0_FLAIR.nii.gz", tmp_path / "c3_FLAIR.nii.gz")
    image, _ = scan(1)
    save(tmp_path / "c1_T1.nii.gz", (image * 1e5).astype(np.float32))
    assert check(manifest, "data.normalization=none").status == 0
    found = {row["found"]: row["level"] for row in findings_in(tmp_path)}
    assert any("image of case c0" in text for text in found)
    assert any(
        text.startswith("maxima run from") and level == "warning" for text, level in found.items()
    )


def test_training_warns_of_cases_without_lesion_as_the_check_does(tmp_path):
    rows = [
        add_case(tmp_path, f"c{i}", seed=i) | {"split": "test" if i == 3 else "train"}
        for i in range(4)
    ]
    save(tmp_path / "c0_label.nii.gz", scan(0)[1] * 0)
    manifest = write_rows(tmp_path / "manifest.csv", rows)
    warning = "training set: 1 of 3 cases hold no lesion (c0)"
    assert warning in check(manifest, "data.val_fraction=0").stdout
    assert warning in train(manifest, tmp_path / "run", "data.val_fraction=0").stdout


def test_the_command_line_of_the_plan_trains(tmp_path):
    manifest = make_cohort(tmp_path / "a folder", n=3)
    outcome = check(
        manifest, "data.modalities=[T1,FLAIR]", "trainer.max_steps=1", "optimizer.lr=0.002"
    )
    (line,) = [line for line in outcome.stdout.splitlines() if line.startswith("python train.py ")]
    words = shlex.split(line)[2:]
    assert {"data.modalities=[T1,FLAIR]", "optimizer.lr=0.002", "data.spacing_mm=[2,2,2]"} < {
        *words
    }
    assert not any(word.startswith(("output_dir", "n_workers")) for word in words)
    assert sum(word.startswith("sampler.patch_size=") for word in words) == 1
    assert call("train", *words, f"output_dir={tmp_path / 'run'}").status == 0
    assert (tmp_path / "run" / "evaluation" / "metrics.json").exists()


def test_where_nothing_can_be_done_one_line_says_why(tmp_path):
    assert "absent.csv" in check(tmp_path / "absent.csv").error
    outcome = call(
        "check_data", "data=lesjak2017", f"data.root={tmp_path}", f"output_dir={tmp_path / 'check'}"
    )
    assert "open_ms_data" in outcome.error
    outcome = call(
        "check_data",
        "data=lesjak2017",
        f"data.root={tmp_path / 'absent'}",
        f"output_dir={tmp_path / 'check'}",
    )
    assert str(tmp_path / "absent") in outcome.error
    assert not (tmp_path / "check").exists()


def test_it_takes_the_settings_of_train():
    check_data = yaml.safe_load((ROOT / "configs" / "check_data.yaml").read_text())
    assert check_data["defaults"][0] == "train"


def test_mask_only_subjects_of_the_real_cohort_are_warnings(real_data, tmp_path):
    words = [
        f"data.root={real_data / 'open_ms_data'}",
        f"data.cache_dir={tmp_path}",
        f"output_dir={tmp_path / 'check'}",
    ]
    outcome = call("check_data", "data=lesjak2017", *words, *NETWORK, "n_workers=1")
    assert outcome.status == 0
    assert "2 cases checked: 0 errors, 30 warnings, 3 notes" in outcome.stdout
    assert "patient01 has no FLAIR, T1, T2" in outcome.stdout
    assert "3 of 49769 lesion voxels lie outside the brain" in outcome.stdout


def test_a_finding_keeps_the_parts_of_a_fault():
    fault = DataError("a.nii.gz", "is empty", "expected a NIfTI image; or two")
    finding = Finding.of_fault(fault, case_id="c0")
    assert (finding.where, finding.found, finding.remedy, finding.case_id) == (
        "a.nii.gz",
        "is empty",
        "expected a NIfTI image; or two",
        "c0",
    )
    assert str(finding) == str(fault)


def test_equal_coupons_take_n_times_the_harmonic_number():
    for n in (1, 2, 98):
        assert expected_draws(np.full(n, 1 / n)) == pytest.approx(
            n * sum(1 / k for k in range(1, n + 1)), rel=1e-4
        )


def test_two_coupons_by_hand_and_many_by_drawing():
    assert expected_draws([0.5, 0.25]) == pytest.approx(1 / 0.5 + 1 / 0.25 - 1 / 0.75, rel=1e-4)
    assert expected_draws([]) == 0
    assert expected_draws([0.5, 0.0]) == np.inf
    shares, rng = np.array([0.4, 0.1, 0.05, 0.02]), np.random.default_rng(0)
    draws = [_draws_until_all_seen(shares, rng) for _ in range(2000)]
    assert expected_draws(shares) == pytest.approx(np.mean(draws), rel=0.05)
    assert draws_for_all(shares, probability=0.95) == pytest.approx(
        np.quantile(draws, 0.95), rel=0.08
    )


def _draws_until_all_seen(shares: np.ndarray, rng: np.random.Generator) -> int:
    drawn = rng.choice(len(shares) + 1, size=2000, p=[*shares, 1 - shares.sum()])
    return max(int(np.argmax(drawn == i)) for i in range(len(shares))) + 1


@pytest.mark.parametrize(
    "sampler",
    [
        LesionSampler(patch_size=8, lesion_probability=0.6),
        SizeTemperedSampler(patch_size=8, lesion_probability=0.6, power=0.5),
        ForegroundSampler(patch_size=8, lesion_probability=0.6),
        Shirokikh2020Sampler(patch_size=8, lesion_probability=0.6),
    ],
)
def test_exact_shares_are_those_of_the_draws(tmp_path, sampler):
    cases = []
    for i, sides in enumerate(([4, 2, 1], [3], [])):
        case = one_case(tmp_path / str(i))
        label = np.zeros(scan(0)[1].shape, np.uint8)
        for k, side in enumerate(sides):
            label[5 : 5 + side, 4 + 6 * k : 4 + 6 * k + side, 5 : 5 + side] = 1
        save(case.labels[0], label)
        cases.append(preprocess(case, SETTINGS))
    counts = [np.zeros(3), np.zeros(1), np.zeros(0)]
    n_draws, rng = 4000, np.random.default_rng(0)
    for _ in range(n_draws):
        aim = sampler.aim(cases, rng)
        if aim.lesion is not None:
            counts[aim.case_index][aim.lesion] += 1
    shares = lesion_shares(sampler, cases)
    assert np.abs(shares - np.concatenate(counts) / n_draws).max() < 0.02


def test_a_sampler_that_does_not_aim_at_lesions_has_no_shares(tmp_path):
    prepared = [preprocess(one_case(tmp_path), SETTINGS)]
    assert lesion_shares(UniformSampler(patch_size=8), prepared) is None
    assert "unknown" in check(make_cohort(tmp_path, n=3), "sampler=uniform").stdout


def test_the_memory_of_a_step_is_counted_to_a_quarter():
    network = UNet3D(in_channels=2, out_channels=1, width=8, n_levels=2)
    x = torch.randn(2, 2, 32, 32, 32)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x).sum()
    assert step_bytes(network, x.shape) > sum(kept.values())
    assert step_bytes(network, x.shape) < 2.5 * sum(kept.values())
    double = step_bytes(network, (4, *x.shape[1:]))
    assert double == pytest.approx(2 * step_bytes(network, x.shape), rel=0.05)
    assert step_bytes(network, x.shape, precision="bf16") < step_bytes(network, x.shape)
    assert loader_bytes(x.shape, n_classes=1) > x.nbytes


@pytest.mark.parametrize(
    ("build", "precision", "measured_gib"),
    [(UNet3D, "fp32", 3.72), (UNet3D, "bf16", 1.81), (FCDenseNet3D, "bf16", 32.4)],
)
def test_the_plan_of_a_gpu_is_within_15_percent_of_an_h100(
    build: type[torch.nn.Module], precision: str, measured_gib: float
) -> None:
    """Peaks of docs/benchmarks/gpu.md."""
    network = build(in_channels=3, out_channels=1)
    shape = (2, 3, 128, 128, 128)
    planned = step_bytes(network, shape, precision=precision, device="cuda")
    assert planned / GIB == pytest.approx(measured_gib, rel=0.15)


def test_a_plan_fits_the_memory_the_volumes_and_thick_slices():
    network = UNet3D(in_channels=2, out_channels=1, width=8, n_levels=2)
    known = {"n_channels": 2, "device": torch.device("cuda")}
    large = make_plan(
        network, spacing_mm=(1, 1, 1), shape=(150, 180, 150), memory_bytes=80 * GIB, **known
    )
    assert large.patch_size == (128, 128, 128)
    assert large.batch_size == 8
    small = make_plan(
        network, spacing_mm=(1, 1, 1), shape=(150, 180, 150), memory_bytes=GIB // 2, **known
    )
    assert small.step_bytes <= 0.8 * GIB / 2
    assert max(small.patch_size) < 128
    tiny = make_plan(
        network, spacing_mm=(1, 1, 1), shape=(35, 50, 35), memory_bytes=80 * GIB, **known
    )
    assert tiny.patch_size == (48, 64, 48)
    thick = make_plan(
        network, spacing_mm=(0.5, 0.5, 5), shape=(300, 300, 24), memory_bytes=80 * GIB, **known
    )
    assert thick.patch_size == (128, 128, 12)
    assert free_memory(torch.device("cpu")) > 0


def test_the_page_shortens_paths_and_writes_sentences():
    path = "/data/of/a/hospital/with/long/names/and/many/folders/subject01/flair.nii.gz"
    assert _short_path(path) == "…/subject01/flair.nii.gz"
    assert _short_path("data.spacing_mm") == "data.spacing_mm"
    assert _sentence("resampled to it by its affine") == "Resampled to it by its affine"
    assert _sentence("data.normalization=zscore brings them together").startswith("data.")
