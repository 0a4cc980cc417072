"""A run of four steps that the tests of the commands share; their reports have no charts."""

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


@pytest.fixture(autouse=True, scope="module")
def _no_charts():
    """Leave out the charts of a report, which take most of the time of a small evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tversky_seg.report.page.draw_charts", lambda *_: iter(()))
        yield
