"""A run of four steps that the tests of the commands share."""

import contextlib

import pytest

from helpers.cohorts import make_cohort
from helpers.command_line import train
from helpers.runs import Run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of four steps on six cases, in the directory that it chose itself."""
    manifest = make_cohort(tmp_path_factory.mktemp("cohort"))
    here = tmp_path_factory.mktemp("here")
    with contextlib.chdir(here):
        outcome = train(manifest, None)
    assert outcome.status == 0, outcome.stderr
    folders = list((here / "runs").iterdir())
    assert len(folders) == 1
    return Run(folders[0], outcome, manifest)
