"""Images in memory, arrays or nibabel objects: written to files, so that all are read alike."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike

from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import write_volume


class ScratchFolder:
    """A folder that lasts as long as this object.

    Unlike tempfile's it may be left to the garbage collector, without a warning.

    Attributes:
        path: The folder.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="tversky_seg_"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def is_nibabel_image(image: Any) -> bool:
    """Tell whether this is an image of nibabel, of any format."""
    return isinstance(image, nib.spatialimages.SpatialImage)


def name_of(image: Any) -> Path | None:
    """Return the file that a nibabel image was read from; None for an array or a new image."""
    if not is_nibabel_image(image):
        return None
    name = image.get_filename()
    return None if name is None else Path(name)


def write_image(path: Path, image: Any, affine: ArrayLike | None) -> None:
    """Write an image in memory to a NIfTI file of float32, as which images are read.

    Args:
        path: `.nii` file.
        image: Array (X, Y, Z), or an image of nibabel.
        affine: (4, 4) of an array, voxel indices to mm in RAS.

    Raises:
        DataError: Voxels that are no numbers, or complex ones.
        ValueError: An array without affine, or of other dimensions.
    """
    if is_nibabel_image(image):
        _check_type(image.dataobj.dtype, path)
        # In float32 as the reader scales, so that the voxels are those of the image's own file.
        voxels = np.asarray(image.dataobj, dtype=np.float32)
        copy = nib.Nifti1Image.from_image(image)
        header = copy.header.copy()
        header.set_data_dtype(np.float32)
        header.set_slope_inter(1.0, 0.0)
        nib.save(nib.Nifti1Image(voxels, copy.affine, header), path)
        return
    given = np.asarray(image)
    _check_type(given.dtype, path)
    voxels = given.astype(np.float32, copy=False)
    if voxels.ndim != 3:
        raise ValueError(f"an image must have the shape (X, Y, Z), got {voxels.shape}")
    matrix = np.asarray(affine, dtype=np.float64)
    if affine is None or matrix.shape != (4, 4):
        raise ValueError("affine must be the (4, 4) matrix of the array's grid, as image.affine")
    if not np.isfinite(matrix).all() or np.linalg.det(matrix[:3, :3]) == 0:
        raise ValueError(f"affine must span a grid of voxels, got {matrix.tolist()}")
    write_volume(path, voxels, matrix)


def _check_type(dtype: np.dtype[Any], path: Path) -> None:
    """Refuse voxels that are no real numbers: as float32 they would lose a part without a word."""
    if dtype.kind not in "biuf":
        raise DataError(path, f"holds {dtype} voxels", "expected one number per voxel")
