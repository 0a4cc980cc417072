"""Names of settings, and alpha and beta of their losses."""

import pytest

from helpers.evaluated_runs import INVERSE_WEIGHTS, TVERSKY, write_sweep_run
from tversky_seg.analysis.setting_names import loss_weights
from tversky_seg.analysis.sweep import group_runs, read_sweep


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"loss._target_": TVERSKY, "loss.alpha": None, "loss.beta": None}, (0.3, 0.7)),
        ({"loss._target_": TVERSKY, "loss.alpha": 0.2, "loss.beta": None}, (0.2, 0.8)),
        ({"loss._target_": "tversky_seg.losses.DiceLoss"}, (0.5, 0.5)),
        (
            {"loss._target_": "tversky_seg.losses.AsymmetricSimilarityLoss", "loss.b": 2.0},
            (0.2, 0.8),
        ),
        ({"loss._target_": "tversky_seg.losses.BCELoss"}, None),
    ],
)
def test_a_losss_weights_are_those_it_acts_with(settings, expected):
    found = loss_weights(settings)
    assert found == (None if expected is None else pytest.approx(expected))


def test_settings_of_different_classes_are_named_by_class_and_what_differs_within(tmp_path):
    write_sweep_run(tmp_path / "a", {"x": 0.5}, loss={"beta": 0.6})
    write_sweep_run(tmp_path / "b", {"x": 0.5}, loss={"beta": 0.8})
    dice = {"_target_": "tversky_seg.losses.DiceLoss"}
    write_sweep_run(tmp_path / "c", {"x": 0.5}, loss=dice)
    write_sweep_run(tmp_path / "d", {"x": 0.5}, loss=dice, weighting=INVERSE_WEIGHTS)
    assert {setting.name for setting in group_runs(read_sweep([tmp_path]))} == {
        "TverskyLoss, loss.alpha=0.4, loss.beta=0.6, no weighting",
        "TverskyLoss, loss.alpha=0.2, loss.beta=0.8, no weighting",
        "DiceLoss, no weighting",
        "DiceLoss, inverse_weights",
    }
