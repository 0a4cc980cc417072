"""What a NIfTI header may declare, checked before anything is allocated or believed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import file_and_frame, is_gzip

MAX_VOXELS = 2**30
_MAX_GZIP_RATIO = 1032  # deflate never does better


def check_header(image: Any, path: Path, *, size: int) -> None:
    """Check that a header declares one 3D volume that its file can hold, and no nonsense.

    Args:
        image: Image of nibabel, whose voxels have not been read.
        path: Its file, perhaps with a frame.
        size: Bytes of the file.

    Raises:
        DataError: Another shape, no plain numbers, more voxels than the file can hold, or entries
            that programs read differently.
    """
    file, _ = file_and_frame(path)
    _check_shape(image.shape, path)
    _check_size(image, file, size)
    _refuse_repaired_header(image, file)


def times_mm(spacing_mm: Iterable[float]) -> str:
    """Write sizes of a voxel as `1 x 1 x 3 mm`."""
    return " x ".join(f"{size:g}" for size in spacing_mm) + " mm"


def _check_shape(shape: tuple[int, ...], path: Path) -> None:
    """Check that a file holds one 3D volume, or the frame that the path names."""
    file, frame = file_and_frame(path)
    fault = f"has shape {_times(shape)}"
    n_frames = max(shape[3:], default=1)
    if len(shape) < 3 or min(shape) < 1 or (frame is None and n_frames > 1):
        expected = "expected one 3D volume"
        if len(shape) == 4:
            expected += f", or the frame named, as {file.name}@0"
        raise DataError(file, fault, expected)
    if frame is not None and (len(shape) > 4 or frame >= n_frames):
        expected = f"expected one from 0 to {n_frames - 1}"
        raise DataError(path, f"{fault}, no frame {frame}", expected)


def _refuse_repaired_header(image: Any, file: Path) -> None:
    """Refuse a header that nibabel repairs although it decides on the voxels or their place."""
    with image.file_map["image"].get_prepare_fileobj("rb") as stream:
        header = type(image.header).from_fileobj(stream, check=False)
    n_axes = int(header["dim"][0])
    if n_axes > 7:
        raise DataError(file, f"its header declares {n_axes} axes", "expected 3")
    # From byte 0 on, nibabel would take the header itself for voxels.
    offset = float(header["vox_offset"])
    if offset < header.single_vox_offset:
        fault = f"its header says that the voxels begin at byte {offset:g}, inside of it"
        raise DataError(file, fault, "repair vox_offset in the header")
    # A form of an unknown code is ignored: the image would lie elsewhere.
    for name in ("qform_code", "sform_code"):
        if header[name] != image.header[name]:
            fault = f"its header has the unknown {name} {int(header[name])}"
            raise DataError(file, fault, "repair it")
    # Of a size of 0 nibabel makes 1 mm, of a negative one its opposite.
    sizes = header["pixdim"][1:4]
    if image.header["sform_code"] <= 0 and min(sizes) <= 0:
        fault = f"its header gives voxels of {times_mm(sizes)}"
        raise DataError(file, fault, "repair pixdim in the header")


def _check_size(image: Any, file: Path, size: int) -> None:
    """Check that a file of so many bytes can hold the voxels that its header declares."""
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise DataError(file, f"holds {dtype} voxels", "expected one number per voxel")
    # Before anything is allocated: a damaged header can declare terabytes.
    n_voxels = math.prod(image.shape)
    last_byte = image.dataobj.offset + n_voxels * dtype.itemsize
    capacity = size * _MAX_GZIP_RATIO if is_gzip(file) else size
    if n_voxels <= MAX_VOXELS and last_byte <= capacity:
        return
    fault = (
        f"is cut off or damaged: its header declares {_times(image.shape)} voxels of "
        f"{dtype.itemsize} bytes from byte {image.dataobj.offset:.6g} on, and it has {size} bytes"
    )
    raise DataError(file, fault, f"expected a whole file of at most {MAX_VOXELS} voxels")


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)
