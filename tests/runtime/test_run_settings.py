"""Settings of a run: which may change when it is resumed."""

import pytest

from tversky_seg.runtime.run_settings import differences, fingerprint, flatten


def test_values_are_flattened_to_dotted_keys() -> None:
    settings = {"loss": {"alpha": 0.3, "weights": [1, 2]}, "seed": 0, "weighting": {}}
    assert dict(flatten(settings)) == {
        "loss.alpha": 0.3,
        "loss.weights": [1, 2],
        "seed": 0,
        "weighting": {},
    }


def test_a_setting_that_decides_numbers_makes_another_run() -> None:
    before = {"loss": {"alpha": 0.3}}
    now = {"loss": {"alpha": 0.4}}
    (change,) = differences(before, now)
    assert change.startswith("loss.alpha")
    assert fingerprint(before) != fingerprint(now)


@pytest.mark.parametrize("name", ["device", "n_workers", "threads", "recompute", "max_hours"])
def test_a_setting_that_changes_no_number_is_free(name: str) -> None:
    before = {"trainer": {name: 1}}
    now = {"trainer": {name: 2}}
    assert differences(before, now) == []
    assert fingerprint(before) == fingerprint(now)
