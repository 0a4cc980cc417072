"""The zip that the ISBI 2015 challenge takes: `python scripts/isbi_submission.py MASKS --method NAME [--output F.zip]`.

MASKS is a folder of test01_01_mask.nii.gz and so on, as predict.py writes it for the test scans. Each becomes
an uncompressed test01_01_NAME.nii of unsigned bytes, 0 and 1, on the grid of its scan. There must be 61 scans of the 14
test subjects (Carass et al. 2017); --allow-incomplete packs fewer.
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

N_SCANS, N_SUBJECTS = 61, 14
SCAN = re.compile(r"(test(0[1-9]|1[0-4])_\d\d)_mask\.nii\.gz")


def main() -> None:
    """Read the arguments and write the zip."""
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("masks", type=Path, help="folder of <scan>_mask.nii.gz")
    parser.add_argument("--method", required=True, help="name of the method in the files' names")
    parser.add_argument("--output", type=Path, help="the zip (default: <method>.zip)")
    parser.add_argument("--allow-incomplete", action="store_true", help="pack fewer than 61 scans")
    words = parser.parse_args()
    output = words.output or Path(f"{words.method}.zip")
    try:
        n = pack(words.masks, output, method=words.method, is_complete=not words.allow_incomplete)
    except DataError as fault:
        parser.error(str(fault))
    except OSError as fault:
        parser.error(f"--output: {output} cannot be written ({fault.strerror}); name another")
    print(f"{output}: {n} scans")


def pack(masks: Path, output: Path, *, method: str, is_complete: bool = True) -> int:
    """Write the zip, whole or not at all; gives the number of scans.

    Raises:
        DataError: Scans are missing, a file is no mask, the zip has no place, or the method's name does not fit into a
            file name.
    """
    if not re.fullmatch(r"[A-Za-z0-9-]+", method):
        raise DataError("--method", f"{method!r}", "expected letters, digits and -")
    if not masks.is_dir():
        raise DataError(
            masks, "no such folder", "expected the one that predict.py wrote for the test scans"
        )
    if not output.parent.is_dir() or output.is_dir():
        raise DataError(
            "--output",
            f"{output} cannot be a file there",
            "expected the name of a zip in a folder that exists",
        )
    files = {
        found[1]: file
        for file in sorted(masks.glob("*.nii.gz"))
        if (found := SCAN.fullmatch(file.name))
    }
    subjects = {name[:6] for name in files}
    if is_complete and (len(files), len(subjects)) != (N_SCANS, N_SUBJECTS):
        raise DataError(
            masks,
            f"{len(files)} scans of {len(subjects)} subjects",
            f"expected {N_SCANS} of {N_SUBJECTS} (test01_01_mask.nii.gz …), or --allow-incomplete",
        )
    if not files:
        raise DataError(masks, "no scan", "expected test01_01_mask.nii.gz and so on")
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        scratch = Path(folder) / "submission.zip"
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, file in files.items():
                mask = read_label(file)
                if not np.isin(mask.data, (0, 1)).all():
                    raise DataError(
                        file,
                        f"values {np.unique(mask.data)[:5].tolist()}",
                        "expected a mask of 0 and 1",
                    )
                plain = Path(folder) / f"{name}_{method}.nii"
                write_volume(plain, mask.data.astype(np.uint8), mask.affine)
                archive.write(plain, plain.name)
                plain.unlink()
        scratch.replace(output)
    return len(files)


if __name__ == "__main__":
    main()
