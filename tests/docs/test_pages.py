"""Pages of the documentation: each has a place on the site, and their links lead somewhere."""

import re
from pathlib import Path

import pytest
import yaml

from helpers.command_line import ROOT
from tversky_seg.cli import COMMANDS

DOCS = ROOT / "docs"
AT_THE_TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")]
PAGES = sorted(DOCS.rglob("*.md"))
LINK = re.compile(r"\]\((?P<path>[^)\s#]*)(?:#(?P<anchor>[^)\s]*))?\)")
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (?P<text>.*)$", re.MULTILINE)
FROM_OUTSIDE = {"contributing.md", "changelog.md", "datasets.md"}  # see scripts/dev/site_pages.py


def nav_pages() -> list[str]:
    """List the pages that the navigation of the site names."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    return re.findall(r"[\w/]+\.(?:md|ipynb)", str(config["nav"]))


def anchors(page: Path) -> set[str]:
    """List the anchors of a page, as code hosts and the site make them of its headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    names = set()
    for heading in HEADING.finditer(text):
        plain = re.sub(r"[^\w\s-]", "", heading["text"].lower())
        names.add(re.sub(r"\s+", "-", plain.strip()))
    return names


def test_every_page_has_one_place_in_the_navigation() -> None:
    pages = [path.relative_to(DOCS).as_posix() for path in (*PAGES, *DOCS.glob("*.ipynb"))]
    assert sorted(nav_pages()) == sorted([*pages, *FROM_OUTSIDE])


@pytest.mark.parametrize("page", [*PAGES, *AT_THE_TOP], ids=lambda path: path.stem)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.finditer(text):
        if ":" in link["path"]:
            continue
        target = (page.parent / link["path"]) if link["path"] else page
        assert target.exists(), link[0]
        if link["anchor"] and target.suffix == ".md":
            assert link["anchor"] in anchors(target), link[0]


@pytest.mark.parametrize("page", ["README.md", "docs/install.md", "docs/settings.md"])
def test_the_pages_that_list_the_commands_name_them_all(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    listed = set(re.findall(r"`(?:tversky-seg )?([a-z-]+)`", text))
    assert listed >= set(COMMANDS)
