"""The report page: its parts, its safety, and how a browser draws it."""

import base64
import gzip
import hashlib
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files

import nibabel as nib
import numpy as np
import pytest

from helpers.evaluated_cohort import Cohort, lesions_and_map
from tversky_seg.metrics.ranking import PrecisionRecallCurve
from tversky_seg.report.figures import (
    Curve,
    as_svg,
    bland_altman_figure,
    curve_figure,
    froc_figure,
    size_figure,
)
from tversky_seg.report.labels import describe_rule, format_value
from tversky_seg.report.page import write_report
from tversky_seg.report.slices import (
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    ShownCase,
    choose_cases,
    outline,
    viewed_case,
)
from tversky_seg.report.viewer import make_viewer

EVIL = '"><img src=x onerror=alert(1)></script><script>alert(2)</script>'
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)


class Page(HTMLParser):
    """The tags of a page, and what its attributes refer to."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]


def shown_case(case_id="p1", *, shape=(14, 12, 10), classes=("lesion",), spacing=(1.0, 1.0, 2.0)):
    """A small case with one lesion detected in part, one missed and one false positive."""
    image = np.random.default_rng(0).random(shape) * 100
    prediction, reference = np.zeros((2, len(classes), *shape), bool)
    reference[:, 3:6, 3:6, 4] = prediction[:, 4:7, 3:6, 4] = True
    reference[:, 9, 9, 7] = prediction[:, 2, 9, 2] = True
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-20, 5, 3)
    return ShownCase(case_id, image, prediction, reference, classes, affine)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Four cases of three subjects, one of them without lesion, evaluated with all figures."""
    cohort = Cohort(tmp_path_factory.mktemp("report"))
    for seed, subject in enumerate("aab"):
        cohort.add(seed, subject=subject)
    cohort.add(3, subject="c", reference=np.zeros_like(lesions_and_map(3)[0]))
    metrics = cohort.evaluate()
    return cohort.output_dir, metrics, (cohort.output_dir / "report.html").read_text()


def test_the_report_has_every_part(evaluated):
    _, metrics, text = evaluated
    parts = (
        "95 % interval (subjects resampled)",
        "Precision and recall",
        "Free-response ROC",
        "Dice and F2 against",
        "Recall by lesion size",
        "Bland-Altman",
        "Calibration",
        "Lowest Dice",
        "Highest Dice",
        "Cases without lesion",
        "volume: case3",
        "in three planes",
        "Further metrics",
        "26-connected",
    )
    for part in parts:
        assert part in text, part
    low, high = (f"{limit:.3f}" for limit in metrics["ci95"]["dice"])
    assert f"{low} to {high}" in text
    assert "4 cases, 3 subjects" in text
    for part in metrics["recall_by_volume"]["fixed"]:
        if part["n_lesions"]:
            assert f"{part['n_detected']}/{part['n_lesions']}" in text


def test_the_report_needs_nothing_from_elsewhere(evaluated):
    text = evaluated[2]
    page = Page(text)
    links = [
        value
        for _, name, value in page.attributes
        if name in ("src", "href", "action", "data", "srcset")
    ]
    assert links
    assert all(value.startswith("data:image/png;base64,") for value in links)
    assert "link" not in page.tags
    assert "@import" not in text
    # Figures refer to their own clip paths alone.
    assert "url(" not in text.replace("url(#", "")
    assert "default-src 'none'" in text
    assert len(text) < 3e6


def test_names_cannot_break_out_of_the_page(evaluated):
    folder, metrics, _ = evaluated
    evil = json.loads(json.dumps(metrics))
    for case in [*evil["cases"], *evil["lesion_free"]["cases"]]:
        case["case_id"] += EVIL
    evil["lesion_rule"]["source"] = EVIL
    evil["faults"] = [EVIL]
    case = shown_case(EVIL, classes=(EVIL, "b"))
    write_report(folder, evil, shown=[(EVIL, case)], viewed=EVIL)
    page = Page((folder / "report.html").read_text())
    assert len([tag for tag in page.tags if tag == "script"]) == 4  # sorting, program, case, viewer
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(
        value.startswith("data:")
        for tag, name, value in page.attributes
        if (tag, name) == ("img", "src")
    )
    assert "alert(1)" in (folder / "report.html").read_text()


def test_each_class_has_its_charts(tmp_path):
    cohort = Cohort(tmp_path)
    reference, _ = cohort.add(0)
    for name in ("core", "rim"):
        (cohort.predictions / f"case0_{name}_mask.nii.gz").write_bytes(
            gzip.compress(
                nib.Nifti1Image(
                    reference.astype(np.uint8), nib.load(cohort.cases[0].label).affine
                ).to_bytes()
            )
        )
    cohort.evaluate(classes={"core": [1], "rim": [1]})
    text = (cohort.output_dir / "report.html").read_text()
    assert text.count("<h3>Lesion volume (Bland-Altman plot)") == 2
    assert "Class rim" in text
    assert '<select id="viewer-class">' in text
    assert "Free-response" not in text  # masks only: nothing to rank by


def test_the_viewer_can_be_left_out_or_chosen(evaluated):
    metrics = evaluated[1]
    chosen = choose_cases(metrics)
    assert viewed_case(chosen, "worst") == next(iter(chosen.values()))
    assert viewed_case(chosen, "none") is None
    dice = {
        case["case_id"]: case["dice"] for case in metrics["cases"] if case["reference_volume_mm3"]
    }
    assert list(chosen.values()) == [min(dice, key=dice.get), max(dice, key=dice.get), "case3"]
    (middle,) = dice.keys() - set(chosen.values())
    assert choose_cases(metrics, viewed=middle)["Chosen case"] == middle


def test_an_unknown_case_to_view_is_warned_of_and_costs_no_evaluation(tmp_path, caplog):
    cohort = Cohort(tmp_path)
    cohort.add(0)
    assert cohort.evaluate(viewer="x")["n_cases"] == 1
    assert "viewer: 'x'" in caplog.text
    assert "in three planes" not in (cohort.output_dir / "report.html").read_text()


def test_misses_and_false_positives_are_tinted():
    prediction, reference = np.zeros((2, 1, 30, 30), bool)
    reference[0, 2:12, 2:12] = prediction[0, 16:26, 16:26] = True
    picture = outline(np.zeros((30, 30)), prediction, reference)
    zoom = picture.shape[0] // 30
    # The middle of the square that voxel (k, k) became; y runs upwards.
    missed, false_positive = (
        picture[(29 - k) * zoom + zoom // 2, k * zoom + zoom // 2] for k in (7, 21)
    )
    assert missed.tolist() == [int(0.3 * value) for value in REFERENCE_COLOUR]
    assert false_positive.tolist() == [int(0.3 * value) for value in PREDICTION_COLOUR]


def stored_case(viewer):
    """The volumes and colours that the page holds of the viewed case."""
    return json.loads(viewer.case_json)


def volume_of(content):
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(content)))


def test_the_viewed_case_is_cropped_and_lies_where_it_was():
    case = shown_case()
    image = np.zeros_like(case.image)
    image[2:12, 2:11, 2:9] = case.image[2:12, 2:11, 2:9] + 1
    case = ShownCase(
        case.case_id, image, case.prediction, case.reference, case.classes, case.affine
    )
    stored = stored_case(make_viewer(case))
    volume, overlay = volume_of(stored["image"]), volume_of(stored["overlays"][0])
    assert volume.shape == overlay.shape == (10, 9, 7)
    assert volume.get_data_dtype() == np.uint8
    places = (
        overlay.affine[:3, :3] @ np.argwhere(np.asarray(overlay.dataobj) == 3).T
        + overlay.affine[:3, 3:]
    )
    both = (
        case.affine[:3, :3] @ np.argwhere((case.prediction & case.reference)[0]).T
        + case.affine[:3, 3:]
    )
    assert places == pytest.approx(both)
    counts = np.bincount(np.asarray(overlay.dataobj).ravel().astype(int))
    assert counts[1:].tolist() == [4, 4, 6]  # false negative, false positive, true positive
    assert stored["start_mm"][2] == pytest.approx(3 + 4 * 2)


def test_a_large_case_is_shown_coarser():
    case = shown_case(shape=(40, 40, 40))
    viewer = make_viewer(case, largest_bytes=20_000)
    stored = stored_case(viewer)
    assert viewer.step == 2
    assert len(stored["image"]) + len(stored["overlays"][0]) <= 20_000
    assert volume_of(stored["image"]).header.get_zooms() == pytest.approx((2, 2, 4))


def test_the_vendored_program_is_what_its_licence_file_says():
    folder = files("tversky_seg.report") / "assets"
    program = gzip.decompress((folder / "niivue.umd.js.gz").read_bytes())
    licences = (folder / "niivue_licences.txt").read_text()
    assert hashlib.sha256(program).hexdigest() in licences
    assert "BSD 2-Clause" in licences
    assert len(program) < 3e6


def test_figures_escape_names_and_draw_no_formula():
    points = PrecisionRecallCurve(np.array([0.5, 1.0]), np.array([1.0, 0.0]), np.array([0.5]))
    evil = '"><img src=x><script>'
    curves = [
        Curve(evil, points, area=0.5, working_point=(1.0, 0.5)),
        Curve("$x^2$", None, area=math.nan, working_point=(0.5, 0.5)),
    ]
    svg = as_svg(curve_figure(curves))
    svg += as_svg(bland_altman_figure({evil: (10.0, 20.0)}, {}))
    assert "img src=x" in svg
    assert "$x^2$" in svg
    assert not {"img", "script"} & set(Page(svg).tags)


def test_equal_figures_are_drawn_equal():
    bins = [{"from_mm3": 0, "to_mm3": None, "n_lesions": 4, "n_detected": 3, "recall": 0.75}]
    assert as_svg(size_figure(bins)) == as_svg(size_figure(bins))


def test_the_operating_point_of_froc_stays_in_view():
    columns = {
        "recall": np.array([1.0, 0.5]),
        "false_lesions_per_case": np.array([75.0, 1.0]),
    }
    froc = {"average_recall": 0.4, "false_lesions_per_case": 75.0, "highest_recall": 1.0}
    (axes,) = froc_figure(columns, froc).axes
    assert axes.get_xlim()[1] > 75


def test_bland_altman_names_the_largest_differences():
    volumes = {"a": (100.0, 101.0), "b": (100.0, 50.0), "c": (80.0, 90.0), "d": (10.0, 13.0)}
    (axes,) = bland_altman_figure(volumes, {"bias_mm3": -9.0}).axes
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["b", "c", "d", "bias -9"]


def test_values_are_written_as_precisely_as_they_mean_something():
    assert format_value("dice", 0.12345) == "0.123"
    assert format_value("specificity", 0.99987) == "0.9999"
    assert format_value("n_reference_lesions", 12.0) == "12"
    assert format_value("reference_volume_mm3", 12345.6) == "12,346"
    assert format_value("dice", 0.1, signed=True) == "+0.100"
    assert format_value("dice", None) == format_value("dice", float("nan")) == "–"


def test_a_published_rule_is_described():
    rule = {
        "connectivity": 6,
        "min_overlap": 0.1,
        "min_volume_mm3": 3.0,
        "strictly_larger": True,
        "max_outside": 0.7,
        "both_ways": True,
        "source": "MSSEG 2016",
        "prediction_min_volume_mm3": 0.0,
    }
    description = describe_rule({"lesion_rule": rule, "threshold": None})
    for part in ("6-connected", "more than 3 mm³", "more than 10%", "70% outside", "MSSEG 2016"):
        assert part in description


def test_masks_of_several_classes_have_no_threshold_to_describe():
    rule = {
        "connectivity": 26,
        "min_overlap": 0.0,
        "min_volume_mm3": 0.0,
        "prediction_min_volume_mm3": {"core": 0.0, "rim": 0.0},
    }
    threshold = {"core": None, "rim": None}
    description = describe_rule({"lesion_rule": rule, "threshold": threshold})
    assert "Masks as saved." in description
    assert "removed" not in description


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, as apt-get install chromium gives it")
def test_a_browser_offline_shows_the_case_in_three_planes(evaluated, tmp_path):
    folder, metrics, _ = evaluated
    case = shown_case(EVIL, shape=(60, 50, 40), classes=("lesion", EVIL))
    write_report(folder, metrics, shown=[("Case", case)], viewed=EVIL)
    shutil.copy(folder / "report.html", tmp_path / "page.html")
    browser = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        "--proxy-server=127.0.0.1:9",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=60000",
        "--window-size=1200,900",
        "--dump-dom",
        (tmp_path / "page.html").as_uri(),
    ]
    done = subprocess.run(browser, capture_output=True, text=True, timeout=500, check=False)
    assert 'data-state="ready"' in done.stdout, done.stdout[-500:] + done.stderr[-2000:]
    assert re.search(r'id="viewer-place">-?\d+\.\d, -?\d+\.\d, 11\.0 mm<', done.stdout)
