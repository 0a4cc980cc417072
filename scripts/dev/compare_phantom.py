"""Set the synthetic cohort beside real patients: a table and a figure for docs/phantom.md.

    python scripts/dev/compare_phantom.py --real <open_ms_data>              # writes the table and the figure
    python scripts/dev/compare_phantom.py --real <open_ms_data> --constants  # prints LESION_SIZES

The real masks (29 of them with open_ms_data's MNI part) and the real pair with images are resampled to the phantom's
spacing by block averages; a voxel is lesion where half of it is. Both sides go through the same measurements.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score
from sklearn.mixture import GaussianMixture

from tversky_seg.data.case import Case
from tversky_seg.data.datasets.lesjak2017 import find_lesjak2017
from tversky_seg.data.nifti import read_label, read_volume
from tversky_seg.data.phantom.cohort import make_phantom
from tversky_seg.data.phantom.lesions import QUANTILES
from tversky_seg.data.phantom.subject import MODALITIES

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


@dataclass(frozen=True)
class Patient:
    """One subject on the grid to compare on, axes R, A, S; `images` is empty where only the mask is there."""

    name: str
    images: Mapping[str, NDArray[np.float32]]
    lesions: NDArray[np.bool_]
    brain: NDArray[np.bool_]


def main() -> None:
    """Measure both cohorts, print the table and write it into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", type=Path, required=True, help="the folder open_ms_data")
    parser.add_argument(
        "--phantom",
        type=Path,
        default=Path("data/phantom"),
        help="where synthetic cohorts are kept",
    )
    parser.add_argument("--spacing-mm", type=float, default=2.0)
    parser.add_argument("--constants", action="store_true", help="print LESION_SIZES and stop")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of phantom.md and figures/")
    words = parser.parse_args()
    real = find_lesjak2017(words.real)
    if words.constants:
        for factor in (1, 2):
            print_constants([read_real(case, factor=factor) for case in real], spacing_mm=factor)
        return
    patients = [read_real(case, factor=round(words.spacing_mm)) for case in real]
    made = [read_made(case) for case in make_phantom(words.phantom, spacing_mm=words.spacing_mm)]
    table = "\n".join(
        [
            *lesion_table(patients, made, words.spacing_mm),
            "",
            *image_table(patients, made, words.spacing_mm),
        ]
    )
    print(table)
    page = words.docs / "phantom.md"
    before, after = page.read_text().split(BEGIN)[0], page.read_text().split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
    draw_slices(patients, made, path=words.docs / "figures" / "phantom_slices.png")
    draw_sizes(
        patients,
        made,
        spacing_mm=words.spacing_mm,
        path=words.docs / "figures" / "phantom_lesions.png",
    )


def read_real(case: Case, *, factor: int) -> Patient:
    """A real patient (1 mm), averaged over blocks of `factor`^3 voxels; the brain is what is not 0."""
    assert case.label is not None
    label = read_label(case.label)
    to_ras = tuple(slice(None, None, int(np.sign(label.affine[i, i]))) for i in range(3))
    images = {
        name: read_volume(file).data[to_ras]
        for name, file in case.images.items()
        if name in MODALITIES
    }
    brain = images["FLAIR"] != 0 if images else np.ones(label.shape, dtype=bool)
    return Patient(
        case.case_id,
        {name: _block_mean(image, factor) for name, image in images.items()},
        _block_mean(label.data[to_ras] > 0, factor) >= 0.5,
        _block_mean(brain, factor) > 0.99,
    )


def read_made(case: Case) -> Patient:
    """A synthetic subject as its files hold it."""
    assert case.label is not None
    assert case.brain_mask is not None
    images = {name: read_volume(file).data for name, file in case.images.items()}
    return Patient(
        case.case_id, images, read_label(case.label).data > 0, read_label(case.brain_mask).data > 0
    )


def _block_mean(volume: NDArray[np.generic], factor: int) -> NDArray[np.float32]:
    padded = np.pad(volume.astype(np.float32), [(0, -n % factor) for n in volume.shape])
    x, y, z = (n // factor for n in padded.shape)
    return np.asarray(padded.reshape(x, factor, y, factor, z, factor).mean((1, 3, 5)))


def lesion_sizes(patient: Patient) -> NDArray[np.int64]:
    """Voxels of each lesion (26-connected), largest first."""
    return np.sort(
        np.bincount(cc3d.connected_components(patient.lesions, connectivity=26).ravel())[1:]
    )[::-1]


def image_measures(patient: Patient, *, spacing_mm: float) -> dict[str, float]:
    """What the images of one patient look like, relative to white matter away from lesions."""
    near = _dilate(patient.lesions, 4 / spacing_mm)
    brain = ndimage.binary_erosion(patient.brain, iterations=max(1, round(3 / spacing_mm)))
    white, grey, csf = _segment(patient.images["T1"], brain & ~near)
    shell = near & ~_dilate(patient.lesions, 2 / spacing_mm) & brain
    flair = patient.images["FLAIR"]
    found = {"PR-AUC of FLAIR alone": average_precision_score(patient.lesions[brain], flair[brain])}
    for name, image in patient.images.items():
        level = np.median(image[white])
        found[f"{name} lesion / surround"] = image[patient.lesions].mean() / image[shell].mean()
        found[f"{name} grey / white matter"] = np.median(image[grey]) / level
        found[f"{name} CSF / white matter"] = np.median(image[csf]) / level
        found[f"{name} white matter noise"] = _noise_sd(image, white) / level
        found[f"{name} white matter spread"] = _spread(image[white]) / level
        for q in (5, 25, 50, 75, 95):
            found[f"{name} lesion / white matter, {q}%"] = (
                np.percentile(image[patient.lesions], q) / level
            )
    return {name: float(value) for name, value in found.items()}


def _dilate(mask: NDArray[np.bool_], voxels: float) -> NDArray[np.bool_]:
    return np.asarray(ndimage.binary_dilation(mask, iterations=max(1, round(voxels))))


def _segment(t1: NDArray[np.float32], where: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """White matter, grey matter and CSF away from their borders, by a mixture of three Gaussians on T1."""
    mixture = GaussianMixture(3, random_state=0)
    sample = np.random.default_rng(0).choice(t1[where], 20_000)
    kind = np.full(t1.shape, -1)
    kind[where] = mixture.fit(sample[:, None]).predict(t1[where][:, None])
    order = np.argsort(mixture.means_[:, 0])[::-1]
    return [
        ndimage.binary_erosion(kind == k, iterations=n)
        for k, n in zip(order, (2, 1, 1), strict=True)
    ]


def _spread(values: NDArray[np.float32]) -> float:
    """Standard deviation by the median absolute deviation."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def _noise_sd(image: NDArray[np.float32], where: NDArray[np.bool_]) -> float:
    """Standard deviation of a voxel about the mean of itself and its 6 neighbours, scaled as for white noise."""
    cross = ndimage.generate_binary_structure(3, 1) / 7
    return _spread((image - ndimage.convolve(image, cross))[where]) / float(np.sqrt(6 / 7))


def lesion_table(
    real: Sequence[Patient], made: Sequence[Patient], spacing_mm: float
) -> Iterator[str]:
    """Lesion counts, sizes and loads of both cohorts."""
    yield f"| at {spacing_mm:g} mm | real: {len(real)} masks, min / quartiles / max | phantom: {len(made)} subjects |"
    yield "|---|---|---|"
    voxel = spacing_mm**3
    rows = {
        "lesions per subject": lambda p: len(lesion_sizes(p)),
        "lesion load (mm³)": lambda p: p.lesions.sum() * voxel,
        "smallest quarter of lesions below (mm³)": lambda p: (
            np.quantile(lesion_sizes(p), 0.25) * voxel
        ),
        "median lesion (mm³)": lambda p: np.median(lesion_sizes(p)) * voxel,
        "largest quarter of lesions above (mm³)": lambda p: (
            np.quantile(lesion_sizes(p), 0.75) * voxel
        ),
        "largest lesion (mm³)": lambda p: lesion_sizes(p)[0] * voxel,
        "lesions of one voxel (share)": lambda p: np.mean(lesion_sizes(p) == 1),
    }
    for name, measure in rows.items():
        yield f"| {name} | {_five([measure(p) for p in real])} | {_five([measure(p) for p in made])} |"
    pair = [100 * p.lesions.sum() / p.brain.sum() for p in real if p.images]
    yield (
        f"| prevalence (% of brain) | {' and '.join(f'{v:.2f}' for v in pair)} (the pair with images) "
        f"| {_five([100 * p.lesions.sum() / p.brain.sum() for p in made])} |"
    )


def image_table(
    real: Sequence[Patient], made: Sequence[Patient], spacing_mm: float
) -> Iterator[str]:
    """Intensities and noise of the real pair beside the synthetic subjects."""
    pair = [p for p in real if p.images]
    measured = [image_measures(p, spacing_mm=spacing_mm) for p in pair]
    synthetic = [image_measures(p, spacing_mm=spacing_mm) for p in made]
    yield f"| images at {spacing_mm:g} mm | {' | '.join(p.name for p in pair)} | phantom: min / quartiles / max |"
    yield "|---|" + "---|" * (len(pair) + 1)
    for name in measured[0]:
        cells = [f"{m[name]:.3f}" for m in measured]
        yield f"| {name} | {' | '.join(cells)} | {_five([m[name] for m in synthetic])} |"


def _five(values: Sequence[float]) -> str:
    return " / ".join(
        f"{v:,.0f}" if v >= 10 else f"{v:.3g}" for v in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    )


def print_constants(patients: Sequence[Patient], *, spacing_mm: int) -> None:
    """Print LESION_SIZES of data/phantom/lesions.py for one spacing."""
    sizes = sorted((lesion_sizes(p) for p in patients), key=np.sum)
    others = np.quantile(np.concatenate([s[2:] for s in sizes]), QUANTILES)
    print(f"{spacing_mm} mm")
    print("count  ", *(len(s) for s in sizes))
    print("largest", *(int(s[0]) for s in sizes))
    print("second ", *(int(s[1]) for s in sizes))
    print("others ", *(round(float(n)) for n in others))


def draw_slices(real: Sequence[Patient], made: Sequence[Patient], *, path: Path) -> None:
    """The real pair and three synthetic subjects, in the slice of each with most lesion."""
    from matplotlib import pyplot as plt

    by_load = sorted(made, key=lambda p: int(p.lesions.sum()))
    shown = [
        *(p for p in real if p.images),
        *(by_load[int(q * (len(made) - 1))] for q in (0.15, 0.6, 0.95)),
    ]
    figure, axes = plt.subplots(
        len(MODALITIES) + 1, len(shown), figsize=(2.6 * len(shown), 12), facecolor="black"
    )
    for column, patient in zip(axes.T, shown, strict=True):
        box = ndimage.find_objects(patient.brain.astype(np.uint8))[0]
        z = int(np.argmax(patient.lesions[box].sum((0, 1))))
        outline = patient.lesions[box][:, :, z].T
        for axis, name in zip(column, ("FLAIR", *MODALITIES), strict=True):
            image = patient.images[name]
            top = np.quantile(image[patient.brain], 0.997)
            axis.imshow(image[box][:, :, z].T, cmap="gray", origin="lower", vmin=0, vmax=top)
            axis.axis("off")
        column[1].contour(outline, [0.5], colors="red", linewidths=0.8)
        column[0].set_title(patient.name.replace("_", " "), color="white", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)


def draw_sizes(
    real: Sequence[Patient], made: Sequence[Patient], *, spacing_mm: float, path: Path
) -> None:
    """Lesion sizes of all subjects, and load against number of lesions."""
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    for name, cohort in (("real", real), ("phantom", made)):
        volumes = np.sort(np.concatenate([lesion_sizes(p) for p in cohort])) * spacing_mm**3
        left.step(
            volumes,
            np.arange(1, len(volumes) + 1) / len(volumes),
            label=f"{name}: {len(volumes)} lesions",
        )
        loads = [p.lesions.sum() * spacing_mm**3 for p in cohort]
        right.scatter(
            [len(lesion_sizes(p)) for p in cohort], loads, label=f"{name}: {len(cohort)} subjects"
        )
    left.set(
        xscale="log", xlabel="lesion volume (mm³)", ylabel="share of lesions up to this volume"
    )
    right.set(xscale="log", yscale="log", xlabel="lesions of a subject", ylabel="lesion load (mm³)")
    left.legend()
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()
