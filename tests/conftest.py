"""Shared fixtures: the folder of real data."""

import os
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--real-data",
        default=os.environ.get("TVERSKY_SEG_REAL_DATA"),
        help="folder with open_ms_data/, Task04_Hippocampus/ and metric_oracles/ (default: "
        "TVERSKY_SEG_REAL_DATA); tests that need it skip without it",
    )


@pytest.fixture(scope="session")
def real_data(request: pytest.FixtureRequest) -> Path:
    """The folder of real data, or a skip that says what is missing."""
    name = request.config.getoption("--real-data")
    if name is None:
        pytest.skip("needs real data: --real-data FOLDER or TVERSKY_SEG_REAL_DATA")
    folder = Path(name).resolve()
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}")
    return folder
