"""The report page: its parts, its safety, and how a browser draws it."""

import base64
import dataclasses
import gzip
import io
import itertools
import json
import math
import shutil
import subprocess
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import unquote

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from helpers.evaluated_cohort import Cohort, lesions_and_map
from tversky_seg.metrics.lesion_rule import ANY_OVERLAP, LesionRule
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
    cases_to_view,
    choose_cases,
    outline,
    to_grey,
)
from tversky_seg.report.summary_sentence import summary_sentence
from tversky_seg.report.viewer import pack_case

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
    return ShownCase(case_id, {"FLAIR": image}, prediction, reference, classes, affine)


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
        "Calibration near lesions",
        "Calibration of all voxels",
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
    # Three subjects are too few for an interval.
    assert f"{low} to {high}" not in text
    assert "No interval is given for fewer than 5 subjects" in text
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
    write_report(
        folder, evil, shown=[case], titles={EVIL: EVIL}, viewed=[EVIL], origin={EVIL: EVIL}
    )
    page = Page((folder / "report.html").read_text())
    assert len([tag for tag in page.tags if tag == "script"]) == 3  # sorting, case, viewer
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


def test_the_viewer_lists_the_worst_cases_and_those_with_slices(evaluated):
    metrics = evaluated[1]
    dice = {
        case["case_id"]: case["dice"] for case in metrics["cases"] if case["reference_volume_mm3"]
    }
    ranked = sorted(dice, key=dice.get)
    chosen = choose_cases(metrics)
    assert list(chosen) == [ranked[0], ranked[-1], "case3"]
    assert choose_cases(metrics, viewed=ranked[1])[ranked[1]] == "Chosen case"
    assert cases_to_view(metrics, viewed="worst", most=20) == [*ranked, "case3"]
    assert cases_to_view(metrics, viewed="worst", most=3) == [ranked[0], ranked[-1], "case3"]
    assert cases_to_view(metrics, viewed="none", most=20) == []


def test_cases_that_do_not_fit_are_named(evaluated):
    folder, metrics, _ = evaluated
    case = shown_case("case3")
    write_report(folder, metrics, shown=[case], titles={}, viewed=["case3"])
    text = (folder / "report.html").read_text()
    assert "3 further cases not in this page" in text
    assert text.count('class="viewer-case"') == 1
    assert "case3: no lesion, " in text


def test_an_unknown_case_to_view_is_warned_of_and_costs_no_evaluation(tmp_path, caplog):
    cohort = Cohort(tmp_path)
    cohort.add(0)
    assert cohort.evaluate(viewer="x")["n_cases"] == 1
    assert "viewer: 'x'" in caplog.text
    assert "in three planes" in (cohort.output_dir / "report.html").read_text()


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


def packed(case, *, rule=ANY_OVERLAP, **settings):
    """What the page holds of a case, with the numbers of its lesions as volumes."""
    content = json.loads(pack_case(case, rule=rule, **settings).content)
    for one in content["classes"]:
        for side in ("reference", "prediction"):
            numbers = np.frombuffer(gzip.decompress(base64.b64decode(one[side]["numbers"])), "<u2")
            one[side]["numbers"] = numbers.reshape(content["shape"], order="F")
    return content


def test_the_viewed_case_is_cropped_and_lies_where_it_was():
    case = shown_case()
    image = np.zeros_like(case.images["FLAIR"])
    image[2:12, 2:11, 2:9] = case.images["FLAIR"][2:12, 2:11, 2:9] + 1
    case = dataclasses.replace(case, images={"FLAIR": image})
    content = packed(case)
    (lesion,) = content["classes"]
    assert content["shape"] == [10, 9, 7]
    affine = np.array(content["affine"])
    for side, mask in (("reference", case.reference[0]), ("prediction", case.prediction[0])):
        stored = affine[:3, :3] @ np.argwhere(lesion[side]["numbers"]).T + affine[:3, 3:]
        there = case.affine[:3, :3] @ np.argwhere(mask).T + case.affine[:3, 3:]
        assert stored == pytest.approx(there)
    assert (affine @ [*content["start"], 1])[2] == pytest.approx(3 + 4 * 2)


def test_missed_and_false_lesions_have_volumes_and_a_voxel_inside():
    content = packed(shown_case())
    (lesion,) = content["classes"]
    for side in ("reference", "prediction"):
        stored = lesion[side]
        assert sorted(zip(stored["volume_mm3"], stored["matched"], strict=True)) == [
            (2.0, 0),
            (18.0, 1),
        ]
        for number, voxel in enumerate(stored["voxels"], start=1):
            assert stored["numbers"][tuple(voxel)] == number


def test_the_viewer_counts_lesions_by_the_rule():
    rule = LesionRule(min_volume_mm3=2.0, strictly_larger=True)
    (lesion,) = packed(shown_case(), rule=rule)["classes"]
    assert lesion["reference"]["volume_mm3"] == [18.0]
    assert lesion["reference"]["numbers"].max() == 1


def test_images_survive_their_compression():
    image = np.add.outer(np.arange(30.0), np.arange(28.0))[..., None] + np.zeros(26)
    case = dataclasses.replace(shown_case(shape=(30, 28, 26)), images={"FLAIR": image})
    (stored,) = packed(case)["images"]
    sheet = Image.open(io.BytesIO(base64.b64decode(stored["sheets"][0]))).convert("L")
    first_slice = np.asarray(sheet, float)[:28, :30].T
    assert np.abs(first_slice - to_grey(image)[..., 0]).mean() < 2


def test_a_large_case_is_shown_coarser_and_keeps_its_small_lesions():
    case = shown_case(shape=(40, 40, 40), spacing=(1.0, 1.0, 1.0))
    content = packed(case, largest_bytes=15_000)
    assert max(content["steps"]) > 1
    (lesion,) = content["classes"]
    for side in ("reference", "prediction"):
        assert set(np.unique(lesion[side]["numbers"])) == {0, 1, 2}
    assert len(pack_case(case, rule=ANY_OVERLAP, largest_bytes=15_000).content) <= 15_000


def test_thick_slices_stay_when_voxels_grow():
    case = shown_case(shape=(60, 60, 9), spacing=(1.0, 1.0, 6.0))
    case = dataclasses.replace(case, images={"FLAIR": np.random.default_rng(0).random((60, 60, 9))})
    content = packed(case, largest_bytes=12_000)
    assert content["steps"] == [2, 2, 1]
    assert content["spacing_mm"] == [2, 2, 6]


def test_a_sentence_says_what_was_found():
    case = {
        "n_reference_lesions": 20,
        "n_detected_lesions": 15,
        "n_predicted_lesions": 18,
        "n_false_lesions": 2,
        "reference_volume_mm3": 1000.0,
        "predicted_volume_mm3": 860.0,
    }
    bins = [
        {"to_mm3": 10.0, "n_lesions": 4, "n_detected": 1},
        {"to_mm3": 30.0, "n_lesions": 6, "n_detected": 3},
        {"to_mm3": None, "n_lesions": 10, "n_detected": 10},
    ]
    metrics = {"cases": [case], "recall_by_volume": {"fixed": bins}}
    assert summary_sentence(metrics) == (
        "15 of 20 lesions found (75 %); 2 of 18 predicted lesions are false (11 %); "
        "below 30 mm³, 4 of 10 found (40 %); total volume 14 % too small."
    )
    empty = dict.fromkeys(case, 0)
    assert summary_sentence({"cases": [empty]}) == "No case has a lesion; nothing predicted."


def test_the_header_says_where_predictions_come_from(tmp_path):
    cohort = Cohort(tmp_path)
    cohort.add(0)
    cohort.settings(checkpoint="0123456789abcdef", threshold=0.5)
    (tmp_path / "config.yaml").write_text(
        "model: {_target_: a.UNet3D, width: 16}\n"
        "loss: {_target_: b.TverskyLoss, alpha: null, beta: 0.8}\n"
    )
    (tmp_path / "environment.json").write_text(
        json.dumps({"command": ["/bin/python", "/x/train.py", "loss.beta=0.7"]})
    )
    cohort.evaluate(command=["tversky-seg evaluate", "predictions='a/b'"])
    text = (cohort.output_dir / "report.html").read_text()
    for part in (
        tmp_path.name,
        "UNet3D(width=16), TverskyLoss(alpha=0.2, beta=0.8)",
        "SHA-256 0123456789ab",
        "<dd>train.py loss.beta=0.7</dd>",
        "<dd>tversky-seg evaluate predictions=a/b</dd>",
        "tversky-seg 0.",
        "1 case; FLAIR",
    ):
        assert part in text, part


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


@pytest.mark.parametrize("recall", [0.05, 0.9])
def test_the_legend_of_froc_does_not_hide_its_operating_point(recall: float) -> None:
    columns = {"false_lesions_per_case": np.array([40.0]), "recall": np.array([recall])}
    froc = {"average_recall": 0.1, "false_lesions_per_case": 40.0, "highest_recall": recall}
    figure = froc_figure(columns, froc)
    figure.canvas.draw()
    (axes,) = figure.axes
    point = axes.transData.transform((40.0, recall))
    assert not axes.get_legend().get_window_extent().contains(*point)


@pytest.mark.parametrize("precision", [0.1, 0.9])
def test_the_legend_of_a_curve_does_not_hide_its_operating_point(precision: float) -> None:
    figure = curve_figure([Curve("lesion", None, 0.1, (0.1, precision))])
    figure.canvas.draw()
    (axes,) = figure.axes
    point = axes.transData.transform((0.1, precision))
    assert not axes.get_legend().get_window_extent().contains(*point)


def test_bland_altman_names_the_largest_differences():
    volumes = {"a": (100.0, 101.0), "b": (100.0, 50.0), "c": (80.0, 90.0), "d": (10.0, 13.0)}
    (axes,) = bland_altman_figure(volumes, {"bias_mm3": -9.0}).axes
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["b", "c", "d", "bias -9"]


def test_size_labels_do_not_touch():
    edges = (0, 3, 10, 30, 100, 300, 1000)
    bins = []
    for low, high in zip(edges, (*edges[1:], None), strict=True):
        bins.append(
            {"from_mm3": low, "to_mm3": high, "n_lesions": 4, "n_detected": 3, "recall": 0.75}
        )
    figure = size_figure(bins)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    labels = [label.get_window_extent() for label in axes.get_xticklabels()]
    for left, right in itertools.pairwise(labels):
        assert left.x1 < right.x0
    assert min(label.y0 for label in labels) > axes.xaxis.label.get_window_extent().y1
    assert axes.xaxis.label.get_window_extent().y0 > 0


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


def test_what_was_removed_from_the_prediction_is_described():
    rule = {
        "connectivity": 26,
        "min_overlap": 0.0,
        "min_volume_mm3": 0.0,
        "prediction_min_volume_mm3": 3.0,
        "prediction_min_peak": 0.95,
    }
    description = describe_rule({"lesion_rule": rule, "threshold": 0.5})
    assert "predicted lesions below 3 mm³ removed" in description
    assert "predicted lesions that never reach probability 0.95 removed" in description


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


DRIVER = """
const viewer = document.getElementById("viewer");
const ready = () => new Promise((done) => {
  const look = () => viewer.dataset.state === "ready" ? done() : setTimeout(look, 20);
  look();
});
const press = async (key) => {
  viewer.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  await ready();
  const place = document.getElementById("viewer-place").textContent;
  const sides = document.getElementById("viewer-convention").value;
  seen.push([key, viewer.dataset.case, viewer.dataset.voxel, place, sides]);
};
const seen = [];
(async () => {
  await ready();
  for (const key of KEYS) await press(key);
  const canvas = document.getElementById("viewer-plane-0");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const colours = new Set();
  for (let k = 0; k < pixels.length; k += 4) colours.add([...pixels.slice(k, k + 3)].join());
  const answer = encodeURIComponent(JSON.stringify({ seen, n: colours.size }));
  new Image().src = `http://127.0.0.1:PORT/${answer}`;
})();
"""


class Answer(BaseHTTPRequestHandler):
    """Takes what the page saw, as the address of a picture."""

    def do_GET(self):
        self.server.answer = json.loads(unquote(self.path[1:]))

    def log_message(self, *args):
        pass


def browse(page, keys, folder):
    """Open a page in Chromium, without a network but for the answer, press keys, and report."""
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        server.timeout, server.answer = 90, None
        port = str(server.server_address[1])
        driver = DRIVER.replace("KEYS", json.dumps(keys)).replace("PORT", port)
        page = page.replace("img-src data:", f"img-src data: http://127.0.0.1:{port}")
        (folder / "page.html").write_text(
            page.replace("</body>", f"<script>{driver}</script></body>")
        )
        command = [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--proxy-server=127.0.0.1:9",
            f"--user-data-dir={folder / 'profile'}",
            "--remote-debugging-port=0",
            "--window-size=1200,900",
            (folder / "page.html").as_uri(),
        ]
        with (folder / "browser.log").open("w") as log:
            browser = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                server.handle_request()
            finally:
                browser.kill()
                browser.wait()
        assert server.answer, (folder / "browser.log").read_text()[-2000:]
        return server.answer


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, as apt-get install chromium gives it")
def test_a_browser_offline_walks_through_cases_and_lesions(evaluated, tmp_path):
    folder, metrics, _ = evaluated
    first = shown_case(EVIL, shape=(60, 50, 40), classes=("lesion", EVIL))
    second = shown_case("second", shape=(20, 22, 24), classes=("lesion", EVIL))
    write_report(
        folder, metrics, shown=[first, second], titles={}, viewed=[EVIL, "second"], first=EVIL
    )
    keys = ["m", "ArrowRight", "f", "M", "r", "ArrowRight", "n", "m", "n", "z", "o", "t"]
    result = browse((folder / "report.html").read_text(), keys, tmp_path)
    steps = result["seen"]
    at = [[int(v) for v in step[2].split(",")] for step in steps]
    assert at[0] == [9, 9, 7]
    assert "Missed lesion 1 of 1" in steps[0][3]
    assert "reference lesion of 2.0 mm³, missed" in steps[0][3]
    assert at[1] == [10, 9, 7]
    assert at[2] == [2, 9, 2]
    assert "predicted lesion of 2.0 mm³, false" in steps[2][3]
    assert at[3] == [9, 9, 7]
    # On radiological pictures, the patient's right is on the left.
    assert steps[4][4] == "radiological"
    assert at[5] == [8, 9, 7]
    assert [step[1] for step in steps[5:]] == [EVIL, "second", "second", EVIL, EVIL, EVIL, EVIL]
    assert result["n"] > 20
