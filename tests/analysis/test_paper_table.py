"""The table of a paper: its numbers, ours, and the notes below."""

import csv
import math
from pathlib import Path

import pytest

from helpers.command_line import ROOT
from tversky_seg.analysis.paper_runs import Request
from tversky_seg.analysis.paper_table import (
    mean_and_spread,
    paper_table,
    table_notes,
    write_paper_csv,
)
from tversky_seg.analysis.papers import Column, Paper, read_papers

PAPERS = read_papers(ROOT / "src" / "tversky_seg" / "commands" / "papers.yaml")
SALEHI = PAPERS["salehi2017"]


def request(paper: Paper, *, data: Path | None = None, scale: str = "small") -> Request:
    return Request(
        paper=paper,
        data=data,
        scale=scale,
        seeds=(0, 1),
        rows=paper.rows,
        output_dir=Path("out"),
        settings=(),
    )


# The papers


def test_the_numbers_of_the_papers_are_those_of_the_experiment_files() -> None:
    folder = ROOT / "configs" / "experiment"
    for row, printed in SALEHI.printed.items():
        text = (folder / "salehi2017" / f"{row}.yaml").read_text(encoding="utf-8")
        assert all(f"{value:.2f}" in text for value in printed.values())
    for name in ("LiTS", "LUNA16"):
        for row, printed in PAPERS[f"shirokikh2020_{name.lower()}"].printed.items():
            text = (folder / "shirokikh2020" / f"{row}.yaml").read_text(encoding="utf-8")
            dice = printed["Object Dice"]
            recall = printed["Average recall"]
            assert f"{name} {dice:.2f}, {recall:.2f}" in text


@pytest.mark.parametrize("paper", PAPERS.values(), ids=PAPERS)
def test_every_printed_number_has_its_column(paper: Paper) -> None:
    names = {column.name for column in paper.columns}
    for printed in paper.printed.values():
        assert set(printed) <= names


# A number of metrics.json


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("mean.dice", 50.0),
        ("raters.1.isbi_score", 25.0),
        ("raters.2.isbi_score", math.nan),
        ("mean.undefined", math.nan),
        ("mean.dice.deeper", math.nan),
        ("absent.dice", math.nan),
        (None, math.nan),
    ],
)
def test_a_column_looks_up_its_number(metric: str | None, expected: float) -> None:
    metrics = {
        "mean": {"dice": 0.5, "undefined": None},
        "raters": [{"isbi_score": 0.1}, {"isbi_score": 0.25}],
    }
    column = Column("name", metric, factor=100)
    assert column.value(metrics) == pytest.approx(expected, nan_ok=True)


# The table


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((99.96, 99.96004), "99.96 ± 0.00"),
        ((70.0, 72.82), "71.41 ± 1.99"),
        ((70.0, 71.0), "70.5 ± 0.7"),
        ((0.5,), "0.5"),
        ((float("nan"), 0.25), "0.25"),
        ((float("nan"),), "–"),
    ],
)
def test_spreads_have_the_decimals_of_their_mean(values: tuple[float, ...], text: str) -> None:
    assert mean_and_spread(values) == text


def test_the_papers_numbers_stand_above_ours() -> None:
    seeds = [{"mean": {"dice": 0.70}}, {"mean": {"dice": 0.71}}]
    table = paper_table(SALEHI, {"tversky_b05": seeds})
    header, _, paper, ours = table.splitlines()
    assert header.startswith("| Row |  | DSC | Sensitivity |")
    assert paper.startswith("| tversky_b05 | paper | 53.42 | 49.85 |")
    assert ours.startswith("| tversky_b05 | ours | 70.5 ± 0.7 | – |")


def test_a_row_without_printed_numbers_has_one_line() -> None:
    table = paper_table(PAPERS["hashemi2018_msseg"], {"focal": [{}]})
    assert len(table.splitlines()) == 3


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("shirokikh2020_lits", "| iwdl | paper | 0.49 | 0.79 |"),
        ("shirokikh2020_luna16", "| iwdl | paper | 0.77 | 0.83 |"),
    ],
)
def test_each_data_set_has_its_own_numbers(name: str, printed: str) -> None:
    assert printed in paper_table(PAPERS[name], {"iwdl": [{}]})


def test_the_csv_file_has_a_line_for_each_number(tmp_path: Path) -> None:
    seeds = [{"mean": {"dice": 0.5}}, {"mean": {"dice": None}}]
    path = tmp_path / "table.csv"
    write_paper_csv(path, SALEHI, {"tversky_b05": seeds}, seeds=(3, 4))
    with path.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * len(SALEHI.columns)
    assert [line["ours"] for line in lines[:2]] == ["50.0", ""]
    assert [line["seed"] for line in lines[:2]] == ["3", "4"]
    assert {line["paper"] for line in lines[:2]} == {"53.42"}


# The notes


def test_notes_say_what_kind_of_data_scale_and_seeds_ours_are(tmp_path: Path) -> None:
    small = " ".join(table_notes(request(SALEHI), n_cases=15))
    assert "synthetic" in small
    assert "15 cases" in small
    assert "2 seeds" in small
    assert "--scale small" in small
    full = " ".join(table_notes(request(SALEHI, data=tmp_path, scale="full"), n_cases=15))
    assert "official" in full
    assert "--scale full" in full


def test_the_score_of_the_isbi_site_and_ours_stand_in_columns_of_their_own() -> None:
    """The site rescales the score so that a human rater has 90; 92.49 next to 65 would mislead."""
    isbi = PAPERS["hashemi2018_isbi"]
    metrics = {"n_cases": 21, "cohort": {"isbi_score_over_raters": 0.65}, "raters": [], "mean": {}}
    header, _, paper, ours = paper_table(isbi, {"focal": [metrics]}).splitlines()
    names = header.split(" | ")
    of_site = names.index("SC of the site")
    unscaled = names.index("SC unscaled, mean of raters")
    assert (paper.split(" | ")[of_site], ours.split(" | ")[of_site]) == ("92.49", "–")
    assert (paper.split(" | ")[unscaled], ours.split(" | ")[unscaled]) == ("", "65")
    assert any("site's scale" in note for note in table_notes(request(isbi), n_cases=21))


def test_the_table_of_lits_says_that_our_test_scans_are_not_cropped_to_the_liver(
    tmp_path: Path,
) -> None:
    lits = PAPERS["shirokikh2020_lits"]
    official = table_notes(request(lits, data=tmp_path, scale="full"), n_cases=28)
    assert any("cropped to the box of the liver" in note for note in official)
    # The synthetic cohort has no liver.
    assert not any("liver" in note for note in table_notes(request(lits), n_cases=15))
