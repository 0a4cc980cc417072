"""A reader of NIfTI written from the standard alone, to compare ours with."""

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

# Name -> offset and format, of NIfTI-1 and NIfTI-2.
FIELDS = {
    348: {
        "dim": (40, "8h"),
        "datatype": (70, "h"),
        "bitpix": (72, "h"),
        "pixdim": (76, "8f"),
        "vox_offset": (108, "f"),
        "scl_slope": (112, "f"),
        "scl_inter": (116, "f"),
        "xyzt_units": (123, "B"),
        "qform_code": (252, "h"),
        "sform_code": (254, "h"),
        "quatern": (256, "3f"),
        "qoffset": (268, "3f"),
        "srow": (280, "12f"),
        "magic": (344, "4s"),
    },
    540: {
        "magic": (4, "8s"),
        "datatype": (12, "h"),
        "bitpix": (14, "h"),
        "dim": (16, "8q"),
        "pixdim": (104, "8d"),
        "vox_offset": (168, "q"),
        "scl_slope": (176, "d"),
        "scl_inter": (184, "d"),
        "qform_code": (344, "i"),
        "sform_code": (348, "i"),
        "quatern": (352, "3d"),
        "qoffset": (376, "3d"),
        "srow": (400, "12d"),
        "xyzt_units": (500, "i"),
    },
}
TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


@dataclass(frozen=True)
class PlainVolume:
    """Voxels as float64, and affine in mm."""

    data: np.ndarray
    affine: np.ndarray


def read_plainly(content: bytes) -> PlainVolume:
    """Read the bytes of a `.nii` file of one 3D volume."""
    order, size = _order_and_size(content)
    header: dict[str, Any] = {}
    for name, (offset, form) in FIELDS[size].items():
        values = struct.unpack_from(order + form, content, offset)
        header[name] = values[0] if len(values) == 1 else values
    assert header["vox_offset"] >= size
    n_axes, *sides = header["dim"]
    shape = sides[:n_axes]
    assert all(side == 1 for side in shape[3:])
    n_voxels = math.prod(shape)
    dtype = np.dtype(order + TYPES[header["datatype"]])
    raw = np.frombuffer(content, dtype, n_voxels, int(header["vox_offset"]))
    data = raw.astype(np.float64).reshape(shape[:3], order="F")
    slope = header["scl_slope"]
    # 0 means that there is no scale, and what is no number cannot be one.
    if slope != 0 and math.isfinite(slope):
        data = data * slope + header["scl_inter"]
    assert {header["qform_code"], header["sform_code"]} <= {0, 1, 2, 3, 4, 5}
    unit_mm = UNITS_MM[header["xyzt_units"] & 7]
    return PlainVolume(data, np.diag([unit_mm, unit_mm, unit_mm, 1]) @ _affine(header, shape))


def _order_and_size(content: bytes) -> tuple[str, int]:
    """Tell NIfTI-1 from NIfTI-2 by the magic, and the order of bytes by the number of axes."""
    size = 540 if content[4:7] == b"n+2" else 348
    offset, form = FIELDS[size]["dim"]
    for order in "<>":
        n_axes = struct.unpack_from(order + form, content, offset)[0]
        if 1 <= n_axes <= 7:
            return order, size
    raise AssertionError("no number of axes")


def _affine(header: dict[str, Any], shape: list[int]) -> np.ndarray:
    """Return the sform, else the qform, else the voxel sizes around the middle."""
    affine = np.eye(4)
    if header["sform_code"] > 0:
        affine[:3] = np.reshape(header["srow"], (3, 4))
        return affine
    qfac, *sizes = header["pixdim"][:4]
    assert min(sizes) > 0
    if header["qform_code"] > 0:
        b, c, d = header["quatern"]
        a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d))
        rotation = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        sizes[2] *= -1 if qfac == -1 else 1
        affine[:3, :3] = rotation * sizes
        affine[:3, 3] = header["qoffset"]
        return affine
    # nibabel's own: the first axis runs to the left.
    affine[:3, :3] = np.diag([-sizes[0], sizes[1], sizes[2]])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape[:3]) - 1) / 2)
    return affine
