"""Shared fixtures: where the real data lie, and how a test gets at them."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--real-data",
        default=str(Path(__file__).parents[1] / ".." / "shared" / "data"),
        help="folder with open_ms_data/, Task04_Hippocampus/ and metric_oracles/; tests that need it skip without it",
    )


@pytest.fixture(scope="session")
def real_data(request: pytest.FixtureRequest) -> Path:
    """The folder of real data, or a skip that says what is missing."""
    folder = Path(request.config.getoption("--real-data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; name the folder by --real-data")
    return folder
