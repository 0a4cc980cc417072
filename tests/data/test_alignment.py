"""Whether two images lie on each other: shifts that are known, and real examinations."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from tversky_seg.data.alignment import measure_alignment
from tversky_seg.data.nifti import Volume, read_volume

SPACING = (1.0, 1.6, 2.0)


def a_brain(seed: int = 0) -> Volume:
    """A brain of two random tissues on a grid with flipped first axis."""
    rng = np.random.default_rng(seed)
    shape = (48, 64, 40)
    centre = (np.array(shape) - 1) / 2
    distance = (np.indices(shape).T - centre).T / centre[:, None, None, None]
    inside = (distance**2).sum(axis=0) < 0.7
    texture = ndimage.gaussian_filter(rng.normal(size=shape), 3)
    data = np.where(inside, np.where(texture > 0, 900, 300), 0).astype(np.float32)
    affine = np.diag([-SPACING[0], *SPACING[1:], 1.0])
    affine[:3, 3] = (40, -30, 10)
    return Volume(data, affine)


def moved(volume: Volume, mm: tuple[float, float, float]) -> Volume:
    affine = volume.affine.copy()
    affine[:3, 3] += mm
    return Volume(volume.data, affine)


def test_an_image_lies_on_itself_in_another_contrast() -> None:
    brain = a_brain()
    other = Volume(3 * brain.data + 100 * (brain.data > 0), brain.affine)
    alignment = measure_alignment(brain, other)
    assert alignment.fault is None
    assert alignment.distance_mm < 0.1
    assert alignment.similarity > 0.9


@pytest.mark.parametrize("mm", [(3.0, 0.0, 0.0), (0.0, -4.0, 0.0), (2.0, 2.0, -6.0)])
def test_a_shift_is_measured_along_right_anterior_superior(mm: tuple[float, ...]) -> None:
    brain = a_brain()
    alignment = measure_alignment(moved(brain, mm), brain)
    assert alignment.shift_mm == pytest.approx(mm, abs=1)
    assert "mm off the later" in alignment.fault
    assert alignment.best_similarity > alignment.similarity


def test_a_turned_image_is_found_by_its_parts() -> None:
    brain = a_brain()
    angle = np.radians(10)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    centre = brain.affine @ [*((np.array(brain.shape) - 1) / 2), 1]
    there, back = np.eye(4), np.eye(4)
    there[:3, 3], back[:3, 3] = centre[:3], -centre[:3]
    turned = Volume(brain.data, there @ turn @ back @ brain.affine)
    alignment = measure_alignment(turned, brain)
    assert alignment.distance_mm < 1
    assert alignment.local_shift_mm > 2
    assert "turned" in alignment.fault


def test_other_subjects_and_empty_images_are_named() -> None:
    brain = a_brain()
    assert measure_alignment(a_brain(1), brain).fault is not None
    assert "empty" in measure_alignment(moved(brain, (500, 0, 0)), brain).fault
    blank = Volume(np.zeros_like(brain.data), brain.affine)
    assert "empty" in measure_alignment(blank, brain).fault


def test_a_real_pair_lies_on_each_other_and_a_shifted_copy_does_not(real_data: Path) -> None:
    folder = real_data / "open_ms_longitudinal" / "patient12"
    earlier = read_volume(folder / "study1_FLAIR_common.nii.gz")
    later = read_volume(folder / "study2_FLAIR_common.nii.gz")
    alignment = measure_alignment(earlier, later)
    assert alignment.fault is None
    assert alignment.distance_mm < 0.5
    shifted = measure_alignment(moved(earlier, (0, 0, 3)), later)
    assert shifted.shift_mm == pytest.approx((0, 0, 3), abs=0.5)
    assert "3.2 mm off the later" in shifted.fault
