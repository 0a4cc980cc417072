"""Files of a release say the same: versions, requirements, and what an image copies."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def read_yaml(name: str) -> dict:
    content: dict = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return content


def test_every_file_has_the_version_of_the_package() -> None:
    version = PROJECT["version"]
    assert read_yaml("CITATION.cff")["version"] == version
    assert read_yaml("conda/recipe.yaml")["context"]["version"] == version
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(version)}\b", changelog, re.MULTILINE)


def test_conda_requires_what_pip_requires() -> None:
    expected = set()
    for requirement in PROJECT["dependencies"]:
        name, limits = re.fullmatch(r"([\w-]+)(.*)", requirement).groups()
        expected.add(f"{CONDA_NAMES.get(name, name.lower())} {limits}")
    run = set(read_yaml("conda/recipe.yaml")["requirements"]["run"])
    assert run - {"python >=${{ python_min }}"} == expected


def test_an_apptainer_image_copies_files_that_exist() -> None:
    text = (ROOT / "Apptainer.def").read_text(encoding="utf-8")
    copied = re.findall(r"^    (\S+) /build/(\S+)$", text, re.MULTILINE)
    assert len(copied) >= 6
    for source, target in copied:
        assert source == target
        assert (ROOT / source).exists()


def test_workflows_and_forms_are_yaml() -> None:
    files = sorted((ROOT / ".github").rglob("*.yml"))
    assert {"ci.yml", "release.yml", "bug.yml"} <= {file.name for file in files}
    for file in files:
        assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)
