"""A small picture of a prepared case, so that a flip or a shifted label is seen at a glance."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tversky_seg.data.preprocessing.prepared_case import PreparedCase

OUTLINE = (255, 130, 0)


def picture_of(case: PreparedCase) -> bytes:
    """PNG of the axial slice with most lesion (the middle one without), first channel, lesions outlined.

    The patient's left is on the left, anterior is up; pixels are as many as voxels.
    """
    target = case.target
    lesions = (
        np.zeros(case.geometry.shape, dtype=bool)
        if target is None
        else np.asarray(target.any(axis=0))
    )
    areas = lesions.sum(axis=(0, 1))
    z = int(areas.argmax()) if areas.any() else lesions.shape[2] // 2
    image, brain = case.image[0, :, :, z].astype(np.float32), case.foreground[:, :, z]
    low, high = np.percentile(image[brain], (1, 99.5)) if brain.any() else (0.0, 1.0)
    grey = (255 * ((image - low) / max(high - low, 1e-6)).clip(0, 1) * brain).astype(np.uint8)
    picture = np.repeat(grey[..., None], 3, axis=2)
    inside = lesions[..., z]
    picture[inside & ~ndimage.binary_erosion(inside)] = OUTLINE
    return png(np.ascontiguousarray(picture.transpose(1, 0, 2)[::-1]))


def png(picture: NDArray[np.uint8]) -> bytes:
    """A picture (height, width, 3) as a PNG file (ISO/IEC 15948), without a library to load in every worker."""
    height, width, _ = picture.shape
    rows = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # each begins with its filter: 0, none
    rows[:, 1:] = picture.reshape(height, -1)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(rows.tobytes(), 9),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks.items()
    )
