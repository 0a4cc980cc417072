"""Draw the test cases of a run for the README.

    python scripts/dev/figure_result.py runs/<run> docs/figures/phantom_result.png

One column for each case, in the slice with the largest lesion area: the image above, and below it
the same with the outlines of the reference (blue) and of the prediction (orange).
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.case import Case
from tversky_seg.data.manifest import read_manifest
from tversky_seg.data.nifti import read_label, read_volume
from tversky_seg.report.slices import as_png, outline


def main() -> None:
    """Read the arguments and write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    options = parser.parse_args()
    columns = []
    for case in read_manifest(options.run / "manifest.csv"):
        if case.split == "test" and case.label:
            columns.append(draw_case(case, options.run / "predictions"))
    # Cases may differ in size; the lowest column sets the height.
    height = min(column.shape[0] for column in columns)
    picture = np.concatenate([column[:height] for column in columns], axis=1)
    options.picture.write_bytes(as_png(picture))


def draw_case(case: Case, predictions: Path) -> NDArray[np.uint8]:
    """Draw a slice of a case without and with outlines, one above the other."""
    assert case.label is not None
    image = read_volume(next(iter(case.images.values()))).data
    reference = read_label(case.label).data > 0
    prediction = read_label(predictions / f"{case.case_id}_mask.nii.gz").data > 0
    z = int(reference.sum(axis=(0, 1)).argmax())
    image = image[:, :, z]
    # The masks of all classes, (C, X, Y); there is one.
    reference = reference[None, :, :, z]
    prediction = prediction[None, :, :, z]
    empty = np.zeros_like(reference)
    plain = outline(image, empty, empty)
    outlined = outline(image, prediction, reference)
    return np.concatenate([plain, outlined])


if __name__ == "__main__":
    main()
