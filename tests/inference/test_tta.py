from collections.abc import Sequence

import numpy as np
import pytest
import torch

from helpers.networks import FirstChannel, Local, Lopsided, an_image
from tversky_seg.inference.sliding_window import predict_volume
from tversky_seg.inference.tta import VIEWS, views


def test_the_four_rotations_are_turns_by_180_degrees() -> None:
    volume = np.random.default_rng(0).random((3, 4, 5))
    turned = [volume, *(np.rot90(volume, 2, axes) for axes in ((0, 1), (0, 2), (1, 2)))]
    for axes, expected in zip(views("rotations180"), turned, strict=True):
        np.testing.assert_array_equal(np.flip(volume, axes), expected)


def test_the_eight_flips_are_all_subsets_of_the_axes() -> None:
    assert len(set(views("flips8"))) == 8
    assert set(views("rotations180")) < set(views("flips8"))
    assert views("none") == ((),)
    assert views(["none", "zx"]) == ((), (0, 2))


@pytest.mark.parametrize("tta", ["flips", [], ["x", "x"], ["xy", "yx"], ["xx"], ["w"], [""]])
def test_other_views_are_refused_with_what_was_given(tta: str | Sequence[str]) -> None:
    with pytest.raises(ValueError, match=r"tta.*got"):
        views(tta)


@pytest.mark.parametrize("tta", [*VIEWS, ["x", "yz"]])
def test_the_mean_over_views_equals_a_loop_over_mirrored_windows(tta: str | Sequence[str]) -> None:
    image = an_image(1, 12, 8, 8)
    expected = torch.zeros(1, 12, 8, 8)
    for axes in views(tta):
        dims = [axis + 1 for axis in axes]
        whole = Lopsided()(image.flip(dims)[None])[0].sigmoid()
        expected += whole.flip(dims) / len(views(tta))
    probability = predict_volume(Lopsided(), image, patch_size=(12, 8, 8), tta=tta, batch_size=3)
    torch.testing.assert_close(probability, expected)


def test_views_are_undone_exactly_so_a_network_that_ignores_place_gives_the_same() -> None:
    image = an_image(1, 21, 16, 13)
    plain = predict_volume(FirstChannel(), image, patch_size=8, window="uniform", overlap=0)
    for name in ("x", "yz", "xyz"):
        assert torch.equal(
            predict_volume(
                FirstChannel(), image, patch_size=8, window="uniform", overlap=0, tta=[name]
            ),
            plain,
        )


def test_views_of_overlapping_windows_are_weighted_as_the_windows_are() -> None:
    image = an_image(1, 20, 20, 20)
    each = [
        predict_volume(Local(), image, patch_size=8, tta=[name]) for name in VIEWS["rotations180"]
    ]
    together = predict_volume(Local(), image, patch_size=8, tta="rotations180")
    torch.testing.assert_close(together, torch.stack(each).mean(0))


def test_each_view_costs_one_pass_of_each_window() -> None:
    network = Lopsided()
    predict_volume(
        network, an_image(1, 16, 16, 16), patch_size=8, overlap=0, tta="rotations180", batch_size=3
    )
    assert network.n_windows == 4 * 8
