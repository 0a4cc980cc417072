"""Names and first bytes of image files."""

from __future__ import annotations

import re
from pathlib import Path

from tversky_seg.data.errors import DataError

NIFTI_ENDINGS = (".nii.gz", ".nii")
OTHER_ENDINGS = (
    ".nii.bz2",
    ".nii.xz",
    ".nii.zst",
    ".hdr",
    ".hdr.gz",
    ".img",
    ".img.gz",
    ".mgh",
    ".mgz",
    ".mha",
    ".mhd",
    ".mnc",
    ".nhdr",
    ".nrrd",
)
"""Endings of images in formats that are not read: such files are refused, never passed over."""

_FRAME = re.compile(r"(.+\.nii(?:\.gz)?)@(\d+)", re.IGNORECASE)
_TEXT_BYTES = bytes([9, 10, 13, *range(32, 127)])  # tab, line ends, printable ASCII


def file_and_frame(path: Path | str) -> tuple[Path, int | None]:
    """Part a path from the frame it names: `scan.nii.gz@1` is the second 3D frame of a 4D file.

    Returns:
        The file, and the number of the frame from 0; None where no frame is named.
    """
    match = _FRAME.fullmatch(str(path))
    if match is None:
        return Path(path), None
    return Path(match[1]), int(match[2])


def why_absent(path: Path) -> str | None:
    """Tell why a file is not here: "no such file" or, say, "permission denied"; None if it is."""
    # pathlib raises for a name that is too long, or one in a folder that must not be read.
    try:
        return None if path.is_file() else "no such file"
    except OSError as error:
        return (error.strerror or str(error)).lower()


def is_nifti(path: Path) -> bool:
    """Tell by its name, in capitals or not, whether a file is a NIfTI image."""
    return path.name.lower().endswith(NIFTI_ENDINGS)


def is_other_image(path: Path) -> bool:
    """Tell by its name whether a file is an image in a format that is not read."""
    return path.name.lower().endswith(OTHER_ENDINGS)


def is_gzip(path: Path) -> bool:
    """Tell by its name whether a file is compressed."""
    return path.name.lower().endswith(".gz")


def other_format(path: Path) -> DataError:
    """Make the error for an image in a format that is not read."""
    return DataError(path, "is not a .nii or .nii.gz file", "convert it to NIfTI (.nii.gz)")


def image_stem(path: Path) -> str:
    """Return the name of an image file without its ending and frame."""
    file, _ = file_and_frame(path)
    # Path.stem would leave "scan.nii" of "scan.nii.gz".
    name = file.name
    for ending in (*NIFTI_ENDINGS, *OTHER_ENDINGS):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return file.stem


def check_image_file(path: Path) -> int:
    """Check that a file exists, is named as a NIfTI image, and begins like an image.

    Returns:
        Size in bytes.

    Raises:
        DataError: The file is missing, empty, a folder, text, a web page, a Git LFS pointer or an
            image in another format.
    """
    size = _size_of(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(path, reason, "expected a readable NIfTI image") from error
    _refuse_other_content(path, start)
    if not is_nifti(path):
        raise other_format(path)
    return size


def _size_of(path: Path) -> int:
    # Links to files of git-annex or of an absent disk are common.
    try:
        size = path.stat().st_size
    except OSError as error:
        fault = (error.strerror or str(error)).lower()
        if path.is_symlink():
            fault = "a link to a file that is not here"
        raise DataError(path, fault, "expected a NIfTI image") from error
    if path.is_dir():
        raise DataError(path, "is a folder", "expected a NIfTI image")
    if size == 0:
        raise DataError(path, "is empty", "expected a NIfTI image")
    return size


def _refuse_other_content(path: Path, start: bytes) -> None:
    """Name what was saved under an image's name; failed downloads leave all of these."""
    if start.startswith(b"version https://git-lfs"):
        raise DataError(path, "is a Git LFS pointer, not the image", "fetch it by `git lfs pull`")
    text = start.lower()
    if b"<html" in text or text.lstrip().startswith(b"<!doctype"):
        raise DataError(path, "is a web page, not an image", "download the file itself")
    if not start.translate(None, _TEXT_BYTES):
        raise DataError(path, "is text, not an image", "expected NIfTI")
    if is_gzip(path) and not start.startswith(b"\x1f\x8b"):
        raise DataError(
            path,
            "is not gzipped, although it ends in .gz",
            "rename it to .nii or download it again",
        )
