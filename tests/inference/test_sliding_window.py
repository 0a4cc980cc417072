import csv
import itertools
import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from scipy.signal.windows import triang
from torch import Tensor, nn

from helpers.networks import Constant, FirstChannel, Local, an_image
from helpers.oblique_cases import FLAIR, OBLIQUE, a_case
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import read_volume
from tversky_seg.data.preprocessing.pipeline import preprocess
from tversky_seg.inference.operating_point import OperatingPoint
from tversky_seg.inference.predict import predict_case, predict_cases
from tversky_seg.inference.settings import Inference
from tversky_seg.inference.sliding_window import SlidingWindow, predict_volume
from tversky_seg.inference.window_weights import gaussian_window, spline_window
from tversky_seg.runtime.devices import is_out_of_memory


def test_spline_windows_add_up_to_one_at_half_overlap() -> None:
    for n, order in itertools.product((16, 64, 90), (1, 2, 3)):
        window = spline_window(n, order=order)
        np.testing.assert_allclose(window[: n // 2] + window[n // 2 :], 1, atol=1e-12)
        assert (window > 0).all()


def test_the_spline_window_is_that_of_the_released_code_up_to_its_scale() -> None:
    for n in (8, 64, 96):
        t = triang(n)
        outer, inner = (2 * t) ** 2 / 2, 1 - (2 * (t - 1)) ** 2 / 2
        released = np.where((np.arange(n) < n // 4) | (np.arange(n) >= n - n // 4), outer, inner)
        np.testing.assert_allclose(spline_window(n), released, atol=1e-12)
    np.testing.assert_allclose(spline_window(4), [1 / 8, 7 / 8, 7 / 8, 1 / 8])


@pytest.mark.parametrize("window", ["bspline", "gaussian", "uniform"])
@pytest.mark.parametrize("shape", [(16, 16, 16), (37, 20, 29), (5, 40, 16)])
def test_a_constant_network_gives_its_constant_everywhere(
    window: str, shape: tuple[int, int, int]
) -> None:
    probability = predict_volume(
        Constant(0.3), torch.zeros(1, *shape), patch_size=16, window=window
    )
    assert probability.shape == (1, *shape)
    torch.testing.assert_close(probability, torch.full_like(probability, 0.3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("patch_size", "overlap"), [(40, 0.9999), (1, 0.0)])
def test_windows_without_end_are_refused_in_one_line(patch_size: int, overlap: float) -> None:
    image = torch.zeros(1, 128, 128, 128)
    with pytest.raises(ValueError, match=r"overlap of .* windows of a volume of \[128, 128, 128\]"):
        predict_volume(Constant(0.3), image, patch_size=patch_size, overlap=overlap)


def test_it_equals_a_loop_over_all_windows_in_float64() -> None:
    image, side, step = an_image(2, 21, 16, 26), 8, 4
    weight = np.einsum("x,y,z->xyz", *[spline_window(side)] * 3)
    total, weights = np.zeros((2, 21, 16, 26)), np.zeros((21, 16, 26))
    for corner in itertools.product(
        *(sorted({*range(0, n - side, step), n - side}) for n in image.shape[1:])
    ):
        box = tuple(slice(c, c + side) for c in corner)
        total[:, *box] += Local()(image[None, :, *box]).sigmoid()[0].double().numpy() * weight
        weights[box] += weight
    probability = predict_volume(Local(), image, patch_size=side)
    np.testing.assert_allclose(probability, total / weights, atol=1e-6)


@pytest.mark.parametrize(
    ("window", "one_side"),
    [("bspline", spline_window), ("gaussian", gaussian_window), ("uniform", np.ones)],
)
@pytest.mark.parametrize(
    ("shape", "overlap"),
    [((30, 25, 41), 0.5), ((30, 25, 41), 0.25), ((10, 40, 16), 0.7), ((16, 16, 16), 0.0)],
)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_it_equals_monais_sliding_window(
    window: str, one_side: object, shape: tuple[int, int, int], overlap: float, batch_size: int
) -> None:
    image = an_image(1, *shape)
    weight = torch.from_numpy(np.einsum("x,y,z->xyz", *[one_side(16)] * 3)).float()  # type: ignore[operator]
    expected = sliding_window_inference(
        image[None],
        16,
        4,
        lambda windows: Local()(windows).sigmoid(),
        overlap=overlap,
        roi_weight_map=weight[None, None],
    )[0]
    settings = {"patch_size": 16, "overlap": overlap, "batch_size": batch_size}
    probability = predict_volume(Local(), image, window=window, **settings)  # type: ignore[arg-type]
    torch.testing.assert_close(probability, expected, atol=1e-5, rtol=0)


def test_a_window_may_be_a_function_or_an_array() -> None:
    image = an_image(1, 20, 20, 20)
    expected = predict_volume(Local(), image, patch_size=(8, 10, 12))
    by_function = predict_volume(Local(), image, patch_size=(8, 10, 12), window=spline_window)
    array = np.einsum("x,y,z->xyz", *map(spline_window, (8, 10, 12)))
    assert torch.equal(by_function, expected)
    torch.testing.assert_close(
        predict_volume(Local(), image, patch_size=(8, 10, 12), window=array), expected
    )


@pytest.mark.parametrize("shape", [(40, 40, 40), (40, 12, 40)])
def test_skipping_windows_without_foreground_changes_nothing_inside_it(
    shape: tuple[int, int, int],
) -> None:
    foreground = np.zeros(shape, bool)
    foreground[3:10, 2:9, 22:30] = True
    image = an_image(1, *shape)
    network, all_windows = Constant(), Constant()
    predict_volume(all_windows, image, patch_size=16)
    predict_volume(network, image, patch_size=16, foreground=foreground)
    assert 0 < network.n_windows < all_windows.n_windows
    skipped = predict_volume(Local(), image, patch_size=16, foreground=foreground)
    complete = predict_volume(Local(), image, patch_size=16)
    assert torch.equal(skipped[:, foreground], complete[:, foreground])
    assert skipped.min() == 0, "no window went to the far corner"


def test_without_any_foreground_there_is_still_a_result_of_the_right_shape() -> None:
    nothing = np.zeros((40, 40, 40), bool)
    probability = predict_volume(
        Local(), an_image(1, 40, 40, 40), patch_size=16, foreground=nothing
    )
    assert probability.shape == (2, 40, 40, 40)


def test_window_batches_change_nothing_but_rounding() -> None:
    image = an_image(1, 40, 30, 20)
    torch.testing.assert_close(
        predict_volume(Local(), image, patch_size=16, batch_size=7),
        predict_volume(Local(), image, patch_size=16),
    )


def test_each_module_is_evaluated_and_gets_its_mode_back() -> None:
    network = nn.Sequential(Constant(), nn.Dropout3d(0.9))
    network[0].train()
    network[1].eval()
    predict_volume(network, torch.zeros(1, 8, 8, 8), patch_size=8)
    assert network[0].modes == {False}
    assert (network.training, network[0].training, network[1].training) == (True, True, False)
    with pytest.raises(ValueError):
        predict_volume(network, torch.zeros(8, 8, 8), patch_size=8)
    assert network.training


def test_the_result_is_plain_float32_on_the_cpu_and_the_image_is_left_as_it_is() -> None:
    image = an_image(1, 12, 12, 12).numpy()
    image.flags.writeable = False
    probability = predict_volume(Local().half(), image[:, ::-1], patch_size=8, precision="bf16")
    assert (probability.dtype, probability.device.type) == (torch.float32, "cpu")
    assert 0 <= probability.min() <= probability.max() <= 1
    probability *= 2


def test_when_memory_runs_out_fewer_windows_are_taken_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Hungry(Local):
        def forward(self, image: Tensor) -> Tensor:
            if len(image) > 2:
                raise torch.OutOfMemoryError
            return super().forward(image)

    image = an_image(1, 24, 24, 24)
    probability = predict_volume(Hungry(), image, patch_size=8, batch_size=16)
    torch.testing.assert_close(
        probability, predict_volume(Local(), image, patch_size=8, batch_size=2)
    )
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(
    ("error", "is_expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (MemoryError(), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("unable to find an engine"), False),
    ],
)
def test_only_errors_of_a_full_device_are_out_of_memory(
    error: Exception, is_expected: bool
) -> None:
    assert is_out_of_memory(error) == is_expected

    class Hungry(Local):
        def forward(self, image: Tensor) -> Tensor:
            if len(image) > 2:
                raise error
            return super().forward(image)

    image = an_image(1, 24, 24, 24)
    if is_expected:
        probability = predict_volume(Hungry(), image, patch_size=8, batch_size=16)
        expected = predict_volume(Local(), image, patch_size=8, batch_size=2)
        torch.testing.assert_close(probability, expected)
    else:
        with pytest.raises(type(error)):
            predict_volume(Hungry(), image, patch_size=8, batch_size=16)


def test_sums_that_do_not_fit_are_tried_again_without_adding_a_window_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = an_image(1, 24, 24, 24)
    expected = predict_volume(Local(), image, patch_size=8, batch_size=2)
    zeros_like = torch.zeros_like
    n_calls = itertools.count()

    def fails_at_times(tensor: Tensor) -> Tensor:
        if next(n_calls) in (0, 3, 7, 30):
            raise torch.OutOfMemoryError
        return zeros_like(tensor)

    # The weights of a slab, and in a sum over networks those of a window, are new tensors.
    monkeypatch.setattr(torch, "zeros_like", fails_at_times)
    torch.testing.assert_close(
        predict_volume(Local(), image, patch_size=8, batch_size=16), expected
    )
    total = torch.zeros(2, 24, 24, 24)
    predict_volume(Local(), image, patch_size=8, batch_size=16, into=total)
    torch.testing.assert_close(total, expected)


def test_the_whole_volume_is_one_window_where_memory_allows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    image = an_image(1, 66, 20, 17)
    network = Constant()
    predict_volume(network, image, patch_size="whole")
    assert network.n_windows == 1
    at_once = predict_volume(Local(), image, patch_size="whole")
    torch.testing.assert_close(at_once, Local()(image[None])[0].sigmoid())

    class Hungry(Local):
        def forward(self, image: Tensor) -> Tensor:
            if image.shape[2] > 40:
                raise torch.OutOfMemoryError
            return super().forward(image)

    halved = predict_volume(Hungry(), image, patch_size="whole")
    torch.testing.assert_close(halved, predict_volume(Local(), image, patch_size=(33, 10, 9)))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with pytest.raises(torch.OutOfMemoryError):
        predict_volume(Hungry(), an_image(1, 63, 20, 17), patch_size="whole")


def test_an_image_kept_as_integers_is_the_same_image() -> None:
    steps = (1000 * an_image(2, 20, 18, 16)).to(torch.int16).numpy()
    scale = np.array([0.002, 0.003], np.float32)
    as_floats = steps * scale[:, None, None, None]
    kept = predict_volume(Local(), steps, image_scale=scale, patch_size=8)
    assert torch.equal(kept, predict_volume(Local(), as_floats, patch_size=8))


@pytest.mark.parametrize("window", ["bspline", "gaussian", "uniform"])
@pytest.mark.parametrize("tta", ["none", "rotations180"])
def test_skipping_changes_nothing_inside_a_scattered_foreground(window: str, tta: str) -> None:
    foreground = torch.rand(45, 38, 41, generator=torch.Generator().manual_seed(3)).numpy() > 0.9995
    image, settings = (
        an_image(1, 45, 38, 41),
        {"patch_size": 8, "window": window, "tta": tta, "batch_size": 3},
    )
    skipped = predict_volume(Local(), image, foreground=foreground, **settings)  # type: ignore[arg-type]
    complete = predict_volume(Local(), image, **settings)  # type: ignore[arg-type]
    assert (skipped == 0).any()
    torch.testing.assert_close(skipped[:, foreground], complete[:, foreground], atol=1e-6, rtol=0)


MEASURE = """
import resource, numpy as np, torch
from tversky_seg.data.grids import Geometry
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.inference.ensemble import Ensemble, Member
from tversky_seg.inference.sliding_window import SlidingWindow

class Nothing(torch.nn.Module):
    def forward(self, windows):
        return windows

def peak_of(n_members, n, **settings):
    geometry = Geometry((n, n, n), np.eye(4), (n, n, n), np.eye(4), (0, 0, 0), (n, n, n))
    image, foreground = np.ones((1, n, n, n), np.int16), np.arange(n**3, dtype=np.int32)
    arrays = {"image": image, "foreground_voxels": foreground}
    case = PreparedCase("a", "a", geometry, np.ones(1, np.float32), arrays=arrays)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    member = Member(Nothing(), SlidingWindow(48, overlap=0.0))
    Ensemble([member] * n_members, **settings).predict(case)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (4 * n**3)

peak_of(1, 40)
print(peak_of(N_MEMBERS, 240, combine="COMBINE"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process as Linux gives it")
@pytest.mark.parametrize(
    ("n_members", "combine", "volumes"), [(1, "mean", 1.6), (2, "mean", 1.6), (2, "vote", 2.0)]
)
def test_memory_beside_the_network_is_twice_the_output_at_most(
    n_members: int, combine: str, volumes: float
) -> None:
    command = [
        sys.executable,
        "-c",
        MEASURE.replace("N_MEMBERS", str(n_members)).replace("COMBINE", combine),
    ]
    n_volumes = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert n_volumes < volumes, "with the foreground (a quarter of a volume), slabs and windows"


@pytest.mark.parametrize("patch_size", [6, 20, "whole"])
def test_what_is_added_to_a_volume_is_what_is_predicted_alone(patch_size: int | str) -> None:
    image, foreground = torch.randn(1, 17, 14, 15), torch.zeros(17, 14, 15, dtype=torch.bool)
    foreground[3:9, 2:14, 4:] = True
    settings = {"patch_size": patch_size, "tta": "flips8", "foreground": foreground, "overlap": 0.4}
    alone = predict_volume(FirstChannel(), image, **settings)
    begun = torch.rand(1, 17, 14, 15) / 2
    expected = begun + 0.5 * alone
    added = predict_volume(FirstChannel(), image, **settings, into=begun, share=0.5)
    assert added is begun
    torch.testing.assert_close(added, expected, atol=1e-5, rtol=0)


def test_bad_arguments_are_refused_with_what_was_given() -> None:
    image = torch.zeros(1, 8, 8, 8)
    wrong = [
        ({"patch_size": 0}, "patch_size.*0"),
        ({"patch_size": (8, 8)}, r"patch_size.*\(8, 8\)"),
        ({"patch_size": "all"}, "patch_size.*whole.*all"),
        ({"tta": "mirror"}, "tta.*mirror"),
        ({"overlap": 1.0}, "overlap.*1.0"),
        ({"window": "hann"}, "bspline, gaussian, uniform.*hann"),
        ({"window": np.zeros((8, 8, 8))}, "positive"),
        ({"window": np.ones((4, 4, 4))}, r"\(8, 8, 8\).*\(4, 4, 4\)"),
        ({"batch_size": 0}, "batch_size.*0"),
        ({"foreground": np.ones((4, 4, 4))}, r"\(8, 8, 8\).*\(4, 4, 4\)"),
        ({"precision": "fp8"}, "precision.*fp8"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            predict_volume(Local(), image, **({"patch_size": 8} | arguments))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(C, X, Y, Z\)"):
        predict_volume(Local(), image[0], patch_size=8)
    with pytest.raises(ValueError, match="NaN"):
        predict_volume(Local(), image * torch.nan, patch_size=8)
    with pytest.raises(ValueError, match="equal sides"):
        predict_volume(nn.AvgPool3d(2), image, patch_size=8)


@pytest.mark.parametrize(
    "bad",
    [
        {"threshold": 1.5},
        {"threshold": {"liver": -1}},
        {"min_volume_mm3": -1},
        {"overlap": 1},
        {"window": "x"},
        {"tta": "x"},
        {"goal": "auc"},
        {"spline_order": 0},
        {"min_volume_mm3": {"liver": -1}},
        {"min_peak": 1.1},
        {"min_peak": {"liver": -0.1}},
    ],
)
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Inference(**bad)


def test_a_class_without_a_threshold_of_its_own_takes_a_half() -> None:
    assert Inference().threshold_of("lesion") == 0.5
    assert Inference(threshold=0.2).threshold_of("lesion") == 0.2
    assert [
        Inference(threshold={"liver": 0.3}).threshold_of(name) for name in ("liver", "tumour")
    ] == [0.3, 0.5]


def test_without_a_choice_a_lesion_must_reach_a_probability_of_nine_tenths() -> None:
    assert Inference().min_peak_of("lesion") == 0.9
    assert Inference(min_peak=0).min_peak_of("lesion") == 0
    points = Inference(min_peak={"liver": 0.7}, threshold=0.4).operating_points(["liver", "tumour"])
    assert points == {"liver": OperatingPoint(0.4, 0, 0.7), "tumour": OperatingPoint(0.4, 0, 0.9)}


SETTINGS = Inference(patch_size=8, threshold=0.7, min_peak=0.0)


def test_a_prediction_comes_back_on_the_grid_of_the_file(tmp_path: Path) -> None:
    case = a_case(tmp_path)
    image = read_volume(case.images["FLAIR"]).data
    probability = predict_case(FirstChannel(), preprocess(case, FLAIR), windows=SlidingWindow(8))
    assert probability.shape == (1, *image.shape)
    brain = image != 0
    zscore = (image[brain] - image[brain].mean()) / image[brain].std()
    np.testing.assert_allclose(probability[0][brain], 1 / (1 + np.exp(-zscore)), atol=2e-3)


def test_predicted_files_have_the_inputs_shape_and_affine(tmp_path: Path) -> None:
    case = a_case(tmp_path)
    assert (
        predict_cases(
            FirstChannel(), [case], FLAIR, tmp_path / "p", inference=SETTINGS, checksum="c"
        )
        == {}
    )
    for kind, dtype in (("probability", np.uint16), ("mask", np.uint8)):
        image = nib.load(tmp_path / "p" / f"a_{kind}.nii.gz")
        assert image.shape == (20, 14, 9)
        assert image.get_data_dtype() == dtype
        np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_resuming_computes_what_is_missing_and_completes_the_table(tmp_path: Path) -> None:
    cases = [a_case(tmp_path, name, seed=seed) for seed, name in enumerate("abc")]
    once, resumed = tmp_path / "once", tmp_path / "resumed"
    predict_cases(FirstChannel(), cases, FLAIR, once, inference=SETTINGS, checksum="c")
    predict_cases(FirstChannel(), cases[:2], FLAIR, resumed, inference=SETTINGS, checksum="c")
    (resumed / "lesions.csv").unlink()
    (resumed / "b_mask.nii.gz").unlink()
    before = (resumed / "a_mask.nii.gz").stat().st_mtime_ns
    assert (
        predict_cases(FirstChannel(), cases, FLAIR, resumed, inference=SETTINGS, checksum="c") == {}
    )
    assert (resumed / "a_mask.nii.gz").stat().st_mtime_ns == before
    assert (resumed / "lesions.csv").read_text() == (once / "lesions.csv").read_text()
    assert {row["case_id"] for row in read_rows(once / "lesions.csv")} == {"a", "b", "c"}
    predict_cases(FirstChannel(), cases[2:], FLAIR, resumed, inference=SETTINGS, checksum="c")
    assert (resumed / "lesions.csv").read_text() == (once / "lesions.csv").read_text(), (
        "other cases' rows stay"
    )


def test_files_of_unknown_settings_are_made_anew(tmp_path: Path) -> None:
    case, folder = a_case(tmp_path), tmp_path / "p"
    predict_cases(FirstChannel(), [case], FLAIR, folder, inference=SETTINGS, checksum="c")
    (folder / "predictions.json").unlink()
    lower = Inference(patch_size=8, threshold=0.1)
    before = read_volume(folder / "a_mask.nii.gz").data.sum()
    predict_cases(FirstChannel(), [case], FLAIR, folder, inference=lower, checksum="c")
    assert read_volume(folder / "a_mask.nii.gz").data.sum() > before


def test_one_bad_case_does_not_stop_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = Case(case_id="bad", subject_id="bad", images={"FLAIR": tmp_path / "none.nii.gz"})
    with caplog.at_level(logging.ERROR):
        faults = predict_cases(
            FirstChannel(),
            [bad, a_case(tmp_path)],
            FLAIR,
            tmp_path / "p",
            inference=SETTINGS,
            checksum="c",
        )
    assert list(faults) == ["bad"]
    assert "none.nii.gz" in faults["bad"]
    assert "\n" not in faults["bad"]
    assert faults["bad"] in caplog.text
    assert (tmp_path / "p" / "a_mask.nii.gz").is_file()


def test_labels_are_not_read(tmp_path: Path) -> None:
    case = a_case(tmp_path)
    labelled = Case(
        case_id="a", subject_id="a", images=case.images, labels=(tmp_path / "gone.nii.gz",)
    )
    assert (
        predict_cases(
            FirstChannel(), [labelled], FLAIR, tmp_path / "p", inference=SETTINGS, checksum="c"
        )
        == {}
    )


def test_a_folder_says_how_it_was_predicted_and_refuses_other_settings(tmp_path: Path) -> None:
    predict_cases(FirstChannel(), [], FLAIR, tmp_path / "p", inference=SETTINGS, checksum="abc")
    assert json.loads((tmp_path / "p" / "predictions.json").read_text()) == {
        "checkpoint": "abc",
        "classes": {"lesion": [1]},
        "background_values": None,
        "ignore": None,
        "threshold": 0.7,
        "min_volume_mm3": 0.0,
        "min_peak": None,
        "temperature": None,
        "probability_scale": 1 / 65535,
        "window": "bspline",
        "spline_order": 2,
        "overlap": 0.5,
        "patch_size": 8,
        "tta": "none",
        "combine": None,
        "uncertainty": None,
        "crop_labelled": None,
        "precision": "fp32",
    }
    other = replace(SETTINGS, threshold=0.5)
    with pytest.raises(DataError, match=r"predictions\.json.*threshold=0\.7.*threshold=0\.5"):
        predict_cases(FirstChannel(), [], FLAIR, tmp_path / "p", inference=other, checksum="abc")
    strict = replace(SETTINGS, min_peak=0.9)
    with pytest.raises(DataError, match=r"predictions\.json.*min_peak=None.*min_peak=0\.9"):
        predict_cases(FirstChannel(), [], FLAIR, tmp_path / "p", inference=strict, checksum="abc")
    (tmp_path / "p" / "predictions.json").write_text("{}")
    with pytest.raises(DataError, match="another output_dir"):
        predict_cases(FirstChannel(), [], FLAIR, tmp_path / "p", inference=SETTINGS, checksum="abc")


def test_an_unwritable_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("a file")
    with pytest.raises(DataError, match=r"p.*cannot be written"):
        predict_cases(FirstChannel(), [], FLAIR, tmp_path / "p", inference=SETTINGS, checksum="c")


def test_a_real_case_comes_back_on_its_grid(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "open_ms_data" / "cross_sectional" / "MNI" / "patient07"
    path = next(folder.glob("FLAIR*.nii.gz"))
    case = Case(case_id="patient07", subject_id="patient07", images={"FLAIR": path})
    assert (
        predict_cases(
            FirstChannel(),
            [case],
            FLAIR,
            tmp_path,
            inference=Inference(patch_size=96, overlap=0),
            checksum="c",
        )
        == {}
    )
    probability, image = read_volume(tmp_path / "patient07_probability.nii.gz"), read_volume(path)
    np.testing.assert_allclose(probability.affine, image.affine, atol=1e-5)
    brain = image.data != 0
    order = np.argsort(image.data[brain])
    assert (np.diff(probability.data[brain][order]) > -2e-3).all(), (
        "brighter voxels are more probable"
    )
