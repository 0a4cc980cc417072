"""An example case for checks: noise in the shape of a brain, in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tversky_seg.data.nifti import write_volume
from tversky_seg.data.preprocessing.pipeline import Preprocessing

BORDER = 2  # voxels of background around


def write_example_case(
    folder: Path, preprocessing: Preprocessing, *, sides: Sequence[int]
) -> dict[str, Path]:
    """Write an image of each modality, a quarter longer than a window along its first axis.

    Args:
        folder: Folder to write to.
        preprocessing: Modalities, and the voxel size.
        sides: Sides of a window in voxels.

    Returns:
        Modality -> file.
    """
    rng = np.random.default_rng(0)
    x, y, z = sides
    # Longer than a window, so that windows overlap and their weights are checked too.
    shape = (x + x // 4, y, z)
    spacing_mm = [size or 1.0 for size in preprocessing.spacing_mm or (1.0, 1.0, 1.0)]
    affine = np.diag([*spacing_mm, 1.0])
    files = {}
    for name in preprocessing.modalities:
        image = np.zeros([side + 2 * BORDER for side in shape], dtype=np.float32)
        inside = (slice(BORDER, -BORDER),) * 3
        image[inside] = rng.normal(100, 10, shape)
        files[name] = folder / f"example_{name}.nii.gz"
        write_volume(files[name], image, affine)
    return files
