import numpy as np
import pytest
import torch

from tversky_seg.data.patches.augmentation import Augmentation
from tversky_seg.data.patches.lesion_growth import TEXTURE, grow

ISO = (1.0, 1.0, 1.0)


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


def test_growth_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"growth_probability=1\.5"):
        Augmentation(growth_probability=1.5)


def test_a_patch_with_much_lesion_stays_as_it_is() -> None:
    image, labels = torch.ones(1, 20, 20, 20), torch.zeros(1, 20, 20, 20, dtype=torch.uint8)
    labels[0, :10, :10, :10] = 1
    assert grow(image, labels, reach_mm=3, spacing_mm=(1, 1, 1))[1].sum() > 1000  # 1 ml
    assert grow(image, labels, reach_mm=3, spacing_mm=(1, 1, 3))[1] is labels  # 3 ml
