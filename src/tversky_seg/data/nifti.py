"""3D image files: read with a clear word about every fault, written whole or not at all. The only use of nibabel."""

import itertools
import re
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import ArrayLike, DTypeLike, NDArray

from tversky_seg.data.errors import DataError

PROBABILITY_SCALE = 1 / 65535
MAX_VOXELS = 2**30
NIFTI_ENDINGS = (".nii.gz", ".nii")
_FRAME = re.compile(r"(.+\.nii(?:\.gz)?)@(\d+)")
_MAX_GZIP_RATIO = 1032  # deflate never does better
_UNREADABLE = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error)


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
        """Voxel size along each axis of the array."""
        return spacing_of(self.affine)


def file_and_frame(path: Path | str) -> tuple[Path, int | None]:
    """The file that a path names, and which of its 3D frames where it is a 4D one: `scan.nii.gz@1` is the second."""
    match = _FRAME.fullmatch(str(path))
    return (Path(path), None) if match is None else (Path(match[1]), int(match[2]))


def nifti_stem(path: Path) -> str:
    """Return the file name without `.nii`, `.nii.gz` or frame."""
    path, _ = file_and_frame(path)
    return next(
        (path.name.removesuffix(end) for end in NIFTI_ENDINGS if path.name.endswith(end)), path.stem
    )


def read_volume(path: Path | str, *, dtype: DTypeLike | None = np.float32) -> Volume:
    """Read a 3D image (NIfTI) with its scale factor applied.

    Args:
        path: `.nii` or `.nii.gz`; a 4D file of one frame is taken as 3D, and `scan.nii.gz@1` is the second frame of one
            of several.
        dtype: Of the result; None: as stored, float64 where a scale factor applies.

    Raises:
        DataError: The file is missing, no NIfTI, damaged, not 3D, absurdly large, has no usable affine, or holds
            voxels that are NaN or infinite.
    """
    image = _open(Path(path))
    data = _voxels(image, Path(path), dtype=dtype)
    _refuse_non_finite(data, path)
    return Volume(data, _affine(image, Path(path)))


def read_label(path: Path | str) -> Volume:
    """Read a label image as the smallest integer type that holds its values.

    Values that a scale factor decodes to 0.99999997 are rounded.

    Raises:
        DataError: As `read_volume`, or a voxel is no whole number.
    """
    image = _open(Path(path))
    data = _voxels(image, Path(path), dtype=None)
    if data.dtype.kind == "f":
        _refuse_non_finite(data, path)
        rounded = np.rint(data)
        odd = data[np.abs(data - rounded) > 1e-3]
        if odd.size:
            raise DataError(
                path,
                f"{odd.size} voxels are no whole numbers, as {odd[0]:g}",
                "expected label values",
            )
        data = rounded
    smallest = np.result_type(
        np.min_scalar_type(int(data.min())), np.min_scalar_type(int(data.max()))
    )
    return Volume(data.astype(smallest), _affine(image, Path(path)))


def read_grid(path: Path | str) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape and affine of an image file, from its header alone.

    Raises:
        DataError: As `read_volume`, but for what only the voxels can show.
    """
    image = _open(Path(path))
    x, y, z = image.shape[:3]
    return (x, y, z), _affine(image, Path(path))


def write_volume(
    path: Path | str, data: NDArray[Any], affine: ArrayLike, *, scale: float | None = None
) -> None:
    """Write a NIfTI file; it appears whole or not at all.

    Args:
        path: `.nii` or `.nii.gz`; its folder is made.
        data: (X, Y, Z). Booleans are stored as uint8, float64 as float32, integers in the smallest type.
        affine: (4, 4), stored as sform and qform.
        scale: Store `data / scale` rounded to uint16 with this as scale factor, as `PROBABILITY_SCALE` for
            probabilities in [0, 1]; None: store the values themselves.

    Raises:
        DataError: The file cannot be written.
        ValueError: Values do not fit the scale.
    """
    path = Path(path)
    stored = _stored(np.asarray(data), scale)
    image = nib.Nifti1Image(stored, np.asarray(affine, dtype=np.float64))
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    image.header.set_slope_inter(1.0 if scale is None else scale, 0.0)
    partial = path.with_name(f".{uuid4().hex}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, partial)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):  # also where a parent is a file
            partial.unlink()
        raise DataError(
            path, f"cannot be written ({error.strerror or error})", "name a folder with room"
        ) from error


def spacing_of(affine: ArrayLike) -> tuple[float, float, float]:
    """Voxel size in mm along each axis of an array with this affine (4, 4)."""
    x, y, z = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    return (float(x), float(y), float(z))


def axis_codes(affine: ArrayLike) -> str:
    """Where the axes of an array with this affine (4, 4) most nearly run to, as "RAS" or "LPS"."""
    return "".join(nib.aff2axcodes(np.asarray(affine, dtype=np.float64)))


def affine_shift_voxels(a: ArrayLike, b: ArrayLike, shape: tuple[int, int, int]) -> float:
    """How far apart two affines (4, 4) put a voxel, in voxels of the first: the most along any axis at any corner.

    An affine map is farthest from another at a corner of the array, so the corners stand for all voxels.
    """
    corners = np.array([*itertools.product(*((0, n - 1) for n in shape))])
    homogeneous = np.c_[corners, np.ones(8)]
    voxels = (
        homogeneous
        @ np.linalg.solve(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)).T
    )
    return float(np.abs(voxels[:, :3] - corners).max())


def ras_grid(
    shape: tuple[int, int, int], affine: ArrayLike
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape and affine of the same voxels with axes permuted and flipped to run most nearly to R, A and S."""
    orientation = nib.io_orientation(affine)
    order = np.argsort(orientation[:, 0])
    back = nib.orientations.inv_ornt_aff(orientation, shape)
    x, y, z = (shape[axis] for axis in order)
    return (x, y, z), np.asarray(affine, dtype=np.float64) @ back


def _open(path: Path) -> Any:
    """The nibabel image of a file that declares one 3D volume of plain numbers which it can hold."""
    named, (path, frame) = path, file_and_frame(path)
    size = _size(path)
    _refuse_other_content(path)
    try:
        image = nib.load(path)
        shape, dtype = image.shape, image.get_data_dtype()
    except _UNREADABLE as error:
        raise DataError(
            path, f"cannot be read ({_said(error, path)})", "expected a NIfTI image"
        ) from error
    n_frames = max(shape[3:], default=1)
    if len(shape) < 3 or min(shape) < 1 or (frame is None and n_frames > 1):
        raise DataError(
            path,
            f"has shape {_times(shape)}",
            f"expected one 3D volume, or the frame named, as {path.name}@0",
        )
    if frame is not None and (len(shape) > 4 or frame >= n_frames):
        raise DataError(
            named,
            f"has shape {_times(shape)}, no frame {frame}",
            f"expected one from 0 to {n_frames - 1}",
        )
    if dtype.kind not in "iuf":
        raise DataError(path, f"holds {dtype} voxels", "expected one number per voxel")
    n_voxels = int(np.prod(shape, dtype=object))
    capacity = size * (_MAX_GZIP_RATIO if path.suffix == ".gz" else 1)
    if n_voxels > MAX_VOXELS or n_voxels * dtype.itemsize > capacity:
        raise DataError(
            path,
            f"the header declares {_times(shape)} voxels of {dtype.itemsize} bytes in a file of {size} bytes",
            f"expected a whole file of at most {MAX_VOXELS} voxels",
        )
    return image


def _size(path: Path) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        found = (
            "a link to a file that is not here"
            if path.is_symlink()
            else (error.strerror or str(error)).lower()
        )
        raise DataError(path, f"{found}", "expected a NIfTI image") from error
    if path.is_dir() or size == 0:
        raise DataError(
            path, f"is {('a folder' if path.is_dir() else 'empty')}", "expected a NIfTI image"
        )
    return size


def _refuse_other_content(path: Path) -> None:
    """Say what a file is that was saved under an image's name."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise DataError(
            path, f"{error.strerror or error}", "expected a readable NIfTI image"
        ) from error
    if start.startswith(b"version https://git-lfs"):
        raise DataError(path, "is a Git LFS pointer, not the image", "fetch it by `git lfs pull`")
    if b"<html" in start.lower() or start.lower().lstrip().startswith(b"<!doctype"):
        raise DataError(path, "is a web page, not an image", "download the file itself")
    if not start.translate(None, bytes([9, 10, 13, *range(32, 127)])):
        raise DataError(path, "is text, not an image", "expected NIfTI")
    if path.suffix == ".gz" and not start.startswith(b"\x1f\x8b"):
        raise DataError(
            path, "is not gzipped though its name says so", "rename it to .nii or fetch it anew"
        )


def _voxels(image: Any, path: Path, *, dtype: DTypeLike | None) -> NDArray[Any]:
    try:
        with np.errstate(all="ignore"):
            frame = file_and_frame(path)[1] if len(image.shape) == 4 else None
            data = np.asarray(
                image.dataobj if frame is None else image.dataobj[..., frame], dtype=dtype
            )
    except _UNREADABLE as error:
        raise DataError(
            path, f"is cut off or damaged ({_said(error, path)})", "fetch it anew"
        ) from error
    return data.reshape(data.shape[:3], order="F")


def _said(error: Exception, path: Path) -> str:
    return str(error).replace(str(path), path.name)


def _refuse_non_finite(data: NDArray[Any], path: Path | str) -> None:
    n = data.size - np.count_nonzero(np.isfinite(data))
    if n:
        raise DataError(
            path,
            f"{n} voxels are NaN or infinite",
            "expected finite values, as 0 outside the brain",
        )


def _affine(image: Any, path: Path) -> NDArray[np.float64]:
    affine = np.asarray(image.affine, dtype=np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * np.prod(
        spacing
    ):
        raise DataError(
            path,
            f"its affine {affine[:3].round(4).tolist()} is no map to space",
            "repair the header",
        )
    return affine


def _stored(data: NDArray[Any], scale: float | None) -> NDArray[Any]:
    """The voxels as they stand in the file."""
    if scale is not None:
        raw = np.empty_like(data, dtype=np.uint16)
        for plane, into in zip(
            data, raw, strict=True
        ):  # plane by plane, as float64 takes eight bytes a voxel
            levels = np.rint(np.asarray(plane, dtype=np.float64) / scale)
            if not (levels.min() >= 0 and levels.max() <= 65535):
                raise ValueError(
                    f"expected values in [0, {65535 * scale:g}], got {data.min():g} to {data.max():g}"
                )
            into[...] = levels
        return raw
    if data.dtype.kind == "b":
        return data.astype(np.uint8)
    if data.dtype.kind in "iu":
        return data.astype(
            np.result_type(np.min_scalar_type(data.min()), np.min_scalar_type(data.max()))
        )
    return data.astype(np.float32)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
