"""Pack predicted masks into the zip that the ISBI 2015 challenge site accepts.

    python scripts/isbi_submission.py MASKS --method NAME [--output FILE.zip]

MASKS is a folder of test01_01_mask.nii.gz and so on, as predict.py writes it for the test scans.
Each mask becomes an uncompressed test01_01_NAME.nii of unsigned bytes, 0 and 1, on the grid of its
scan. The site expects all 61 scans of the 14 test subjects (Carass et al. 2017).
"""

import argparse
import re
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import read_label, write_volume
from tversky_seg.runtime.cli import OneLineParser

N_SCANS = 61
N_SUBJECTS = 14

MASK_NAME = re.compile(r"(test(?:0[1-9]|1[0-4])_\d\d)_mask\.nii\.gz")
"""File name of the mask of a test scan; the group is the scan, "test01_01"."""


def main() -> None:
    """Read the arguments and write the zip."""
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("masks", type=Path, help="folder of <scan>_mask.nii.gz")
    parser.add_argument("--method", required=True, help="name of the method, for the file names")
    parser.add_argument("--output", type=Path, help="zip to write (<method>.zip)")
    parser.add_argument("--allow-incomplete", action="store_true", help="pack fewer than 61 scans")
    options = parser.parse_args()
    output = options.output or Path(f"{options.method}.zip")
    try:
        n_scans = pack(
            options.masks,
            output,
            method=options.method,
            is_complete=not options.allow_incomplete,
        )
    except DataError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--output: {output} cannot be written ({error.strerror}); choose another")
    print(f"{output}: {n_scans} scans")


def pack(masks: Path, output: Path, *, method: str, is_complete: bool = True) -> int:
    """Write the zip, whole or not at all.

    Args:
        masks: Folder of `<scan>_mask.nii.gz`.
        output: Zip to write, in a folder that exists.
        method: Name of the method: letters, digits and -.
        is_complete: Whether all 61 scans must be there.

    Returns:
        Number of scans packed.

    Raises:
        DataError: Scans are missing, a file is not a mask, `output` cannot be a file, or the name
            of the method does not fit into a file name.
    """
    if not re.fullmatch(r"[A-Za-z0-9-]+", method):
        raise DataError("--method", repr(method), "expected letters, digits and -")
    if not masks.is_dir():
        raise DataError(masks, "no such folder", "expected predictions of the test scans")
    if not output.parent.is_dir() or output.is_dir():
        found = f"{output} cannot be a file there"
        raise DataError("--output", found, "expected the name of a zip in an existing folder")
    masks_by_scan = find_masks(masks)
    check_scans(masks, list(masks_by_scan), is_complete=is_complete)
    # The scratch folder is on the same disk, so that the finished zip can be renamed.
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        scratch = Path(folder) / "submission.zip"
        # The zip compresses, so its members are plain .nii.
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as archive:
            for scan, file in masks_by_scan.items():
                plain = Path(folder) / f"{scan}_{method}.nii"
                write_plain_mask(file, plain)
                archive.write(plain, plain.name)
                plain.unlink()
        scratch.replace(output)
    return len(masks_by_scan)


def find_masks(folder: Path) -> dict[str, Path]:
    """Find the masks of test scans, as {"test01_01": <file>}; other files are ignored."""
    masks_by_scan = {}
    for file in sorted(folder.glob("*.nii.gz")):
        match = MASK_NAME.fullmatch(file.name)
        if match:
            masks_by_scan[match[1]] = file
    return masks_by_scan


def check_scans(folder: Path, scans: list[str], *, is_complete: bool) -> None:
    """Raise DataError if no scan is there, or not all if they must be complete."""
    if not scans:
        raise DataError(folder, "no mask of a test scan", "expected test01_01_mask.nii.gz, …")
    subjects = {scan.partition("_")[0] for scan in scans}
    if is_complete and (len(scans), len(subjects)) != (N_SCANS, N_SUBJECTS):
        raise DataError(
            folder,
            f"{len(scans)} scans of {len(subjects)} subjects",
            f"expected {N_SCANS} of {N_SUBJECTS} (test01_01_mask.nii.gz, …), or --allow-incomplete",
        )


def write_plain_mask(mask_file: Path, output: Path) -> None:
    """Write a mask as unsigned bytes, 0 and 1; raise DataError if it has other values."""
    mask = read_label(mask_file)
    values = np.unique(mask.data)
    if not np.isin(values, (0, 1)).all():
        found = f"values {values[:5].tolist()}"
        raise DataError(mask_file, found, "expected a mask of 0 and 1")
    write_volume(output, mask.data.astype(np.uint8), mask.affine)
