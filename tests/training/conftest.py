"""A run that nothing stopped, to compare with."""

from pathlib import Path

import pytest

from helpers.trainers import Blobs, a_trainer, fake_validation


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that nothing stopped."""
    run = tmp_path_factory.mktemp("whole")
    a_trainer().fit(Blobs(), run, validate=fake_validation(0.4, 0.8))
    return run
