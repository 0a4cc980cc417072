"""Draw a run's test cases: `python scripts/dev/figure_result.py runs/<run> docs/figures/phantom_result.png`.

One column a case, its slice with most reference; above the image, below the same with the outlines of the reference
(blue) and of the prediction (orange).
"""

import argparse
from pathlib import Path

import numpy as np

from tversky_seg.data.manifest import read_manifest
from tversky_seg.data.nifti import read_label, read_volume
from tversky_seg.report.slices import as_png, outline


def main() -> None:
    """Read the arguments and write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    words = parser.parse_args()
    cases = [
        case
        for case in read_manifest(words.run / "manifest.csv")
        if case.split == "test" and case.label
    ]
    columns = []
    for case in cases:
        image = read_volume(next(iter(case.images.values())))
        masks = [
            read_label(words.run / "predictions" / f"{case.case_id}_mask.nii.gz"),
            read_label(case.label),
        ]
        prediction, reference = (mask.data > 0 for mask in masks)
        z = int(reference.sum(axis=(0, 1)).argmax())
        at = (slice(None), slice(None), z)
        nothing = np.zeros_like(reference[at])[None]
        drawn = [
            outline(image.data[at], nothing, nothing),
            outline(image.data[at], prediction[at][None], reference[at][None]),
        ]
        columns.append(np.concatenate(drawn))
    height = min(column.shape[0] for column in columns)
    words.picture.write_bytes(
        as_png(np.concatenate([column[:height] for column in columns], axis=1))
    )


if __name__ == "__main__":
    main()
