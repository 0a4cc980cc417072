import numpy as np
import pytest
import torch
from scipy import ndimage

from tversky_seg.data.patches.augmentation import Augmentation
from tversky_seg.data.patches.lesion_growth import TEXTURE, plan_growth

ISO = (1.0, 1.0, 1.0)


def grow(
    image: torch.Tensor,
    labels: torch.Tensor,
    *,
    reach_mm: float,
    spacing_mm: tuple[float, float, float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Grown image and labels; both as they are where nothing grows."""
    growth = plan_growth(labels, reach_mm=reach_mm, spacing_mm=spacing_mm)
    return (image, labels) if growth is None else growth.apply(image, labels)


def brain_with_a_lesion(side: int = 15) -> tuple[torch.Tensor, torch.Tensor]:
    image, labels = (
        torch.ones(2, side, side, side),
        torch.zeros(1, side, side, side, dtype=torch.uint8),
    )
    middle = side // 2
    labels[0, middle, middle, middle] = 1
    image[0, middle, middle, middle], image[1, middle, middle, middle] = 3.0, 0.5
    image[:, :2] = 0  # outside the brain
    return image, labels


def test_a_voxel_grows_into_the_ball_around_it() -> None:
    image, labels = brain_with_a_lesion()
    grown_image, grown = grow(image, labels, reach_mm=2.5, spacing_mm=ISO)
    offsets = np.indices(grown.shape[1:]) - 7
    ball = np.sqrt((offsets**2).sum(0)) <= 2.5
    assert np.array_equal(grown[0].numpy() > 0, ball)
    assert torch.equal(grown_image[:, 7, 7, 7], image[:, 7, 7, 7])  # what was lesion stays
    assert torch.allclose(
        grown_image[:, 7, 7, 8], torch.tensor([3.0, 0.5])
    )  # 1 mm away: fully lesion; flat tissue
    assert torch.allclose(
        grown_image[0, 7, 7, 9], torch.tensor(1 + 0.75 * 2.0)
    )  # (2.5 - 2) / 2 + 0.5 of the way
    assert torch.equal(grown_image[:, :, :, :2], image[:, :, :, :2])  # far away nothing changes


def test_the_texture_of_the_tissue_shows_through() -> None:
    image, labels = brain_with_a_lesion()
    image[0, 7, 7, 8] = 1.5
    grown_image, _ = grow(image, labels, reach_mm=4, spacing_mm=ISO)
    assert grown_image[0, 7, 7, 8] == pytest.approx(
        3 + TEXTURE * 0.5, abs=0.02
    )  # around: 1, but for that one voxel


def test_distances_are_in_mm_and_growth_ends_at_the_brain() -> None:
    image, labels = brain_with_a_lesion()
    image[:, :7] = 0
    _, grown = grow(image, labels, reach_mm=3, spacing_mm=(1, 3, 1))
    found = grown[0].numpy() > 0
    assert found[7:, 7, 7].sum() == 4
    assert found[7, :, 7].sum() == 3
    assert not found[:7].any()


def test_labels_are_those_of_the_nearest_lesion() -> None:
    image, labels = torch.ones(1, 20, 9, 9), torch.zeros(2, 20, 9, 9, dtype=torch.int32)
    labels[:, 3, 4, 4] = torch.tensor([1, 7])
    labels[:, 16, 4, 4] = torch.tensor([1, 9])
    _, grown = grow(image, labels, reach_mm=5, spacing_mm=ISO)
    assert grown[1, 8, 4, 4] == 7
    assert grown[1, 11, 4, 4] == 9
    assert torch.equal(grown[0] > 0, grown[1] > 0)


def test_nothing_to_grow_and_nowhere_to_grow_leave_all_as_it_is() -> None:
    image, labels = brain_with_a_lesion()
    assert grow(image, torch.zeros_like(labels), reach_mm=3, spacing_mm=ISO)[0] is image
    everywhere = torch.ones_like(labels)
    assert grow(image, everywhere, reach_mm=3, spacing_mm=ISO)[1] is everywhere


def test_growth_is_drawn_last_and_only_where_it_may_happen() -> None:
    image, labels = brain_with_a_lesion()
    plain, growing = Augmentation(), Augmentation(growth_probability=1.0)
    size = image.shape[1:]
    rng = np.random.default_rng(3)
    without = plain.draw(rng, n_channels=2, size=size, spacing_mm=ISO)
    rng = np.random.default_rng(3)
    change = growing.draw(rng, n_channels=2, size=size, spacing_mm=ISO)
    assert without.growth_mm == 0
    assert 0 < change.growth_mm <= growing.growth_mm
    assert without.turn == change.turn
    moved = change.apply(image.clone(), labels)[1]
    assert (moved > 0).sum() >= 1


def grown_by_whole_volumes(
    image: np.ndarray, labels: np.ndarray, reach_mm: float, spacing_mm: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The same, plainly, in float64, by distances in all of the patch."""
    lesion = labels.any(0)
    brain = image.any(0) | lesion
    distance, nearest = ndimage.distance_transform_edt(~lesion, spacing_mm, return_indices=True)
    tissue = brain & (distance > 1) & (distance < 4)
    share = ((reach_mm - distance) / 2 + 0.5).clip(0, 1) * (brain & ~lesion)
    channels = []
    for channel in image.astype(np.float64):
        filled = channel[lesion].mean() + TEXTURE * (channel - channel[tissue].mean())
        channels.append(channel + share * (filled - channel))
    is_grown = brain & (distance <= reach_mm)
    return np.stack(channels), np.where(is_grown, labels[:, *nearest], labels)


@pytest.mark.parametrize("spacing_mm", [ISO, (0.9, 0.7, 2.2), (3.0, 1.0, 1.0)])
def test_growth_is_that_by_distances_in_the_whole_patch(spacing_mm: tuple[float, ...]) -> None:
    rng = np.random.default_rng(4)
    for reach_mm in (0.3, 3.0, 6.5):
        image = rng.standard_normal((2, 40, 36, 30), dtype=np.float32)
        image[:, rng.random((40, 36, 30)) < 0.1] = 0
        labels = np.zeros((2, 40, 36, 30), np.int32)
        for number in range(1, 6):
            x, y, z = rng.integers(0, (38, 34, 28))
            labels[rng.integers(2), x : x + 2, y : y + 2, z : z + 2] = number
        expected_image, expected = grown_by_whole_volumes(image, labels, reach_mm, spacing_mm)
        tensors = torch.from_numpy(image), torch.from_numpy(labels)
        grown_image, grown = grow(*tensors, reach_mm=reach_mm, spacing_mm=spacing_mm)
        np.testing.assert_array_equal(grown, expected)
        np.testing.assert_allclose(grown_image, expected_image, atol=1e-6)


def test_growth_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"growth_probability=1\.5"):
        Augmentation(growth_probability=1.5)


def test_a_patch_with_much_lesion_stays_as_it_is() -> None:
    image, labels = torch.ones(1, 20, 20, 20), torch.zeros(1, 20, 20, 20, dtype=torch.uint8)
    labels[0, :10, :10, :10] = 1
    assert grow(image, labels, reach_mm=3, spacing_mm=(1, 1, 1))[1].sum() > 1000  # 1 ml
    assert grow(image, labels, reach_mm=3, spacing_mm=(1, 1, 3))[1] is labels  # 3 ml
