"""Metrics by site, scanner and modalities."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.evaluated_cohort import Cohort
from tversky_seg.analysis.group_tables import group_tables
from tversky_seg.data.errors import DataError


@pytest.fixture
def cohort(tmp_path):
    """Four cases: two of Lyon, one of Rennes, one without a site."""
    cohort = Cohort(tmp_path)
    for seed, (site, scanner) in enumerate(
        [("Rennes", "GE"), ("Lyon", "GE"), ("Lyon", "GE"), (None, "GE")]
    ):
        cohort.add(seed)
        metadata = {"scanner": scanner, "age": str(40 + seed)}
        cohort.cases[-1] = replace(cohort.cases[-1], site=site, metadata=metadata)
    return cohort


def test_a_group_has_the_mean_of_its_cases(cohort):
    metrics = cohort.evaluate()
    assert [(row["value"], row["n_cases"]) for row in metrics["by_site"]] == [
        ("Lyon", 2),
        ("Rennes", 1),
        (None, 1),
    ]
    lyon = metrics["by_site"][0]
    dice = [case["dice"] for case in metrics["cases"][1:3]]
    assert lyon["mean"]["dice"] == pytest.approx(np.mean(dice))
    # One scanner, one set of modalities: nothing to tell apart.
    assert "by_scanner" not in metrics
    assert "by_modalities" not in metrics
    page = (cohort.output_dir / "report.html").read_text()
    assert "<h3>By site</h3>" in page
    assert "not given" in page


def test_columns_are_chosen(cohort):
    metrics = cohort.evaluate(by=("scanner", "age"))
    assert "by_site" not in metrics
    assert [row["n_cases"] for row in metrics["by_scanner"]] == [4]
    assert [row["value"] for row in metrics["by_age"]] == ["40", "41", "42", "43"]
    with pytest.raises(DataError, match=r"evaluation.by: no case has a value of 'scaner'.*scanner"):
        cohort.evaluate(by=("scaner",), overwrite=True)


def test_cases_of_other_modalities_are_told_apart(cohort):
    case = cohort.cases[0]
    both = {**case.images, "T1": case.images["FLAIR"]}
    cohort.cases[0] = replace(case, images=both)
    rows = cohort.evaluate()["by_modalities"]
    assert [(row["value"], row["n_subjects"]) for row in rows] == [("FLAIR", 3), ("FLAIR + T1", 1)]


def test_summarize_prints_the_groups(cohort):
    text = group_tables(cohort.evaluate())
    lines = text.splitlines()
    assert lines[0].startswith("| site | cases | subjects | Dice |")
    assert lines[2].startswith("| Lyon | 2 | 2 | ")
    assert lines[-1].startswith("| not given | 1 |")
    assert group_tables({"mean": {"dice": 1.0}}) == ""
