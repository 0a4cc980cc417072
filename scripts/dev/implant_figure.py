"""The picture of implanted lesions in docs/augmentation.md: a slice before and after.

    python scripts/dev/implant_figure.py my.csv docs/figures/implant.png

The manifest lists open_ms_data's patients 07 and 19 (Lesjak et al. 2018, CC BY) with FLAIR and T1.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from tversky_seg.data.dataset import Dataset, find_cases
from tversky_seg.data.patches import Implant
from tversky_seg.data.preprocessing.parallel import prepare_all
from tversky_seg.data.preprocessing.pipeline import preprocessing_of
from tversky_seg.data.preprocessing.prepared_case import PreparedCase

SIZE = (96, 112, 96)
MODALITIES = ("FLAIR", "T1")


def main() -> None:
    """Draw lesions until a few lie in one slice, and save it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--case", default="patient19")
    parser.add_argument("--cache", type=Path, default=Path("data/cache"))
    parser.add_argument("--seed", type=int, default=5)
    words = parser.parse_args()
    dataset = Dataset(modalities=MODALITIES, manifest=words.manifest, cache_dir=words.cache)
    cases = find_cases(dataset)
    prepared = prepare_all(cases, preprocessing_of(dataset, cases), cache_dir=words.cache)
    (case,) = [one for one in prepared if one.case_id == words.case]
    before, after, new = implanted(case, prepared, seed=words.seed)
    save(words.picture, before, after, new)
    sizes = np.bincount(np.clip(new, 0, None).ravel())[1:]
    print(f"{(sizes > 0).sum()} lesions of {sizes[sizes > 0].tolist()} voxels")


def implanted(
    case: PreparedCase, cases: list[PreparedCase], *, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut the middle of a brain and implant many lesions: image before and after, new numbers."""
    start = tuple((np.array(case.geometry.shape) - SIZE) // 2)
    before = case.intensities(start, SIZE)
    labels = case.labels(start, SIZE, components=True).astype(np.int32)
    after = before.copy()
    settings = Implant(probability=1, max_lesions=40)
    rng = np.random.default_rng(seed)
    settings.apply(after, labels, cases=cases, case=case, rng=rng, as_components=True)
    return before, after, labels[0] - max(case.n_lesions)


def save(path: Path, before: np.ndarray, after: np.ndarray, new: np.ndarray) -> None:
    """Save the slice that changes most: modalities in rows; before, after, outlines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    changes = ((after - before) * (new > 0))[0]
    z = int(np.argmax(np.sqrt(abs(changes)).sum(axis=(0, 1))))
    figure, axes = plt.subplots(2, 3, figsize=(5, 4.0), layout="constrained")
    for row in range(len(MODALITIES)):
        low, high = np.percentile(before[row], (10, 99.9))
        for axis, image in zip(axes[row], (before, after, after), strict=True):
            axis.imshow(image[row, :, :, z].T, cmap="gray", origin="lower", vmin=low, vmax=high)
            axis.set_axis_off()
        axes[row, 2].contour(new[:, :, z].T > 0, levels=[0.5], colors="#e69f00", linewidths=0.8)
    for axis, title in zip(axes[0], ("before", "after", "implanted"), strict=True):
        axis.set_title(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    # 64 levels of grey and orange, a third of the bytes.
    Image.open(path).convert("RGB").quantize(64, Image.Quantize.MAXCOVERAGE).save(
        path, optimize=True
    )


if __name__ == "__main__":
    main()
