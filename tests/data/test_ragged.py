"""Cases that lack a modality, in a manifest and in the cache."""

import csv
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.cohorts import add_case, case_ids, make_cohort, write_rows
from tversky_seg.commands.train import modality_sets, required_channels
from tversky_seg.data.dataset import Dataset, find_cases, with_modalities
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import read_manifest, write_manifest
from tversky_seg.data.patches.augmentation import Augmentation
from tversky_seg.data.patches.batches import PatchBatches
from tversky_seg.data.patches.samplers import UniformSampler
from tversky_seg.data.preprocessing.case_cache import prepare
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocess

BOTH = ("FLAIR", "T1")
FLAIR_ALONE = Preprocessing(BOTH, require=("FLAIR",))


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Three cases: both modalities, FLAIR alone, T1 alone."""
    rows = [add_case(tmp_path, f"c{number}", seed=number) for number in range(3)]
    rows[1]["T1"] = ""
    rows[2]["FLAIR"] = ""
    return write_rows(tmp_path / "manifest.csv", rows)


def test_an_empty_cell_is_an_error_unless_something_is_required(manifest: Path) -> None:
    with pytest.raises(DataError, match=r"line 3: empty cell for T1.*data.require=\[FLAIR\]"):
        read_manifest(manifest)
    with pytest.raises(DataError, match="line 4: empty cell for FLAIR") as caught:
        read_manifest(manifest, modalities=BOTH, require=("FLAIR",))
    assert len(caught.value.faults) == 1
    cases = read_manifest(manifest, modalities=BOTH, require=())
    assert [tuple(case.images) for case in cases] == [BOTH, ("FLAIR",), ("T1",)]


def test_a_case_has_at_least_one_image(tmp_path: Path) -> None:
    rows = [add_case(tmp_path, f"c{number}", seed=number) for number in range(2)]
    rows[1]["T1"] = rows[1]["FLAIR"] = ""
    manifest = write_rows(tmp_path / "manifest.csv", rows)
    with pytest.raises(DataError, match="line 3: empty cell for FLAIR, T1"):
        read_manifest(manifest, modalities=BOTH, require=())


def test_a_data_set_of_ragged_cases_names_all_modalities(manifest: Path) -> None:
    dataset = with_modalities(Dataset(manifest=manifest, require=()))
    assert dataset.modalities == BOTH
    assert case_ids(find_cases(dataset)) == ["c0", "c1", "c2"]
    with pytest.raises(DataError, match=r"data.require: T2.*\['FLAIR', 'T1'\]"):
        Dataset(manifest=manifest, modalities=BOTH, require=("T2",))
    with pytest.raises(DataError, match=r"data.require.*\[FLAIR\]"):
        Dataset(manifest=manifest, require="FLAIR")


def test_a_missing_modality_is_a_channel_of_zeros(manifest: Path) -> None:
    whole, flair, t1 = read_manifest(manifest, require=())
    settings = Preprocessing(BOTH, require=())
    assert preprocess(whole, settings).missing == ()
    for case, name, channel in ((flair, "FLAIR", 0), (t1, "T1", 1)):
        prepared = preprocess(case, settings)
        alone = preprocess(case, Preprocessing((name,)))
        assert prepared.missing == (1 - channel,)
        assert not prepared.image[1 - channel].any()
        np.testing.assert_array_equal(prepared.image[channel], alone.image[0])
        np.testing.assert_array_equal(prepared.target, alone.target)
        assert prepared.image_scale.shape == (2,)
        # The grid is that of the first modality that is there.
        np.testing.assert_array_equal(prepared.geometry.input_affine, alone.geometry.input_affine)
    with pytest.raises(DataError, match="c2: has no FLAIR"):
        preprocess(t1, FLAIR_ALONE)


def test_several_missing_channels_stay_in_place(tmp_path: Path) -> None:
    (case,) = read_manifest(make_cohort(tmp_path, n=1))
    names = ("A", "FLAIR", "B", "T1", "C")
    prepared = preprocess(case, Preprocessing(names, require=()))
    plain = preprocess(case, Preprocessing(BOTH))
    assert prepared.missing == (0, 2, 4)
    np.testing.assert_array_equal(prepared.image[[1, 3]], plain.image)
    assert not prepared.image[[0, 2, 4]].any()
    np.testing.assert_array_equal(prepared.image_scale[[1, 3]], plain.image_scale)


def test_the_cache_tells_what_is_missing_and_not_what_must_be_there(manifest: Path) -> None:
    whole, flair, _ = read_manifest(manifest, require=())
    cache = {"cache_dir": manifest.parent / "cache"}
    prepared = prepare(flair, FLAIR_ALONE, **cache)
    assert prepare(flair, FLAIR_ALONE, **cache).missing == (1,)
    assert prepared.folder == prepare(flair, replace(FLAIR_ALONE, require=()), **cache).folder
    # A cohort without gaps keeps its entries.
    assert (
        prepare(whole, FLAIR_ALONE, **cache).folder
        == prepare(whole, Preprocessing(BOTH), **cache).folder
    )


def test_a_training_knows_the_sets_that_it_sees(manifest: Path) -> None:
    whole, flair, _ = read_manifest(manifest, require=())
    cases = [preprocess(case, FLAIR_ALONE) for case in (flair, whole, flair)]
    assert modality_sets(cases, FLAIR_ALONE) == [["FLAIR"], ["FLAIR", "T1"]]
    assert required_channels(FLAIR_ALONE) == (0,)
    assert required_channels(Preprocessing(BOTH)) == ()


@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
def test_augmentation_leaves_a_missing_channel_0_and_one_that_is_there(
    manifest: Path, dropout: float
) -> None:
    _, flair, _ = read_manifest(manifest, require=())
    case = preprocess(flair, FLAIR_ALONE)
    changes = {"shift_probability": 1.0, "noise_probability": 1.0, "bias_field_probability": 1.0}
    batches = PatchBatches(
        [case],
        UniformSampler(patch_size=16),
        Augmentation(dropout_probability=dropout, **changes),
        batch_size=2,
    )
    for step in range(4):
        image = batches[step].image
        assert not image[:, 1].any()
        assert image[:, 0].any()


def test_dropout_never_takes_a_required_modality(manifest: Path) -> None:
    whole, *_ = read_manifest(manifest, require=())
    case = preprocess(whole, FLAIR_ALONE)
    augmentation = Augmentation(dropout_probability=0.5)
    sampler = UniformSampler(patch_size=16)
    n_without = torch.zeros(2)
    for required in ((), (0,)):
        batches = PatchBatches(
            [case], sampler, augmentation, batch_size=8, required_channels=required
        )
        n_without[len(required)] = sum(
            int(not image[0].any()) for step in range(3) for image in batches[step].image
        )
    assert n_without[0] > 0
    assert n_without[1] == 0


def test_metadata_is_kept_in_the_manifest_of_a_run(tmp_path: Path) -> None:
    rows = [add_case(tmp_path, f"c{number}", seed=number) for number in range(2)]
    for row, scanner in zip(rows, ("Philips", ""), strict=True):
        row |= {"scanner": scanner, "age": "45"}
    cases = read_manifest(write_rows(tmp_path / "m.csv", rows), modalities=("FLAIR",))
    # T1 is a column of images that is not asked for, and no metadata.
    assert [case.metadata for case in cases] == [
        {"scanner": "Philips", "age": "45"},
        {"age": "45"},
    ]
    write_manifest(cases, tmp_path / "run" / "manifest.csv")
    with (tmp_path / "run" / "manifest.csv").open() as file:
        assert [row["scanner"] for row in csv.DictReader(file)] == ["Philips", ""]


def test_the_check_tells_who_has_what(manifest: Path, caplog: pytest.LogCaptureFixture) -> None:
    from tversky_seg.data_check.cohort import cohort_findings
    from tversky_seg.data_check.examine import examine

    caplog.set_level(logging.CRITICAL)
    settings = Preprocessing(BOTH, require=())
    cases = read_manifest(manifest, require=())
    reports = [examine(case, settings) for case in cases]
    assert not [finding for report in reports for finding in report.findings]
    texts = [str(finding) for finding in cohort_findings(reports, normalization="zscore")]
    assert any("FLAIR + T1 in 1 (c0); FLAIR in 1 (c1); T1 in 1 (c2)" in text for text in texts)
