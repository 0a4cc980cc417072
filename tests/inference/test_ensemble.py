import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy

from helpers.networks import Constant, FirstChannel, Lopsided
from helpers.oblique_cases import FLAIR, a_case
from tversky_seg.data.nifti import read_volume
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.inference.case_predictor import prepare_input
from tversky_seg.inference.ensemble import Ensemble, Member, entropy
from tversky_seg.inference.predict import predict_case, predict_cases
from tversky_seg.inference.settings import Inference
from tversky_seg.inference.sliding_window import SlidingWindow

WINDOWS = SlidingWindow(8, window="uniform", overlap=0.0)


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedCase:
    return prepare_input(a_case(tmp_path), FLAIR)


def sure_of(*probabilities: float, **settings: object) -> Ensemble:
    return Ensemble([Member(Constant(p), WINDOWS) for p in probabilities], **settings)  # type: ignore[arg-type]


def test_the_mean_of_members_by_hand(prepared: PreparedCase) -> None:
    probability, uncertainty = sure_of(0.1, 0.2, 0.6).predict(prepared)
    torch.testing.assert_close(probability, torch.full_like(probability, 0.3))
    assert uncertainty is None


def test_votes_are_cast_at_each_members_own_threshold(prepared: PreparedCase) -> None:
    thresholds = {0.1: 0.05, 0.2: 0.5, 0.6: 0.5, 0.7: 0.9}
    members = [Member(Constant(p), WINDOWS, threshold=(t,)) for p, t in thresholds.items()]
    probability, _ = Ensemble(members, combine="vote").predict(prepared)
    torch.testing.assert_close(probability, torch.full_like(probability, 2 / 4))


def test_entropy_is_that_of_scipy_and_finite_where_the_network_is_sure() -> None:
    p = torch.linspace(0, 1, 101)[None, :, None, None]
    expected = scipy_entropy(np.stack([p.ravel(), 1 - p.ravel()]), base=2)
    np.testing.assert_allclose(entropy(p).ravel(), expected, atol=1e-6)
    assert entropy(torch.full((1, 1, 1, 1), 0.5)).item() == pytest.approx(1)


def test_uncertainty_by_hand(prepared: PreparedCase) -> None:
    def bits(p: float) -> float:
        return -p * math.log2(p) - (1 - p) * math.log2(1 - p)

    _, unsure = sure_of(0.2, 0.6, uncertainty="entropy").predict(prepared)
    torch.testing.assert_close(unsure, torch.full_like(unsure, bits(0.4)))
    _, differing = sure_of(0.2, 0.6, uncertainty="disagreement").predict(prepared)
    torch.testing.assert_close(
        differing, torch.full_like(differing, bits(0.4) - (bits(0.2) + bits(0.6)) / 2)
    )
    _, agreed = sure_of(0.4, 0.4, uncertainty="disagreement").predict(prepared)
    assert agreed.max() < 1e-6, "unsure, but of one mind"
    mean, _ = sure_of(0.2, 0.6, uncertainty="disagreement").predict(prepared)
    torch.testing.assert_close(mean, torch.full_like(mean, 0.4))


def test_disagreement_is_the_mean_divergence_of_the_parts_from_their_mean(
    prepared: PreparedCase,
) -> None:
    parts, mean = np.array([0.05, 0.3, 0.9]), 0.05 / 3 + 0.1 + 0.3
    divergences = [scipy_entropy([p, 1 - p], [mean, 1 - mean], base=2) for p in parts]
    _, disagreement = sure_of(*parts, uncertainty="disagreement").predict(prepared)
    torch.testing.assert_close(
        disagreement, torch.full_like(disagreement, float(np.mean(divergences)))
    )


def test_views_of_one_network_disagree_where_it_depends_on_their_side(
    prepared: PreparedCase,
) -> None:
    windows = replace(WINDOWS, tta="rotations180")
    mean, disagreement = Ensemble(
        [Member(Lopsided(), windows)], uncertainty="disagreement"
    ).predict(prepared)
    plain, _ = Ensemble([Member(Lopsided(), windows)]).predict(prepared)
    torch.testing.assert_close(mean, plain)
    assert disagreement.max() > 0.1
    _, disagreement = Ensemble(
        [Member(FirstChannel(), windows)], uncertainty="disagreement"
    ).predict(prepared)
    assert disagreement.max() < 1e-5


def test_votes_are_unsure_where_they_are_split(prepared: PreparedCase) -> None:
    for uncertainty in ("entropy", "disagreement"):
        _, split = sure_of(0.1, 0.9, combine="vote", uncertainty=uncertainty).predict(prepared)
        torch.testing.assert_close(split, torch.ones_like(split))
        _, agreed = sure_of(0.8, 0.9, combine="vote", uncertainty=uncertainty).predict(prepared)
        assert not agreed.any()


def test_lesions_are_voted_on_by_all_views_of_all_members(prepared: PreparedCase) -> None:
    # Three of four say lesion everywhere: one candidate, which is the volume.
    probability, unsure = sure_of(
        0.9, 0.8, 0.2, 0.7, combine="lesions", uncertainty="entropy"
    ).predict(prepared)
    torch.testing.assert_close(probability, torch.full_like(probability, 0.75))
    torch.testing.assert_close(unsure, entropy(probability))
    views = Member(Lopsided(), replace(WINDOWS, tta="rotations180"))
    predicted = Ensemble([views], combine="lesions").predict_parts(prepared)
    assert len(predicted.parts) == 4
    with pytest.raises(ValueError, match=r"combine.*got lesions"):
        sure_of(0.1, combine="lesions")


def test_wrong_words_and_lonely_disagreement_are_refused() -> None:
    with pytest.raises(ValueError, match=r"combine.*got median"):
        sure_of(0.1, combine="median")
    with pytest.raises(ValueError, match=r"uncertainty.*got variance"):
        sure_of(0.1, uncertainty="variance")
    with pytest.raises(ValueError, match=r"uncertainty.*got disagreement"):
        sure_of(0.1, uncertainty="disagreement")


def test_uncertainty_is_written_on_the_grid_of_the_file_and_resumed(tmp_path: Path) -> None:
    case, settings = a_case(tmp_path), Inference(patch_size=8, threshold=0.5)
    ensemble = Ensemble(
        [Member(Constant(0.2), WINDOWS, "a"), Member(FirstChannel(), WINDOWS, "b")],
        uncertainty="entropy",
    )
    assert predict_cases(ensemble, [case], FLAIR, tmp_path / "p", inference=settings) == {}
    uncertainty = read_volume(tmp_path / "p" / "a_uncertainty.nii.gz")
    probability = read_volume(tmp_path / "p" / "a_probability.nii.gz")
    assert uncertainty.shape == probability.shape
    p = probability.data.astype(np.float64)
    inside = p > 0
    np.testing.assert_allclose(
        uncertainty.data[inside], scipy_entropy(np.stack([p, 1 - p]), base=2)[inside], atol=1e-3
    )
    (tmp_path / "p" / "a_uncertainty.nii.gz").unlink()
    assert predict_cases(ensemble, [case], FLAIR, tmp_path / "p", inference=settings) == {}
    assert (tmp_path / "p" / "a_uncertainty.nii.gz").is_file()


def test_one_network_is_an_ensemble_of_one(tmp_path: Path) -> None:
    prepared = prepare_input(a_case(tmp_path), FLAIR)
    alone = predict_case(FirstChannel(), prepared, windows=SlidingWindow(8))
    np.testing.assert_array_equal(
        predict_case(Ensemble([Member(FirstChannel(), SlidingWindow(8))]), prepared), alone
    )
