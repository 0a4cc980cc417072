import bz2
import contextlib
import gzip
import math
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tversky_seg.data.affines import affine_shift_voxels, metric_spacing, ras_grid, spacing_of
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import (
    PROBABILITY_SCALE,
    read_grid,
    read_label,
    read_volume,
    write_volume,
)

OBLIQUE = np.array([[0, 0.2, -3, 40], [1.1, 0, 0.1, -20], [0, 0.9, 0.4, 7], [0, 0, 0, 1]])
VOXELS = np.arange(120, dtype=np.int16).reshape(4, 5, 6)


def save(
    path: Path, data: np.ndarray, *, affine: np.ndarray | None = None, slope: float | None = None
) -> Path:
    image = nib.Nifti1Image(data, np.eye(4) if affine is None else affine)
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    nib.save(image, path)
    return path


def gzipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)  # the same name of a test in every process


def raw_header(shape: tuple[int, ...]) -> bytes:
    """The header of a NIfTI of float64 voxels, without voxels."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float64)
    header.set_data_shape(shape)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return header.binaryblock + bytes(4)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64, ">i2"])
def test_any_number_type_is_read_as_float32(tmp_path: Path, dtype: str, ending: str) -> None:
    path = save(tmp_path / f"a{ending}", VOXELS.astype(dtype), affine=OBLIQUE)
    volume = read_volume(path)
    assert volume.data.dtype == np.float32
    assert np.array_equal(volume.data, VOXELS)
    assert np.allclose(volume.affine, OBLIQUE)
    assert volume.shape == (4, 5, 6)
    assert spacing_of(volume.affine) == pytest.approx(
        np.sqrt([1.1**2, 0.04 + 0.81, 9 + 0.01 + 0.16])
    )
    shape, affine = read_grid(path)
    assert shape == (4, 5, 6)
    assert np.array_equal(affine, volume.affine)


def test_the_scale_factor_is_applied_and_one_frame_is_a_volume(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", VOXELS[..., None], slope=0.5)
    assert np.array_equal(read_volume(path).data, VOXELS / 2)
    assert read_grid(path)[0] == (4, 5, 6)


def test_a_mask_that_decodes_to_almost_one_is_a_mask(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.array([[[0, 255]]], dtype=np.uint8), slope=1 / 255.00001)
    assert nib.load(path).get_fdata().max() != 1
    label = read_label(path)
    assert label.data.dtype == np.uint8
    assert label.data.tolist() == [[[0, 1]]]


@pytest.mark.parametrize("values", [[0, 2], [0.0, 2.0], [-3, 70_000]])
def test_labels_are_whole_numbers_of_any_stored_type(tmp_path: Path, values: list[float]) -> None:
    stored = np.array([[values]]).astype(np.float32 if isinstance(values[0], float) else np.int32)
    label = read_label(save(tmp_path / "a.nii", stored))
    assert label.data.dtype.kind in "iu"
    assert label.data.ravel().tolist() == values


def test_a_fractional_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.nii: 1 voxels .* 0.5"):
        read_label(save(tmp_path / "a.nii", np.array([[[0, 0.5, 1]]], dtype=np.float32)))


@pytest.mark.parametrize("reader", [read_volume, read_label])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_counted_and_refused(
    tmp_path: Path, value: float, reader: object
) -> None:
    data = np.zeros((3, 3, 3), dtype=np.float32)
    data[1, 1] = value
    with pytest.raises(DataError, match="3 voxels"):
        reader(save(tmp_path / "a.nii", data))


def test_values_beyond_float32_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 voxels"):
        read_volume(save(tmp_path / "a.nii", np.array([[[0, 1e300]]])))


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (LFS_POINTER, "git lfs pull"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "is a web page, not an image"),
        (b"\n<HTML>", "is a web page"),
        (b"patient,age\n1,40\n", "is text, not an image"),
        (bytes(range(256)) * 4, "is not gzipped"),
        (gzipped(b"hello" * 200), "cannot be read"),
        (gzipped(bytes(1000)), "cannot be read"),
        (gzipped(raw_header((4, 5, 6)))[:100], "is cut off or damaged"),
        (gzipped(raw_header((4, 5, 6))), "is cut off or damaged"),
        (
            gzipped(raw_header((4, 5, 6)) + np.random.default_rng(0).bytes(960))[:-200],
            "is cut off or damaged",
        ),
        (
            gzipped(raw_header((9000, 9000, 9000))),
            "9000 x 9000 x 9000",
        ),
        (gzipped(raw_header((1000, 1000, 1000))), "1000 x 1000 x 1000"),
        (
            gzipped(raw_header((4, 5, 6, 2)) + bytes(1920)),
            "4 x 5 x 6 x 2",
        ),
        (gzipped(raw_header((4, 5)) + bytes(160)), "4 x 5;"),
    ],
)
def test_each_fault_of_a_file_is_one_clear_line(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "a.nii.gz"
    if content is not None:
        path.write_bytes(content)
    for reader in (read_volume, read_label):
        with pytest.raises(DataError) as error:
            reader(path)
        assert str(error.value).startswith(f"{path}: ")
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_a_cut_off_nii_a_folder_and_a_dead_link_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", VOXELS)
    path.write_bytes(path.read_bytes()[:-10])
    (tmp_path / "b.nii").mkdir()
    (tmp_path / "c.nii").symlink_to(tmp_path / "nowhere")
    for name, message in [
        ("a", "is cut off or damaged"),
        ("b", "is a folder"),
        ("c", "a link to a file that is"),
    ]:
        with pytest.raises(DataError, match=message):
            read_volume(tmp_path / f"{name}.nii")


def test_colours_are_refused(tmp_path: Path) -> None:
    colours = np.zeros((2, 2, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(DataError, match="voxels"):
        read_volume(save(tmp_path / "a.nii", colours))


def test_an_affine_that_maps_nowhere_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", VOXELS)
    content = bytearray(path.read_bytes())
    content[252:256] = struct.pack("<hh", 0, 1)  # sform only
    for row, message in [
        ((0.0,) * 4, "affine"),
        ((float("nan"),) * 4, "affine"),
    ]:
        content[280:296] = struct.pack("<4f", *row)
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_volume(path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_probabilities_come_back_within_half_a_step(tmp_path: Path, ending: str) -> None:
    probability = np.random.default_rng(0).random((4, 5, 6), dtype=np.float32)
    probability[0, 0, :2] = 0, 1
    path = tmp_path / "new" / f"a{ending}"
    write_volume(path, probability, OBLIQUE, scale=PROBABILITY_SCALE)
    image = nib.load(path)
    assert image.get_data_dtype() == np.uint16
    assert np.allclose(image.affine, OBLIQUE)
    assert np.allclose(image.get_sform(), OBLIQUE)
    assert np.abs(image.get_fdata() - probability).max() <= 0.5001 / 65535
    assert np.array_equal(
        np.asanyarray(image.dataobj.get_unscaled()), np.rint(probability.astype(float) * 65535)
    )


@pytest.mark.parametrize(
    ("dtype", "stored"), [(bool, "u1"), (np.int64, "u1"), (np.uint8, "u1"), (np.float64, "f4")]
)
def test_values_are_written_as_they_are(tmp_path: Path, dtype: type, stored: str) -> None:
    data = np.array([[[0, 1, 1]]]).astype(dtype)
    write_volume(tmp_path / "a.nii.gz", data, np.eye(4))
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == stored
    assert np.array_equal(image.get_fdata(), data)


def test_the_same_volume_is_the_same_file_and_nothing_else_is_left(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_volume(tmp_path / f"{name}.nii.gz", VOXELS, OBLIQUE)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_a_folder_that_is_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match=r"a.nii: cannot be written"):
        write_volume(tmp_path / "file" / "a.nii", VOXELS, np.eye(4))
    with pytest.raises(DataError, match=r"a.nii: cannot be written"):
        write_volume(tmp_path / "file" / "below" / "a.nii", VOXELS, np.eye(4))


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(image: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    write_volume(tmp_path / "a.nii", VOXELS, np.eye(4))
    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(DataError, match=r"a.nii: .*No space left on device"):
        write_volume(tmp_path / "a.nii", VOXELS + 1, np.eye(4))
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]
    assert np.array_equal(read_volume(tmp_path / "a.nii").data, VOXELS)


@pytest.mark.parametrize("value", [1.001, -0.001, np.nan])
def test_what_is_no_probability_is_not_written_as_one(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\], got"):
        write_volume(
            tmp_path / "a.nii", np.array([[[0.5, value]]]), np.eye(4), scale=PROBABILITY_SCALE
        )
    assert not list(tmp_path.iterdir())


def test_the_shift_of_an_affine_is_that_of_the_farthest_corner() -> None:
    shape = (11, 21, 31)
    moved = OBLIQUE.copy()
    moved[:3, 3] += 0.5 * OBLIQUE[:3, 1]
    assert affine_shift_voxels(OBLIQUE, OBLIQUE, shape) == pytest.approx(0, abs=1e-9)
    assert affine_shift_voxels(OBLIQUE, moved, shape) == pytest.approx(0.5)
    stretched = OBLIQUE @ np.diag([1, 1, 1.01, 1])
    assert affine_shift_voxels(OBLIQUE, stretched, shape) == pytest.approx(0.3)
    flipped = OBLIQUE @ np.diag([-1, 1, 1, 1])
    flipped[:3, 3] += 10 * OBLIQUE[:3, 0]
    assert affine_shift_voxels(OBLIQUE, flipped, shape) == pytest.approx(10)


def test_the_ras_grid_is_nibabels_closest_canonical() -> None:
    for affine in (OBLIQUE, np.diag([-1, -2, 3, 1.0]), np.eye(4)[[2, 0, 1, 3]]):
        expected = nib.as_closest_canonical(nib.Nifti1Image(VOXELS, affine))
        shape, found = ras_grid(VOXELS.shape, affine)
        assert shape == expected.shape
        assert np.allclose(found, expected.affine)
        assert sorted(spacing_of(found)) == pytest.approx(sorted(spacing_of(affine)))


def test_real_volumes_are_read(real_data: Path) -> None:
    (flair,) = (real_data / "open_ms_data/cross_sectional/MNI/patient07").glob("FLAIR*")
    (mask,) = flair.parent.glob("GOLD_STANDARD*")
    volume, label = read_volume(flair), read_label(mask)
    assert volume.shape == label.shape == (182, 218, 182)
    assert volume.data.min() < 0 < volume.data.max()
    assert np.unique(label.data).tolist() == [0, 1]
    assert label.data.sum() == 1300


def spoil_checksum(content: bytearray) -> None:
    content[-8] ^= 1


def spoil_length(content: bytearray) -> None:
    content[-1] ^= 1


def cut_checksum(content: bytearray) -> None:
    del content[-8:]


def spoil_a_voxel(content: bytearray) -> None:
    """Change a byte that compression at level 0 leaves as it is."""
    content[-20] ^= 1


@pytest.mark.parametrize("reader", [read_volume, read_label])
@pytest.mark.parametrize("spoil", [spoil_checksum, spoil_length, cut_checksum, spoil_a_voxel])
@pytest.mark.parametrize("frame", ["", "@1"])
def test_a_damaged_gzip_file_is_refused_by_its_checksum(
    tmp_path: Path, reader: object, spoil: Callable[[bytearray], None], frame: str
) -> None:
    volume = np.arange(16**3, dtype=np.int16).reshape(16, 16, 16)
    voxels = np.stack([volume, volume], axis=-1) if frame else volume
    plain = save(tmp_path / "a.nii", voxels)
    content = bytearray(gzip.compress(plain.read_bytes(), compresslevel=0, mtime=0))
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    assert np.array_equal(reader(f"{path}{frame}").data, volume)
    spoil(content)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii\.gz.*: is cut off or damaged"):
        reader(f"{path}{frame}")


@pytest.mark.parametrize("reader", [read_volume, read_label, read_grid])
@pytest.mark.parametrize("offset", [np.inf, -np.inf, np.nan, 1e30, -1e30, 1e6])
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
def test_an_absurd_offset_of_the_voxels_is_refused(
    tmp_path: Path, reader: object, offset: float
) -> None:
    path = save(tmp_path / "a.nii", VOXELS)
    content = bytearray(path.read_bytes())
    content[108:112] = struct.pack("<f", offset)  # vox_offset
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii: "):
        reader(path)


@pytest.mark.parametrize("reader", [read_volume, read_label, read_grid])
def test_any_bytes_in_the_header_are_read_or_refused(tmp_path: Path, reader: object) -> None:
    content = save(tmp_path / "a.nii", VOXELS).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "b.nii"
    for _ in range(150):
        spoilt = bytearray(content)
        first = int(rng.integers(0, 348 - 8))
        spoilt[first : first + 8] = rng.bytes(8)
        path.write_bytes(spoilt)
        with contextlib.suppress(DataError), warnings.catch_warnings(action="ignore"):
            reader(path)


def test_endings_in_capitals_are_read(tmp_path: Path) -> None:
    content = gzipped(save(tmp_path / "a.nii", VOXELS).read_bytes())
    path = tmp_path / "b.NII.GZ"
    path.write_bytes(content)
    assert np.array_equal(read_volume(path).data, VOXELS)
    path.write_bytes(content[:-8])
    with pytest.raises(DataError, match=r"b\.NII\.GZ"):
        read_volume(path)


@pytest.mark.parametrize("name", ["a.hdr", "a.img", "b.nii.bz2", "b.mgz"])
def test_a_file_of_another_format_is_refused_by_name(tmp_path: Path, name: str) -> None:
    nib.save(nib.Nifti1Pair(VOXELS, np.eye(4)), tmp_path / "a.hdr")
    plain = save(tmp_path / "b.nii", VOXELS).read_bytes()
    (tmp_path / "b.nii.bz2").write_bytes(bz2.compress(plain))
    (tmp_path / "b.mgz").write_bytes(gzipped(plain))
    with pytest.raises(DataError, match=rf"{name}: .*\.nii\.gz"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000), ("micron", 0.001), ("unknown", 1)])
def test_the_unit_of_the_header_is_honoured(tmp_path: Path, unit: str, mm: float) -> None:
    image = nib.Nifti1Image(VOXELS, np.diag([1 / mm, 1 / mm, 1 / mm, 1]) @ OBLIQUE)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    for affine in (read_volume(tmp_path / "a.nii").affine, read_grid(tmp_path / "a.nii")[1]):
        assert np.allclose(affine, OBLIQUE, rtol=1e-5)


def test_an_unknown_unit_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", VOXELS)
    content = bytearray(path.read_bytes())
    content[123] = 5  # xyzt_units
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii: .*5"):
        read_volume(path)


@pytest.mark.parametrize("reader", [read_volume, read_label, read_grid])
@pytest.mark.parametrize("size", [1e6, 101, 1e-4])
def test_absurd_voxel_sizes_are_refused(tmp_path: Path, reader: object, size: float) -> None:
    path = save(tmp_path / "a.nii", VOXELS, affine=np.diag([size, 2, 2, 1]))
    with pytest.raises(DataError, match=re.escape(f"{size:g} x 2 x 2 mm")):
        reader(path)


@pytest.mark.parametrize("reader", [read_volume, read_label, read_grid])
def test_a_voxel_size_of_zero_is_refused(tmp_path: Path, reader: object) -> None:
    path = save(tmp_path / "a.nii", VOXELS)
    content = bytearray(path.read_bytes())
    content[252:256] = struct.pack("<hh", 0, 0)  # neither qform nor sform: pixdim alone
    content[80:84] = struct.pack("<f", 0.0)  # pixdim[1]
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii: .*0"):
        reader(path)


@pytest.mark.parametrize("reader", [read_volume, read_label, read_grid])
@pytest.mark.parametrize(
    ("offset", "entry", "line"),
    [
        (108, struct.pack("<f", 0), "the voxels begin at byte 0, inside of it"),
        (254, struct.pack("<h", 9), "has the unknown sform_code 9"),
        (252, struct.pack("<h", -1), "has the unknown qform_code -1"),
        (80, struct.pack("<f", -1.0), "gives voxels of -1 x 2 x 3 mm"),
    ],
)
def test_a_header_that_programs_read_differently_is_refused(
    tmp_path: Path, reader: Callable[[Path], object], offset: int, entry: bytes, line: str
) -> None:
    path = save(tmp_path / "a.nii", VOXELS, affine=np.diag([1.0, 2, 3, 1]))
    content = bytearray(path.read_bytes())
    content[252:256] = struct.pack("<hh", 1, 0)  # a qform alone, whose sizes are in pixdim
    content[offset : offset + len(entry)] = entry
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"a\\.nii: its header .*{re.escape(line)}"):
        reader(path)


def test_a_label_is_never_larger_than_whole_numbers_are_exact(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.full((3, 3, 3), 1e30))
    with pytest.raises(DataError, match=r"a\.nii: a voxel of 1e\+30"):
        read_label(path)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [((0, 1), "u1"), ((-1, 1), "i1"), ((-1, 200), "i2"), ((0, 2**40), "u8"), ((-1, 2**40), "i8")],
)
def test_labels_have_the_smallest_integer_type(
    tmp_path: Path, values: tuple[int, int], dtype: str
) -> None:
    data = np.resize(np.array(values, np.int64), (2, 2, 2))
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(data, np.eye(4), dtype=np.int64), path)
    label = read_label(path)
    assert label.data.dtype == dtype
    assert np.array_equal(label.data, data)


def test_volumes_of_sheared_axes_go_by_the_determinant(tmp_path: Path) -> None:
    gantry_tilt = np.array([[1.0, 0, 0, 5], [0, 1, 1, 5], [0, 0, 2, 5], [0, 0, 0, 1]])
    assert spacing_of(gantry_tilt) == pytest.approx((1, 1, math.sqrt(5)))
    assert math.prod(metric_spacing(gantry_tilt)) == pytest.approx(2)
    assert sorted(metric_spacing(gantry_tilt[:, [2, 0, 1, 3]])) == sorted(
        metric_spacing(gantry_tilt)
    )
    volume = read_volume(save(tmp_path / "a.nii", VOXELS, affine=gantry_tilt))
    assert math.prod(volume.spacing_mm) == pytest.approx(2)


def test_axes_at_right_angles_have_their_lengths_to_the_bit() -> None:
    turn = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * (0.9, 1.1, 3.3)
    assert metric_spacing(affine) == spacing_of(affine)
    assert metric_spacing(affine.astype(np.float32)) == spacing_of(affine.astype(np.float32))


@pytest.mark.parametrize("unit", ["meter", "mm", "micron"])
def test_a_mask_has_the_unit_and_the_forms_of_its_image(tmp_path: Path, unit: str) -> None:
    mm = {"meter": 1000, "mm": 1, "micron": 0.001}[unit]
    image = nib.Nifti1Image(VOXELS, np.diag([2 / mm, 1 / mm, 3 / mm, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    source = read_volume(tmp_path / "a.nii")
    write_volume(tmp_path / "b.nii", source.data > 5, source.affine, like=tmp_path / "a.nii")
    header = nib.load(tmp_path / "b.nii").header
    assert header.get_xyzt_units()[0] == unit
    assert np.allclose(header.get_sform(), image.affine)
    assert np.allclose(read_label(tmp_path / "b.nii").affine, source.affine)


def test_probabilities_keep_their_scale_with_the_forms_of_an_image(tmp_path: Path) -> None:
    source = save(tmp_path / "a.nii", VOXELS, affine=np.diag([2.0, 1, 3, 1]))
    probability = (VOXELS / VOXELS.max()).astype(np.float32)
    affine = np.diag([2.0, 1, 3, 1])
    write_volume(tmp_path / "p.nii", probability, affine, scale=PROBABILITY_SCALE, like=source)
    assert np.allclose(read_volume(tmp_path / "p.nii").data, probability, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "has_frames"), [((4, 5), False), ((4, 5, 6, 2), True), ((4, 5, 6, 1, 2), False)]
)
def test_a_frame_is_only_proposed_where_there_are_frames(
    shape: tuple[int, ...], has_frames: bool, tmp_path: Path
) -> None:
    path = tmp_path / "x.nii"
    nib.save(nib.Nifti1Image(np.ones(shape, np.int16), np.eye(4)), path)
    with pytest.raises(DataError) as fault:
        read_grid(path)
    assert ("x.nii@0" in str(fault.value)) == has_frames


def test_an_infinite_affine_in_metres_is_refused_without_a_warning(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((3, 3, 3), np.float32), np.eye(4))
    image.header.set_xyzt_units("meter")
    image.header["sform_code"] = 1
    image.header["srow_x"][0] = np.inf
    file = tmp_path / "a.nii"
    with file.open("wb") as stream:
        image.header.write_to(stream)
        stream.write(b"\0" * (4 + 27 * 4))
    with pytest.raises(DataError, match="is not a map to space"):
        read_grid(file)


def test_an_affine_of_huge_numbers_is_refused_without_a_warning(tmp_path: Path) -> None:
    image = nib.Nifti2Image(np.zeros((3, 3, 3), np.float32), np.eye(4))
    image.header["sform_code"] = 1
    for row in ("srow_x", "srow_y", "srow_z"):
        image.header[row] = 1e307
    file = tmp_path / "a.nii"
    with file.open("wb") as stream:
        image.header.write_to(stream)
        stream.write(b"\0" * (4 + 27 * 4))
    with pytest.raises(DataError, match="is not a map to space"):
        read_grid(file)
