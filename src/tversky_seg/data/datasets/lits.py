"""LiTS, the Liver Tumor Segmentation benchmark (Bilic et al. 2023, doi 10.1016/j.media.2022.102680)."""

import re
from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.datasets._common import ENDINGS, stem_of
from tversky_seg.data.errors import DataError

SPLITS = ("shirokikh2020",)
_TRAINING, _TEST = re.compile(r"volume-(\d+)"), re.compile(r"test-volume-(\d+)")


def find_lits(root: Path, *, split: str | None = None) -> list[Case]:
    """List the CT volumes of an official download: training batches 1 and 2, and the test set if it is there.

    Label values: 1 liver, 2 tumour. The test volumes have no labels: they are predicted, not judged.

    Args:
        root: A folder that holds `volume-0.nii` and `segmentation-0.nii` and so on, at any depth, as in
            `Training Batch 1` or `media/nas/01_Datasets/CT/LITS/Training Batch 1`.
        split: None: folds are drawn; "shirokikh2020": volumes 0 to 27 (batch 1) are the test set, 28 to 32 the
            validation set, the rest is trained on, and the official test set is left out.

    Raises:
        DataError: The folder does not look like this data set, or there is no such split.
    """
    if split is not None and split not in SPLITS:
        raise DataError(
            "data.importer.split", f"{split!r}", f"expected null or {', '.join(SPLITS)}"
        )
    files = {
        stem_of(file): file
        for file in sorted(Path(root).rglob("*.nii*"))
        if file.name.endswith(ENDINGS)
    }
    found = [(int(match[1]), name) for name in files if (match := _TRAINING.fullmatch(name))]
    cases = []
    for number, name in sorted(found):
        label = files.get(f"segmentation-{number}")
        part = (
            None if split is None else "test" if number < 28 else "val" if number < 33 else "train"
        )
        cases.append(Case(name, name, {"CT": files[name]}, (label,) if label else (), split=part))
    if split is None:
        tests = [(int(match[1]), name) for name in files if (match := _TEST.fullmatch(name))]
        cases += [Case(name, name, {"CT": files[name]}, split="test") for _, name in sorted(tests)]
    if not cases:
        raise DataError(
            root,
            "does not look like LiTS",
            "expected Training Batch 1/volume-0.nii and segmentation-0.nii",
        )
    return cases
