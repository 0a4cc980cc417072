"""Files of a release say the same: versions, requirements, and what an image copies."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def read_yaml(name: str) -> dict:
    content: dict = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return content


def test_every_file_has_the_version_of_the_package() -> None:
    version = PROJECT["version"]
    assert read_yaml("CITATION.cff")["version"] == version
    assert read_yaml("conda/recipe.yaml")["context"]["version"] == version
    assert f"version = {{{version}}}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(version)} \(", CHANGELOG, re.MULTILINE)


def test_a_version_of_the_changelog_has_each_heading_and_each_item_once() -> None:
    for version in re.split(r"^## ", CHANGELOG, flags=re.MULTILINE)[1:]:
        headings = re.findall(r"^### .*$", version, re.MULTILINE)
        items = re.findall(r"^- .*$", version, re.MULTILINE)
        assert len(headings) == len(set(headings))
        assert len(items) == len(set(items))


def test_a_release_needs_a_date_in_the_changelog() -> None:
    workflow = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    (pattern,) = re.findall(r'grep -qE "(.*)" CHANGELOG', workflow)
    dated = pattern.replace("$version", PROJECT["version"])
    assert re.search(dated, f"## {PROJECT['version']} (2026-01-31)")
    assert not re.search(dated, f"## {PROJECT['version']} (unreleased)")


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
