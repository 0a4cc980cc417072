"""All measures of one case, exact PR-AUC and lesion matching, beside MONAI, scikit-learn and scipy.

    python benchmarks/evaluation.py --data <open_ms_data> [--repeats 5] [--output docs/benchmarks/evaluation.md]

Reference: the lesions of patient19 of the Ljubljana MS data (182 x 218 x 182 voxels, 98 lesions, 49,769 mm3).
Prediction: a probability map made of it by blurring, noise and a shift, saved at 65,536 levels, zero outside the
brain. Without `--data` both are drawn, with about as many lesions. One thread; ours and the peer
take turns, so that a busy machine slows each alike; times are medians. "Peak" is the memory that a run claims at its
highest beside its input.
"""

import argparse
import datetime
import platform
import time
import tracemalloc
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import monai
import numpy as np
import scipy
import sklearn
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
    get_confusion_matrix,
)
from scipy import ndimage
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, roc_auc_score

from tversky_seg.metrics import compute_metrics
from tversky_seg.metrics.lesions import match_lesions
from tversky_seg.metrics.ranking import average_precision
from tversky_seg.metrics.surface import surface_distances

SHAPE, SPACING = (182, 218, 182), (1.0, 1.0, 1.0)


def draw_reference(n_lesions: int = 100) -> np.ndarray:
    """Balls of 1 to 10 voxels radius inside an ellipsoid."""
    rng = np.random.default_rng(0)
    mask = np.zeros(SHAPE, bool, order="F")
    grid = np.ogrid[tuple(slice(n) for n in SHAPE)]
    for radius in np.geomspace(0.8, 10, n_lesions):
        centre = np.array(SHAPE) * rng.uniform(0.3, 0.7, 3)
        box = tuple(slice(int(c - 11), int(c + 12)) for c in centre)
        near = [
            axis[tuple(s if axis.shape[k] > 1 else slice(None) for k, s in enumerate(box))]
            for axis in grid
        ]
        mask[box] |= sum((axis - c) ** 2 for axis, c in zip(near, centre, strict=True)) <= radius**2
    return mask


def read_reference(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Lesions and brain of patient19."""
    import nibabel

    folder = data / "cross_sectional" / "MNI" / "patient19"
    lesions, flair = (next(folder.glob(f"*{name}*.nii.gz")) for name in ("GOLD_STANDARD", "FLAIR"))
    return tuple(np.asarray(nibabel.load(path).dataobj) != 0 for path in (lesions, flair))


def draw_probability(reference: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """A map that finds most of the lesions, misses some and invents others."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=reference.shape), 1.2)
    lesion = ndimage.gaussian_filter(np.roll(reference, 1, axis=0).astype(np.float32), 0.8)
    probability = brain / (1 + np.exp(7 - 12 * lesion - 2.2 * noise / noise.std()))
    levels = np.asarray(
        np.rint(probability * 65535), dtype=np.uint16, order="F"
    )  # as a NIfTI file holds it
    return levels * np.float32(1 / 65535)


def peer_measures(probability: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The numbers of `compute_metrics(..., further=True)` from MONAI, scikit-learn and scipy."""
    mask = probability >= 0.5
    pair = [torch.from_numpy(m)[None, None] for m in (mask, reference)]
    tp, fp, tn, fn = (
        get_confusion_matrix(*(m.to(torch.uint8) for m in pair), include_background=True)[0, 0]
        .double()
        .tolist()
    )
    spacing = {"include_background": True, "spacing": SPACING}
    there, back = (
        float(compute_average_surface_distance(*two, **spacing)) for two in (pair, pair[::-1])
    )  # directed means
    n_there, n_back = (np.count_nonzero(m & ~ndimage.binary_erosion(m)) for m in (mask, reference))
    share, mean = calibration_curve(
        reference.ravel(order="K"), probability.ravel(order="K"), n_bins=10
    )
    n_bin = np.histogram(probability, bins=np.linspace(0, 1, 11))[0]
    return {
        "dice": 2 * tp / (2 * tp + fp + fn),
        "jaccard": tp / (tp + fp + fn),
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "precision": tp / (tp + fp),
        "f2": 5 * tp / (5 * tp + 4 * fn + fp),
        "mcc": (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)),
        "pr_auc": average_precision_score(reference.ravel(order="K"), probability.ravel(order="K")),
        "roc_auc": roc_auc_score(reference.ravel(order="K"), probability.ravel(order="K")),
        "calibration_error": float((n_bin[n_bin > 0] * abs(share - mean)).sum() / n_bin.sum()),
        "assd_mm": (there * n_there + back * n_back) / (n_there + n_back),
        "hd95_mm": float(compute_hausdorff_distance(*pair, percentile=95, **spacing)),
        "hd_mm": float(compute_hausdorff_distance(*pair, **spacing)),
        "surface_dice": float(compute_surface_dice(*pair, class_thresholds=[1.0], **spacing)),
        **peer_lesions(mask, reference),
    }


def peer_lesions(mask: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Lesions found, invented, split, merged, their best Dice and centres with scipy, box by box."""
    (predicted, n_predicted), (referred, n_reference) = (
        ndimage.label(m, np.ones((3, 3, 3))) for m in (mask, reference)
    )
    sizes = np.bincount(predicted.ravel())
    best, partners = [], []
    for number, box in enumerate(ndimage.find_objects(referred), 1):
        inside = referred[box] == number
        others, shared = np.unique(predicted[box][inside], return_counts=True)
        dice = [2 * n / (inside.sum() + sizes[k]) for k, n in zip(others, shared, strict=True) if k]
        best.append(max(dice, default=0.0))
        partners.append(set(others.tolist()) - {0})
    owners: dict[int, int] = {}
    for k in (k for others in partners for k in others):
        owners[k] = owners.get(k, 0) + 1
    for labels, n in ((predicted, n_predicted), (referred, n_reference)):
        ndimage.center_of_mass(labels, labels, range(1, n + 1))
    found = sum(value > 0 for value in best)
    return {
        "lesion_tpr": found / n_reference,
        "lesion_fpr": (n_predicted - len(owners)) / n_predicted,
        "n_reference_lesions": n_reference,
        "n_predicted_lesions": n_predicted,
        "n_split_lesions": sum(len(others) > 1 for others in partners),
        "n_merged_lesions": sum(n > 1 for n in owners.values()),
        "object_dice": sum(best) / max(found, 1),
    }


def peer_surfaces(mask: np.ndarray, reference: np.ndarray) -> None:
    pair = [torch.from_numpy(m)[None, None] for m in (mask, reference)]
    spacing = {"include_background": True, "spacing": SPACING}
    compute_average_surface_distance(*pair, symmetric=True, **spacing)
    compute_hausdorff_distance(*pair, percentile=95, **spacing)
    compute_hausdorff_distance(*pair, **spacing)
    compute_surface_dice(*pair, class_thresholds=[1.0], **spacing)


def seconds(jobs: dict[str, Callable[[], Any]], *, repeats: int) -> dict[str, float]:
    """Median time of each job; they take turns, after one turn to warm up."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in times.items()}


def peak_mib(job: Callable[[], Any]) -> float:
    tracemalloc.start()
    job()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def check_equal(probability: np.ndarray, reference: np.ndarray) -> list[str]:
    """A line on how far both sides' numbers differ; an error beyond 1e-4."""
    ours = compute_metrics(probability, reference, spacing_mm=SPACING, further=True)
    theirs = peer_measures(probability, reference)
    apart = {name: abs(ours[name] - value) for name, value in theirs.items()}
    wrong = {name: (ours[name], theirs[name]) for name, value in apart.items() if value > 1e-4}
    if wrong:
        raise SystemExit(f"ours and the peers' differ: {wrong}")
    return [
        f"{len(theirs)} numbers are compared; the largest difference is {max(apart.values()):.0e} "
        f"({max(apart, key=apart.__getitem__)}), of PR-AUC {apart['pr_auc']:.0e}."
    ]


def table(probability: np.ndarray, reference: np.ndarray, *, repeats: int) -> list[str]:
    mask, flat = probability >= 0.5, (reference.ravel(order="K"), probability.ravel(order="K"))
    rows: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
        "all measures of one case": (
            lambda: compute_metrics(probability, reference, spacing_mm=SPACING, further=True),
            lambda: peer_measures(probability, reference),
            "MONAI + scikit-learn + scipy",
        ),
        "exact PR-AUC": (
            lambda: average_precision(probability, reference),
            lambda: average_precision_score(*flat),
            "scikit-learn",
        ),
        "lesion matching": (
            lambda: match_lesions(mask, reference, spacing_mm=SPACING),
            lambda: peer_lesions(mask, reference),
            "scipy",
        ),
        "surface distances": (
            lambda: surface_distances(mask, reference, spacing_mm=SPACING),
            lambda: peer_surfaces(mask, reference),
            "MONAI",
        ),
    }
    lines = [
        "| | ours ms | peer ms | peer / ours | peak, ours MiB | peak, peer MiB | peer |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (ours, peer, who) in rows.items():
        times = seconds({"ours": ours, "peer": peer}, repeats=repeats)
        peaks = [f"{peak_mib(job):.0f}" for job in (ours, peer)]
        cells = (
            f"{1e3 * times['ours']:.0f}",
            f"{1e3 * times['peer']:.0f}",
            f"**{times['peer'] / times['ours']:.1f}**",
        )
        lines.append(f"| {' | '.join((name, *cells, *peaks, who))} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="the folder open_ms_data")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also write the page there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.data:
        reference, brain = read_reference(arguments.data)
    else:
        reference = draw_reference()
        brain = ndimage.distance_transform_cdt(np.ones(SHAPE)) > 20
    probability = draw_probability(reference, brain)
    counts = compute_metrics(probability, reference, spacing_mm=SPACING)
    page = [
        "# Evaluation: time and memory",
        "",
        f"`python benchmarks/evaluation.py{' --data <open_ms_data>' if arguments.data else ''} --repeats "
        f"{arguments.repeats}`, {datetime.date.today()}, MONAI {monai.__version__}, scikit-learn "
        f"{sklearn.__version__}, scipy {scipy.__version__}, numpy {np.__version__}, "
        f"connected-components-3d {version('connected-components-3d')}, Python "
        f"{platform.python_version()}, 1 CPU thread.",
        "",
        *(__doc__ or "").split("\n\n", 2)[2].strip().split("\n"),
        "",
        f"Reference: {counts['n_reference_lesions']} lesions, {counts['reference_volume_mm3']:,.0f} mm3; prediction: "
        f"{counts['n_predicted_lesions']} lesions, {counts['predicted_volume_mm3']:,.0f} mm3; Dice "
        f"{counts['dice']:.2f}.",
        "",
        *table(probability, reference, repeats=arguments.repeats),
        "",
        *check_equal(probability, reference),
        "",
    ]
    print("\n".join(page))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("\n".join(page))


if __name__ == "__main__":
    main()
