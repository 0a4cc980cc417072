"""The wheel carries the configs, and finds them where it is installed."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers.command_line import CONFIGS, ROOT
from tversky_seg.config.config_files import CONFIG_DIR


def test_a_clone_uses_the_configs_at_its_top() -> None:
    assert CONFIG_DIR == CONFIGS


@pytest.mark.slow
def test_the_wheel_carries_every_config_and_finds_them(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    source.mkdir()
    for folder in ("configs", "src"):
        shutil.copytree(ROOT / folder, source / folder)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--quiet"]
    options = ["--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*command, *options], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")

    installed = tmp_path / "site" / "tversky_seg" / "configs"
    names = {path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml")}
    assert {path.relative_to(installed) for path in installed.rglob("*.yaml")} == names

    script = "from tversky_seg.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "train", "loss=tverski"],
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "did you mean tversky?" in done.stderr
