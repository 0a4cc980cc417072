"""A case whose file has an oblique affine."""

from pathlib import Path

import nibabel as nib
import numpy as np

from tversky_seg.data.case import Case
from tversky_seg.data.preprocessing import Preprocessing

OBLIQUE = np.array(
    [[0.0, -2.0, 0.1, 10.0], [1.0, 0.1, 0.0, -20.0], [0.0, 0.2, 3.0, 5.0], [0, 0, 0, 1.0]]
)


def a_case(
    folder: Path, name: str = "a", shape: tuple[int, int, int] = (20, 14, 9), seed: int = 0
) -> Case:
    """Write a file with an oblique affine, permuted axes and a brain of noise on zeros."""
    data = np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)
    brain = np.zeros(shape, bool)
    brain[3:-3, 2:-2, 2:-2] = True
    path = folder / f"{name}_FLAIR.nii.gz"
    nib.save(nib.Nifti1Image(np.where(brain, data, 0), OBLIQUE), path)
    return Case(case_id=name, subject_id=name, images={"FLAIR": path})


FLAIR = Preprocessing(modalities=("FLAIR",))
