"""Compare the synthetic cohort with real patients: the table and figures of docs/phantom.md.

    python scripts/dev/compare_phantom.py --real <open_ms_data>              # writes the page
    python scripts/dev/compare_phantom.py --real <open_ms_data> --constants  # prints LESION_SIZES

The real masks (29 of them with open_ms_data's MNI part) and the real pair with images are resampled
to the phantom's spacing by block averages; a voxel is lesion if at least half of it is. Both sides
go through the same measurements.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cc3d
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
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

# The table of the page stands between these lines.
BEGIN = "<!-- table: begin -->"
END = "<!-- table: end -->"


@dataclass(frozen=True)
class Patient:
    """A subject on the grid of the comparison, axes R, A, S.

    Attributes:
        name: Identifier of the case.
        images: Images by modality, (X, Y, Z); empty if only the mask exists.
        lesions: Lesion mask, (X, Y, Z).
        brain: Brain mask, (X, Y, Z); everywhere true without images.
    """

    name: str
    images: Mapping[str, NDArray[np.float32]]
    lesions: NDArray[np.bool_]
    brain: NDArray[np.bool_]


def main() -> None:
    """Measure both cohorts, print the table and write it into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", type=Path, required=True, help="folder open_ms_data")
    parser.add_argument(
        "--phantom",
        type=Path,
        default=Path("data/phantom"),
        help="folder of synthetic cohorts (data/phantom)",
    )
    parser.add_argument(
        "--spacing-mm", type=float, default=2.0, help="voxel size of both cohorts (2)"
    )
    parser.add_argument("--constants", action="store_true", help="print LESION_SIZES and stop")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of phantom.md and figures/")
    options = parser.parse_args()
    spacing_mm = options.spacing_mm
    real_cases = find_lesjak2017(options.real)
    if options.constants:
        for factor in (1, 2):
            patients = [read_real(case, factor=factor) for case in real_cases]
            print_constants(patients, spacing_mm=factor)
        return
    real = [read_real(case, factor=round(spacing_mm)) for case in real_cases]
    synthetic_cases = make_phantom(options.phantom, spacing_mm=spacing_mm)
    synthetic = [read_synthetic(case) for case in synthetic_cases]

    lines = lesion_table(real, synthetic, spacing_mm)
    lines += ["", *image_table(real, synthetic, spacing_mm)]
    table = "\n".join(lines)
    print(table)
    write_into_page(options.docs / "phantom.md", table)
    figures = options.docs / "figures"
    draw_slices(real, synthetic, path=figures / "phantom_slices.png")
    draw_sizes(real, synthetic, spacing_mm=spacing_mm, path=figures / "phantom_lesions.png")


def write_into_page(page: Path, table: str) -> None:
    """Replace the table between the two marks of a page."""
    text = page.read_text(encoding="utf-8")
    before = text.split(BEGIN)[0]
    after = text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


# The subjects


def read_real(case: Case, *, factor: int) -> Patient:
    """Read a real patient (1 mm voxels) and average blocks of `factor`^3 voxels.

    The brain is where FLAIR is not 0, because the images are skull-stripped.
    """
    assert case.label is not None
    label = read_label(case.label)
    # The files lie along the axes, so that flips alone turn them to RAS.
    to_ras = tuple(slice(None, None, int(np.sign(label.affine[i, i]))) for i in range(3))
    images = {}
    for name, file in case.images.items():
        if name in MODALITIES:
            images[name] = read_volume(file).data[to_ras]
    brain = images["FLAIR"] != 0 if images else np.ones(label.shape, dtype=bool)
    return Patient(
        name=case.case_id,
        images={name: block_mean(image, factor) for name, image in images.items()},
        lesions=block_mean(label.data[to_ras] > 0, factor) >= 0.5,
        brain=block_mean(brain, factor) > 0.99,
    )


def read_synthetic(case: Case) -> Patient:
    """Read a synthetic subject as its files are."""
    assert case.label is not None
    assert case.brain_mask is not None
    return Patient(
        name=case.case_id,
        images={name: read_volume(file).data for name, file in case.images.items()},
        lesions=read_label(case.label).data > 0,
        brain=read_label(case.brain_mask).data > 0,
    )


def block_mean(volume: NDArray[np.generic], factor: int) -> NDArray[np.float32]:
    """Average blocks of `factor`^3 voxels; the far ends are padded with 0 to whole blocks."""
    padding = [(0, -n % factor) for n in volume.shape]
    padded = np.pad(volume.astype(np.float32), padding)
    x, y, z = (n // factor for n in padded.shape)
    blocks = padded.reshape(x, factor, y, factor, z, factor)
    return np.asarray(blocks.mean((1, 3, 5)))


# Lesions


def lesion_sizes(patient: Patient) -> NDArray[np.int64]:
    """Count the voxels of each lesion (26-connected), largest first."""
    components = cc3d.connected_components(patient.lesions, connectivity=26)
    sizes = np.bincount(components.ravel())[1:]
    return np.sort(sizes)[::-1]


def lesion_measures(patient: Patient, spacing_mm: float) -> dict[str, float]:
    """Measure number, sizes and load of the lesions of a subject."""
    sizes = lesion_sizes(patient)
    voxel_mm3 = spacing_mm**3
    return {
        "lesions per subject": len(sizes),
        "lesion load (mm³)": patient.lesions.sum() * voxel_mm3,
        "smallest quarter of lesions below (mm³)": np.quantile(sizes, 0.25) * voxel_mm3,
        "median lesion (mm³)": np.median(sizes) * voxel_mm3,
        "largest quarter of lesions above (mm³)": np.quantile(sizes, 0.75) * voxel_mm3,
        "largest lesion (mm³)": sizes[0] * voxel_mm3,
        "lesions of one voxel (share)": np.mean(sizes == 1),
    }


def prevalence(patient: Patient) -> float:
    """Share of the brain that is lesion, in per cent."""
    return float(100 * patient.lesions.sum() / patient.brain.sum())


def lesion_table(
    real: Sequence[Patient], synthetic: Sequence[Patient], spacing_mm: float
) -> list[str]:
    """Write the table of lesion counts, sizes and loads of both cohorts."""
    real_measures = [lesion_measures(patient, spacing_mm) for patient in real]
    synthetic_measures = [lesion_measures(patient, spacing_mm) for patient in synthetic]
    header = [
        f"at {spacing_mm:g} mm",
        f"real: {len(real)} masks, min / quartiles / max",
        f"phantom: {len(synthetic)} subjects",
    ]
    lines = [table_row(header), "|---|---|---|"]
    for name in real_measures[0]:
        of_real = five_numbers(real_measures, name)
        of_synthetic = five_numbers(synthetic_measures, name)
        lines.append(table_row([name, of_real, of_synthetic]))
    # The brain mask comes from the images, which two of the real patients have.
    pair = [f"{prevalence(patient):.2f}" for patient in real if patient.images]
    of_pair = f"{' and '.join(pair)} (the pair with images)"
    prevalences = [{"prevalence": prevalence(patient)} for patient in synthetic]
    of_synthetic = five_numbers(prevalences, "prevalence")
    lines.append(table_row(["prevalence (% of brain)", of_pair, of_synthetic]))
    return lines


# Images


def image_measures(patient: Patient, *, spacing_mm: float) -> dict[str, float]:
    """Measure the contrasts of a subject's images, relative to white matter away from lesions."""
    near_lesions = dilate(patient.lesions, 4 / spacing_mm)
    n_voxels = max(1, round(3 / spacing_mm))
    brain = ndimage.binary_erosion(patient.brain, iterations=n_voxels)
    # The reference tissue stays away from lesions, whose borders are blurred.
    white, grey, csf = segment_tissues(patient.images["T1"], brain & ~near_lesions)
    surround = near_lesions & ~dilate(patient.lesions, 2 / spacing_mm) & brain
    flair = patient.images["FLAIR"]
    measures = {
        "PR-AUC of FLAIR alone": average_precision_score(patient.lesions[brain], flair[brain])
    }
    for name, image in patient.images.items():
        level = np.median(image[white])
        lesion_values = image[patient.lesions]
        measures[f"{name} lesion / surround"] = lesion_values.mean() / image[surround].mean()
        measures[f"{name} grey / white matter"] = np.median(image[grey]) / level
        measures[f"{name} CSF / white matter"] = np.median(image[csf]) / level
        measures[f"{name} white matter noise"] = noise_sd(image, white) / level
        measures[f"{name} white matter spread"] = robust_sd(image[white]) / level
        for q in (5, 25, 50, 75, 95):
            percentile = np.percentile(lesion_values, q)
            measures[f"{name} lesion / white matter, {q}%"] = percentile / level
    return {name: float(value) for name, value in measures.items()}


def dilate(mask: NDArray[np.bool_], n_voxels: float) -> NDArray[np.bool_]:
    """Grow a mask by a number of voxels, rounded, at least 1."""
    return np.asarray(ndimage.binary_dilation(mask, iterations=max(1, round(n_voxels))))


def segment_tissues(
    t1: NDArray[np.float32], region: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Segment white matter, grey matter and CSF by a mixture of three Gaussians on T1.

    The masks are eroded, so that voxels of mixed tissue stay out.
    """
    values = t1[region]
    # A sample is enough for six parameters, and quicker.
    sample = np.random.default_rng(0).choice(values, 20_000)
    mixture = GaussianMixture(3, random_state=0).fit(sample[:, None])
    tissue = np.full(t1.shape, -1)
    tissue[region] = mixture.predict(values[:, None])
    # On T1, white matter is brightest and CSF darkest.
    white, grey, csf = np.argsort(mixture.means_[:, 0])[::-1]
    return (
        ndimage.binary_erosion(tissue == white, iterations=2),
        ndimage.binary_erosion(tissue == grey, iterations=1),
        ndimage.binary_erosion(tissue == csf, iterations=1),
    )


def robust_sd(values: NDArray[np.float32]) -> float:
    """Estimate the standard deviation by the median absolute deviation."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def noise_sd(image: NDArray[np.float32], region: NDArray[np.bool_]) -> float:
    """Estimate the standard deviation of white noise in a region.

    Each voxel is compared with the mean of itself and its 6 neighbours. Of white noise, that
    difference has 6/7 of the variance.
    """
    cross = ndimage.generate_binary_structure(3, 1) / 7
    difference = image - ndimage.convolve(image, cross)
    return robust_sd(difference[region]) / float(np.sqrt(6 / 7))


def image_table(
    real: Sequence[Patient], synthetic: Sequence[Patient], spacing_mm: float
) -> list[str]:
    """Write the table of contrasts and noise of the real pair and the synthetic subjects."""
    pair = [patient for patient in real if patient.images]
    pair_measures = [image_measures(patient, spacing_mm=spacing_mm) for patient in pair]
    synthetic_measures = [image_measures(patient, spacing_mm=spacing_mm) for patient in synthetic]
    names = [patient.name for patient in pair]
    header = [f"images at {spacing_mm:g} mm", *names, "phantom: min / quartiles / max"]
    lines = [table_row(header), "|---|" + "---|" * (len(pair) + 1)]
    for name in pair_measures[0]:
        of_pair = [f"{measures[name]:.3f}" for measures in pair_measures]
        of_synthetic = five_numbers(synthetic_measures, name)
        lines.append(table_row([name, *of_pair, of_synthetic]))
    return lines


# The tables


def table_row(cells: Sequence[str]) -> str:
    """Join the cells of a row in Markdown."""
    return f"| {' | '.join(cells)} |"


def five_numbers(measures_of_subjects: Sequence[Mapping[str, float]], name: str) -> str:
    """Format minimum, quartiles and maximum of a measure, as "3 / 12 / 20 / 31 / 1,045"."""
    values = [measures[name] for measures in measures_of_subjects]
    texts = []
    for value in np.quantile(values, [0, 0.25, 0.5, 0.75, 1]):
        texts.append(f"{value:,.0f}" if value >= 10 else f"{value:.3g}")
    return " / ".join(texts)


def print_constants(patients: Sequence[Patient], *, spacing_mm: int) -> None:
    """Print LESION_SIZES of data/phantom/lesions.py for one spacing."""
    sizes_of_patients = sorted((lesion_sizes(patient) for patient in patients), key=np.sum)
    beyond_second = np.concatenate([sizes[2:] for sizes in sizes_of_patients])
    others = np.quantile(beyond_second, QUANTILES)
    print(f"{spacing_mm} mm")
    print("count  ", *(len(sizes) for sizes in sizes_of_patients))
    print("largest", *(int(sizes[0]) for sizes in sizes_of_patients))
    print("second ", *(int(sizes[1]) for sizes in sizes_of_patients))
    print("others ", *(round(float(n)) for n in others))


# The figures


def draw_slices(real: Sequence[Patient], synthetic: Sequence[Patient], *, path: Path) -> None:
    """Draw the real pair and three synthetic subjects, each in the slice with most lesion."""
    by_load = sorted(synthetic, key=lambda patient: int(patient.lesions.sum()))
    patients = [patient for patient in real if patient.images]
    for quantile in (0.15, 0.6, 0.95):
        patients.append(by_load[int(quantile * (len(by_load) - 1))])
    n_rows = len(MODALITIES) + 1
    figure, axes = plt.subplots(
        n_rows, len(patients), figsize=(2.6 * len(patients), 12), facecolor="black"
    )
    for column, patient in zip(axes.T, patients, strict=True):
        draw_patient(column, patient)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)


def draw_patient(axes: Sequence[Axes], patient: Patient) -> None:
    """Draw FLAIR, FLAIR with the lesions outlined, and the other modalities."""
    box = ndimage.find_objects(patient.brain.astype(np.uint8))[0]
    lesions = patient.lesions[box]
    z = int(np.argmax(lesions.sum((0, 1))))
    for axis, name in zip(axes, ("FLAIR", *MODALITIES), strict=True):
        image = patient.images[name]
        brightest = np.quantile(image[patient.brain], 0.997)
        axis.imshow(image[box][:, :, z].T, cmap="gray", origin="lower", vmin=0, vmax=brightest)
        axis.axis("off")
    axes[1].contour(lesions[:, :, z].T, [0.5], colors="red", linewidths=0.8)
    axes[0].set_title(patient.name.replace("_", " "), color="white", fontsize=8)


def draw_sizes(
    real: Sequence[Patient], synthetic: Sequence[Patient], *, spacing_mm: float, path: Path
) -> None:
    """Draw the lesion sizes of all subjects, and their load against their number of lesions."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    voxel_mm3 = spacing_mm**3
    for name, cohort in (("real", real), ("phantom", synthetic)):
        sizes = [lesion_sizes(patient) for patient in cohort]
        volumes = np.sort(np.concatenate(sizes)) * voxel_mm3
        share = np.arange(1, len(volumes) + 1) / len(volumes)
        left.step(volumes, share, label=f"{name}: {len(volumes)} lesions")
        loads = [patient.lesions.sum() * voxel_mm3 for patient in cohort]
        counts = [len(of_patient) for of_patient in sizes]
        right.scatter(counts, loads, label=f"{name}: {len(cohort)} subjects")
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
