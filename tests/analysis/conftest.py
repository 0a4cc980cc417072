"""Evaluations whose report leaves out its charts, which take most of the time of a small one."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def _no_charts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tversky_seg.report.page.draw_charts", lambda *_: iter(()))
        yield
