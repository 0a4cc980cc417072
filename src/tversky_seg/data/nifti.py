"""3D images in NIfTI files: checked when read, whole or absent when written."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import ArrayLike, DTypeLike, NDArray

from tversky_seg.data.affines import affine_shift_voxels, metric_spacing, spacing_of
from tversky_seg.data.errors import DataError, NonFiniteError
from tversky_seg.data.grids import FINE_SHIFT_VOXELS
from tversky_seg.data.image_files import check_image_file, file_and_frame, is_gzip
from tversky_seg.data.nifti_header import check_header, times_mm
from tversky_seg.runtime.files import replacing

PROBABILITY_SCALE = 1 / 65535
MIN_VOXEL_MM = 0.001
MAX_VOXEL_MM = 100
_CHUNK = 2**20  # bytes
_UNIT_BITS = 0b111  # of xyzt_units; the others are the unit of time
_UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown, metre, mm, micron
_WHOLE_NUMBER_TOLERANCE = 1e-3
_MAX_WHOLE_NUMBER = 2**53  # beyond it float64 leaves out whole numbers
_UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    # From numbers in a damaged header that nibabel does not check:
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
)
_SFORM_FIELDS = ("sform_code", "srow_x", "srow_y", "srow_z")
_QFORM_FIELDS = (
    "qform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
)


@dataclass(frozen=True)
class Volume:
    """A 3D image in memory.

    Attributes:
        data: (X, Y, Z), axes as in the file.
        affine: (4, 4) float64, voxel indices to mm in RAS.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each axis."""
        x, y, z = self.data.shape
        return (x, y, z)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along each axis of the array; the product is the volume of a voxel."""
        return metric_spacing(self.affine)


def read_volume(path: Path | str, *, dtype: DTypeLike | None = np.float32) -> Volume:
    """Read a 3D image with its scale factor applied.

    Args:
        path: `.nii` or `.nii.gz`. A 4D file of one frame is taken as 3D; `scan.nii.gz@1` is the
            second frame of one of several.
        dtype: Type of the result; None: as stored, float64 if a scale factor applies.

    Raises:
        DataError: The file is missing, not a NIfTI file, damaged, not 3D, absurdly large, has no
            usable affine, voxels beyond 0.001 to 100 mm, or voxels that are NaN or infinite.
    """
    path = Path(path)
    image = _open(path)
    data = _read_voxels(image, path, dtype=dtype)
    _refuse_non_finite(data, path)
    return Volume(data, _affine_of(image, path))


def read_label(path: Path | str) -> Volume:
    """Read a label image as the smallest integer type that holds its values.

    Values that a scale factor decodes to 0.99999997 are rounded.

    Raises:
        DataError: As `read_volume`, or a voxel is not a whole number.
    """
    path = Path(path)
    image = _open(path)
    data = _read_voxels(image, path, dtype=None)
    if data.dtype.kind == "f":
        _refuse_non_finite(data, path)
        data = _rounded(data, path)
    return Volume(data.astype(_smallest_type(data)), _affine_of(image, path))


def read_grid(path: Path | str) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Read shape and affine (4, 4) of an image file, from its header alone.

    The checksum of a `.nii.gz` is compared when its voxels are read.

    Raises:
        DataError: As `read_volume`, except for what only the voxels can show.
    """
    path = Path(path)
    image = _open(path)
    x, y, z = image.shape[:3]
    return (x, y, z), _affine_of(image, path)


def write_volume(
    path: Path | str,
    data: NDArray[Any],
    affine: ArrayLike,
    *,
    scale: float | None = None,
    like: Path | str | None = None,
) -> None:
    """Write a NIfTI file that is whole or absent.

    Args:
        path: `.nii` or `.nii.gz`; its folder is made.
        data: (X, Y, Z). Booleans are stored as uint8, float64 as float32, integers in the smallest
            type.
        affine: (4, 4), stored as sform and qform.
        scale: Store `data / scale` rounded to uint16 with this as scale factor, as
            `PROBABILITY_SCALE` for probabilities in [0, 1]; None: store the values themselves.
        like: Image on the same grid, whose sform, qform, codes and unit are stored; None: the
            affine is both forms in mm, with code 1.

    Raises:
        DataError: The file cannot be written, or `like` cannot be read.
        ValueError: Values do not fit the scale.
    """
    path = Path(path)
    data = np.asarray(data)
    stored = _storable(data) if scale is None else _scaled(data, scale)
    image = nib.Nifti1Image(stored, np.asarray(affine, dtype=np.float64))
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    if like is not None:
        _copy_forms(Path(like), image)
        # An image without affine is saved with the forms of its header, whatever their unit.
        image = nib.Nifti1Image(stored, None, image.header)
    image.header.set_slope_inter(1.0 if scale is None else scale, 0.0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as scratch:
            nib.save(image, scratch)
    except OSError as error:
        fault = f"cannot be written ({error.strerror or error})"
        raise DataError(path, fault, "name a folder with room") from error


def _copy_forms(source: Path, image: Any) -> None:
    """Give an image the sform, qform and unit of another file that places its voxels alike.

    A header can hold two positions: the qform, mostly that in the scanner, and the sform, mostly
    one in a template. Programs differ in which they use: ITK takes the qform unless the code of the
    sform is 1. With both, a mask lies on its image in all of them.
    """
    opened = _open(source)
    header = opened.header
    has_form = header["sform_code"] > 0 or header["qform_code"] > 0
    shift = affine_shift_voxels(image.affine, _affine_of(opened, source), image.shape)
    if not has_form or shift > FINE_SHIFT_VOXELS:
        return
    if _unit_mm(header, source) != 1:
        image.header["xyzt_units"] = header["xyzt_units"]
    for field in (*_SFORM_FIELDS, *_QFORM_FIELDS):
        image.header[field] = header[field]
    # The size of a voxel belongs to the qform; behind it are the sizes of further axes.
    image.header["pixdim"][:4] = header["pixdim"][:4]


def _open(path: Path) -> Any:
    """Open a file that declares one 3D volume of plain numbers, as many as it can hold."""
    file, _ = file_and_frame(path)
    size = check_image_file(file)
    try:
        # A damaged header may overflow; what comes of it is judged below, by `check_header`.
        with np.errstate(all="ignore"):
            image = nib.load(file)
        _ = image.shape
    except _UNREADABLE as error:
        fault = f"cannot be read ({_reason(error, file)})"
        raise DataError(file, fault, "expected a NIfTI image") from error
    if not isinstance(image, nib.Nifti1Image):  # NIfTI-2 is a subclass
        raise DataError(file, f"is a {type(image).__name__}", "expected a NIfTI image")
    check_header(image, path, size=size)
    return image


def _read_voxels(image: Any, path: Path, *, dtype: DTypeLike | None) -> NDArray[Any]:
    file, _ = file_and_frame(path)
    try:
        if is_gzip(file):
            data = _decompress(image, path, dtype=dtype)
        else:
            data = _as_array(image, path, dtype=dtype)
    except _UNREADABLE as error:
        fault = f"is cut off or damaged ({_reason(error, file)})"
        raise DataError(path, fault, "copy or download it again") from error
    # A 4D file of one frame becomes 3D, without a copy in NIfTI's order of voxels.
    return data.reshape(data.shape[:3], order="F")


def _decompress(image: Any, path: Path, *, dtype: DTypeLike | None) -> NDArray[Any]:
    """Read the voxels of a gzip file, and compare its checksum."""
    file, _ = file_and_frame(path)
    with gzip.open(file) as stream:
        data = _as_array(type(image).from_stream(stream), path, dtype=dtype)
        # The checksum comes after the last voxel, where nibabel stops: without it 15 % of flipped
        # bits, and most files whose end is missing, would only give other voxels.
        while stream.read(_CHUNK):
            pass
    return data


def _as_array(image: Any, path: Path, *, dtype: DTypeLike | None) -> NDArray[Any]:
    """Read the voxels of an image, or of the frame that the path names."""
    _, frame = file_and_frame(path)
    voxels = image.dataobj
    # Values beyond the type become infinite, which is refused later.
    with np.errstate(all="ignore"):
        if frame is not None and len(image.shape) == 4:
            voxels = voxels[..., frame]
        return np.asarray(voxels, dtype=dtype)


def _reason(error: Exception, file: Path) -> str:
    return str(error).replace(str(file), file.name)


def _refuse_non_finite(data: NDArray[Any], path: Path) -> None:
    n = data.size - np.count_nonzero(np.isfinite(data))
    if n:
        expected = "expected finite values, as 0 outside the brain"
        fault = NonFiniteError(path, f"{n} voxels are NaN or infinite", expected)
        fault.n_voxels = int(n)
        raise fault


def _rounded(data: NDArray[Any], path: Path) -> NDArray[Any]:
    highest = float(np.abs(data).max())
    if highest > _MAX_WHOLE_NUMBER:
        raise DataError(path, f"a voxel of {highest:g}", "expected label values")
    rounded: NDArray[Any] = np.rint(data)
    odd = data[np.abs(data - rounded) > _WHOLE_NUMBER_TOLERANCE]
    if odd.size:
        fault = f"{odd.size} voxels are not whole numbers, as {odd[0]:g}"
        raise DataError(path, fault, "expected label values")
    return rounded


def _smallest_type(data: NDArray[Any]) -> np.dtype[Any]:
    """Choose the smallest integer type that holds all values of an array."""
    lowest = int(data.min())
    highest = int(data.max())
    for dtype in map(np.dtype, "BbHhIiQq"):  # unsigned first, of 8 to 64 bits
        limits = np.iinfo(dtype)
        if limits.min <= lowest and highest <= limits.max:
            return dtype
    raise AssertionError(f"no integer type holds {lowest} and {highest}")


def _affine_of(image: Any, path: Path) -> NDArray[np.float64]:
    """Return the map from voxel indices to mm in RAS."""
    affine = np.asarray(image.affine, dtype=np.float64)
    unit_mm = _unit_mm(image.header, path)
    if unit_mm != 1:
        affine = affine.copy()
        affine[:3] *= unit_mm
    if not _is_invertible(affine):
        with np.errstate(over="ignore"):
            rows = affine[:3].round(4).tolist()
        fault = f"its affine {rows} is not a map to space"
        raise DataError(path, fault, "repair the header")
    spacing_mm = spacing_of(affine)
    # A voxel of a kilometre would be resampled to a million, with gigabytes.
    if min(spacing_mm) < MIN_VOXEL_MM or max(spacing_mm) > MAX_VOXEL_MM:
        fault = f"has voxels of {times_mm(spacing_mm)}"
        raise DataError(path, fault, f"expected {MIN_VOXEL_MM} to {MAX_VOXEL_MM} mm")
    return affine


def _unit_mm(header: Any, path: Path) -> float:
    """Return the header's unit of length in mm; mm if it names none."""
    code = int(header["xyzt_units"]) & _UNIT_BITS
    if code not in _UNITS_MM:
        fault = f"its header gives lengths in the unknown unit {code}"
        raise DataError(path, fault, "repair xyzt_units in the header")
    return _UNITS_MM[code]


def _is_invertible(affine: NDArray[np.float64]) -> bool:
    if not np.isfinite(affine).all():
        return False
    axes = affine[:3, :3]
    with np.errstate(all="ignore"):  # too large a volume is infinite, and refused
        box_volume = np.prod(np.linalg.norm(axes, axis=0))
        return bool(abs(np.linalg.det(axes)) > 1e-6 * box_volume)


def _storable(data: NDArray[Any]) -> NDArray[Any]:
    """Convert voxels to the type that they are stored in."""
    if data.dtype.kind == "b":
        return data.astype(np.uint8)
    if data.dtype.kind in "iu":
        return data.astype(_smallest_type(data))
    return data.astype(np.float32)


def _scaled(data: NDArray[Any], scale: float) -> NDArray[np.uint16]:
    """Round `data / scale` to uint16."""
    raw = np.empty_like(data, dtype=np.uint16)
    # Plane by plane, because float64 takes eight bytes a voxel.
    for plane, raw_plane in zip(data, raw, strict=True):
        levels = np.rint(np.asarray(plane, dtype=np.float64) / scale)
        if not (levels.min() >= 0 and levels.max() <= 65535):  # NaN is refused, too
            expected = f"expected values in [0, {65535 * scale:g}]"
            raise ValueError(f"{expected}, got {data.min():g} to {data.max():g}")
        raw_plane[...] = levels
    return raw
