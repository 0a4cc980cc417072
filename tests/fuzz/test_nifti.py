"""Damaged NIfTI files are refused, or give the voxels that another reader gives."""

import gzip
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.fuzzing import Edit, damages, edited, fuzz, result_or_refusal, rewrite, untouched
from helpers.oblique_cases import OBLIQUE
from helpers.plain_nifti import FIELDS, read_plainly
from tversky_seg.data.affines import spacing_of
from tversky_seg.data.nifti import (
    MAX_VOXEL_MM,
    MIN_VOXEL_MM,
    Volume,
    read_grid,
    read_label,
    read_volume,
    write_volume,
)

# Of an extension, which holds no voxels, nibabel says that it is odd.
pytestmark = pytest.mark.filterwarnings("ignore:Extension size")

SHAPE = (5, 4, 3)
WHOLE_NUMBERS = (0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 64, 128, 255, 256, 512, 768, 1024, 1536, 32767)
NUMBERS = (0.0, -0.0, 1.0, -1.0, 0.5, 3e-5, 352.0, 1e-45, 1e9, 3e38, np.nan, np.inf, -np.inf)


def whole_file(dtype: str, make: type[nib.Nifti1Image] = nib.Nifti1Image, *, scale: float) -> bytes:
    """Make a file of SHAPE with both forms."""
    data = np.random.default_rng(0).integers(0, 4, SHAPE).astype(dtype)
    image = make(data, OBLIQUE, make.header_class(endianness=dtype[0]))
    image.set_qform(OBLIQUE, code=2)
    image.header.set_slope_inter(scale, 0)
    return bytes(image.to_bytes())


WHOLE_FILES = (
    whole_file("<i2", scale=0.5),
    whole_file("<u1", scale=1),
    whole_file(">f4", scale=1),
    whole_file("<f8", nib.Nifti2Image, scale=2),
)


def header_edits() -> st.SearchStrategy[list[Edit]]:
    """Draw new values for up to three entries of a header."""
    whole = st.one_of(st.sampled_from(WHOLE_NUMBERS), st.integers(-(2**15), 2**15 - 1))
    number = st.one_of(st.sampled_from(NUMBERS), st.floats(width=32))
    edit = st.builds(set_entry, st.sampled_from([*FIELDS[348]]), st.integers(0, 11), whole, number)
    return st.lists(edit, max_size=3)


def set_entry(name: str, place: int, whole: int, number: float) -> Edit:
    """Set one number of an entry of a header, such as the second of pixdim."""

    def edit(content: bytes) -> bytes:
        order = ">" if content[:2] == b"\0\0" else "<"
        (size,) = struct.unpack_from(order + "i", content)
        offset, form = FIELDS[size][name]
        kind = form[-1]
        at = offset + struct.calcsize(kind) * (place % int(form[:-1] or 1))
        value: Any = number
        if kind == "s":
            value = struct.pack("b", whole % 128)
        elif kind in "Bi":
            value = whole % 256
        elif kind in "hq":
            value = whole
        return (
            content[:at]
            + struct.pack(order + kind, value)
            + content[at + struct.calcsize(order + kind) :]
        )

    return edit


@fuzz(0.2)
@given(st.sampled_from(WHOLE_FILES), header_edits(), st.one_of(st.just([]), damages()))
def test_a_damaged_file_gives_what_another_reader_gives(
    folder: Path, whole: bytes, header: Sequence[Edit], damage: Sequence[Edit]
) -> None:
    content = edited(edited(whole, header), damage)
    check_readers(folder / "a.nii", content, content)


@fuzz(0.07)
@given(st.sampled_from(WHOLE_FILES), header_edits(), st.one_of(st.just([]), damages()))
def test_so_does_a_damaged_file_that_was_compressed_afterwards(
    folder: Path, whole: bytes, header: Sequence[Edit], damage: Sequence[Edit]
) -> None:
    content = edited(edited(whole, header), damage)
    check_readers(folder / "a.nii.gz", gzip.compress(content, mtime=0), content)


@fuzz(0.05)
@given(st.sampled_from(WHOLE_FILES), damages())
def test_a_damaged_gzip_stream_never_gives_other_voxels(
    folder: Path, whole: bytes, damage: Sequence[Edit]
) -> None:
    stream = edited(gzip.compress(whole, mtime=0), damage)
    check_readers(folder / "a.nii.gz", stream, whole)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nifti")


def check_readers(file: Path, stored: bytes, content: bytes) -> None:
    """Compare all readers of a file with the plain one, which is given the uncompressed bytes."""
    rewrite(file, stored)
    with untouched(file.parent):
        volume = read(read_volume, file)
        label = read(read_label, file)
        grid = read(read_grid, file)
    if volume is None and label is None:
        return
    plain = read_plainly(content)
    if volume is not None:
        check_values(volume, plain.data, plain.affine)
        shape, affine = grid
        assert shape == volume.shape
        assert np.array_equal(affine, volume.affine)
    if label is not None:
        assert label.data.dtype.kind in "iu"
        check_values(label, np.rint(plain.data), plain.affine)


def read(reader: Callable[[Path], Any], file: Path) -> Any:
    return result_or_refusal(lambda: reader(file), named=[file])


def check_values(volume: Volume, data: np.ndarray, affine: np.ndarray) -> None:
    np.testing.assert_allclose(volume.data, data, rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(volume.affine, affine, rtol=1e-5, atol=1e-5)
    spacing_mm = spacing_of(volume.affine)
    assert MIN_VOXEL_MM <= min(spacing_mm) <= max(spacing_mm) <= MAX_VOXEL_MM


@fuzz(0.02)
@given(st.sampled_from(WHOLE_FILES), header_edits())
def test_a_mask_lies_on_the_image_whose_header_it_gets(
    folder: Path, whole: bytes, header: Sequence[Edit]
) -> None:
    image = folder / "image.nii"
    rewrite(image, edited(whole, header))
    grid = read(read_grid, image)
    if grid is None:
        return
    shape, affine = grid
    mask = folder / "mask.nii"
    write_volume(mask, np.ones(shape, bool), affine, like=image)
    plain = read_plainly(mask.read_bytes())
    assert np.array_equal(plain.data, np.ones(shape))
    np.testing.assert_allclose(plain.affine, affine, rtol=1e-5, atol=1e-4)
