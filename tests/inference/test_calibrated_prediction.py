"""Calibrated predictions: other probabilities, the same masks, and a switch to turn it off."""

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.checkpoints import a_checkpoint
from helpers.cohorts import add_case
from helpers.networks import Constant, FirstChannel
from helpers.oblique_cases import a_case
from tversky_seg import Segmenter
from tversky_seg.data.preprocessing import Preprocessing
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.inference.case_predictor import prepare_input
from tversky_seg.inference.ensemble import Ensemble, Member, entropy
from tversky_seg.inference.predict import predict_case
from tversky_seg.inference.settings import Inference
from tversky_seg.inference.sliding_window import SlidingWindow
from tversky_seg.inference.trained_model import build_ensemble, load_trained
from tversky_seg.metrics.temperature import calibrated, calibrated_threshold
from tversky_seg.runtime.files import read_json

WINDOWS = SlidingWindow(8, window="uniform", overlap=0.0)


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedCase:
    # Another voxel size than the file's, so that the way back interpolates.
    settings = Preprocessing(modalities=("FLAIR",), spacing_mm=(1.5, 1.5, 1.5))
    return prepare_input(a_case(tmp_path), settings)


def test_a_temperature_changes_no_mask_even_where_the_grid_differs(prepared: PreparedCase) -> None:
    plain = predict_case(Ensemble([Member(FirstChannel(), WINDOWS)]), prepared)
    member = Member(FirstChannel(), WINDOWS, temperature=(3.0,))
    result = predict_case(Ensemble([member]), prepared)
    assert np.abs(result - plain).max() > 0.1
    for threshold in (20_000.5 / 65535, 50_000.5 / 65535):
        moved = calibrated_threshold(threshold, 3.0)
        assert ((result >= moved) != (plain >= threshold)).sum() <= 1
    assert 0 < (plain >= threshold).mean() < 1


def test_members_are_calibrated_before_their_mean(prepared: PreparedCase) -> None:
    members = [
        Member(Constant(0.9), WINDOWS, temperature=(2.0,)),
        Member(Constant(0.4), WINDOWS, temperature=(1.0,)),
    ]
    ensemble = Ensemble(members)
    assert list(ensemble.temperature) == [1.0], "nothing is left to do"
    probability, _ = ensemble.predict(prepared)
    # logit(0.9) / 2 is logit(0.75).
    torch.testing.assert_close(probability, torch.full_like(probability, (0.75 + 0.4) / 2))


def test_votes_stay_where_threshold_and_probability_move_alike(prepared: PreparedCase) -> None:
    def votes(temperature: float) -> torch.Tensor:
        members = []
        for p in (0.2, 0.7, 0.9):
            threshold = calibrated_threshold(0.8, temperature)
            members.append(
                Member(Constant(p), WINDOWS, threshold=(threshold,), temperature=(temperature,))
            )
        return Ensemble(members, combine="vote").predict(prepared)[0]

    torch.testing.assert_close(votes(4.0), votes(1.0))


def test_uncertainty_is_that_of_the_calibrated_probability(prepared: PreparedCase) -> None:
    member = Member(Constant(0.9), WINDOWS, temperature=(2.0,))
    raw, unsure = Ensemble([member], uncertainty="entropy").predict(prepared)
    torch.testing.assert_close(raw, torch.full_like(raw, 0.9))
    torch.testing.assert_close(unsure, entropy(torch.full_like(raw, 0.75)))
    of_views = Member(Constant(0.9), SlidingWindow(8, tta="rotations180"), temperature=(2.0,))
    raw, differing = Ensemble([of_views], uncertainty="disagreement").predict(prepared)
    torch.testing.assert_close(raw, torch.full_like(raw, 0.9))
    assert differing.max() < 1e-5, "views of one mind"


def test_a_segmenter_is_calibrated_as_its_checkpoint_says(tmp_path: Path) -> None:
    threshold = 39_999.5 / 65535
    plain = Segmenter.load(a_checkpoint(tmp_path / "plain.pt", threshold=threshold))
    warm = Segmenter.load(a_checkpoint(tmp_path / "warm.pt", threshold=threshold, temperature=2.0))
    off = Segmenter.load(tmp_path / "warm.pt", temperature=1)
    # Twenty voxels a side, and two modalities.
    add_case(tmp_path / "scans", "a", seed=0)
    images = {name: tmp_path / "scans" / f"a_{name}.nii.gz" for name in plain.modalities}
    of_plain, of_warm, of_off = plain(images), warm(images), off(images)
    np.testing.assert_allclose(
        of_warm.probability, calibrated(of_plain.probability, 2.0), atol=4e-5
    )
    np.testing.assert_array_equal(of_off.probability, of_plain.probability)
    np.testing.assert_array_equal(of_warm.mask, of_plain.mask)
    assert of_plain.mask.any()
    of_warm.save(tmp_path / "masks")
    saved = read_json(tmp_path / "masks" / "predictions.json")
    assert saved["temperature"] == 2.0
    assert saved["threshold"] == pytest.approx(calibrated_threshold(threshold, 2.0))


def test_a_chosen_peak_moves_with_the_temperature_and_one_that_is_set_does_not(
    tmp_path: Path,
) -> None:
    chosen = {"threshold": 0.5, "min_peak": 0.9, "temperature": 2.0}
    # logit(0.9) / 2 is logit(0.75).
    assert Inference().with_operating_point(chosen).min_peak == pytest.approx(0.75, abs=1e-4)
    assert Inference(min_peak=0.9).with_operating_point(chosen).min_peak == 0.9
    assert Inference(temperature=1).with_operating_point(chosen).min_peak == 0.9
    path = a_checkpoint(tmp_path / "older.pt", temperature=2.0)
    assert load_trained(path).inference.min_peak == 0, "predicts as it did"
    add_case(tmp_path / "scans", "a", seed=0)
    state = torch.load(path, weights_only=True)
    segmenter = Segmenter.load(path)
    images = {name: tmp_path / "scans" / f"a_{name}.nii.gz" for name in segmenter.modalities}
    probability = Segmenter.load(path, temperature=1)(images).probability
    middle = float(np.quantile(probability, 0.9999))
    torch.save({**state, "threshold": float(np.quantile(probability, 0.99))}, path)
    every = Segmenter.load(path)(images).mask
    torch.save({**torch.load(path, weights_only=True), "min_peak": middle}, path)
    masks = [Segmenter.load(path, temperature=t)(images).mask for t in (1, None, 3)]
    assert 0 < masks[0].sum() < every.sum()
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])


def test_the_peak_of_an_ensemble_is_the_mean_and_no_share_of_votes(tmp_path: Path) -> None:
    models = []
    for number, peak in enumerate((0.8, 0.9)):
        path = a_checkpoint(tmp_path / f"{number}.pt", seed=number)
        torch.save({**torch.load(path, weights_only=True), "min_peak": peak}, path)
        models.append(load_trained(path))
    _, settings = build_ensemble(models, overrides={})
    assert settings.min_peak == pytest.approx(0.85)
    _, settings = build_ensemble(models, overrides={"min_peak": 0.6})
    assert settings.min_peak == 0.6
    _, settings = build_ensemble(models, overrides={}, combine="vote")
    assert settings.min_peak == 0
    _, settings = build_ensemble(models, overrides={"min_peak": 1}, combine="vote")
    assert settings.min_peak == 1, "of the share of votes"


def test_an_ensemble_takes_the_mean_of_its_calibrated_thresholds(tmp_path: Path) -> None:
    paths = [
        a_checkpoint(tmp_path / "a.pt", seed=0, threshold=0.9, temperature=2.0),
        a_checkpoint(tmp_path / "b.pt", seed=1, threshold=0.3),
    ]
    models = [load_trained(path) for path in paths]
    ensemble, settings = build_ensemble(models, overrides={})
    assert settings.threshold == pytest.approx((0.75 + 0.3) / 2, abs=1e-4)
    assert [list(member.temperature) for member in ensemble.members] == [[2.0], [1.0]]
    ensemble, settings = build_ensemble(models, overrides={"temperature": 1.0})
    assert settings.threshold == pytest.approx(0.6)
    ensemble, settings = build_ensemble(models, overrides={"threshold": 0.2})
    assert settings.threshold == 0.2
    assert [member.threshold for member in ensemble.members] == [(0.2,), (0.2,)]
    ensemble, settings = build_ensemble(models, overrides={"threshold": 0.2}, combine="vote")
    assert settings.threshold == 0.2, "of the share of votes"
    assert ensemble.members[1].threshold == (0.3,)


def test_of_several_classes_each_has_its_own_temperature() -> None:
    chosen = {"threshold": {"liver": 0.9, "tumour": 0.9}, "temperature": {"liver": 2.0}}
    settings = Inference().with_operating_point(chosen)
    assert settings.threshold_of("liver") == pytest.approx(0.75, abs=1e-4)
    assert settings.threshold_of("tumour") == 0.9
    assert settings.temperatures(["liver", "tumour"]) == {"liver": 2.0, "tumour": 1.0}
    with pytest.raises(ValueError, match=r"temperature.*got 0"):
        Inference(temperature={"liver": 0.0})
