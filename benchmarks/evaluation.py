"""Time and memory of all metrics of one case, next to MONAI, scikit-learn and scipy.

    python benchmarks/evaluation.py --data <open_ms_data> [--repeats 5] [--cases 10 1000]
        [--only "all metrics by lesion"] [--output <page.md>]

Reference: the lesions of patient19 of the Ljubljana MS data (182 x 218 x 182 voxels, 98 lesions,
49,769 mm3). Prediction: a probability map made of it by blurring, noise and a shift, saved at
65,536 levels, zero outside the brain. Without `--data` both are drawn, with about as many lesions.
Times are medians of the CPU time of one thread; ours and the peer take turns, so that a busy
machine slows each alike. "Peak" is the largest amount of memory that a run allocates in addition to
its input. "All metrics by lesion" are CC-Dice, CC-NSD, CC-HD95, lesion-wise Dice and HD95 of BraTS,
PQ, RQ, SQ, the highest probability inside each lesion and the volume from which recall reaches 0.8;
its peer computes CC-Dice alone. `--cases` evaluates small cases by the number, to show that memory
does not grow with them.
"""

import argparse
import datetime
import platform
import time
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from monai.metrics import (
    DiceMetric,
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
    get_confusion_matrix,
)
from scipy import ndimage
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, roc_auc_score

from tversky_seg.data.case import Case
from tversky_seg.evaluation.case_result import CaseResult, evaluate_class
from tversky_seg.evaluation.cohort import EvaluatedCohort
from tversky_seg.evaluation.saved_predictions import Prediction
from tversky_seg.evaluation.summary import summarize
from tversky_seg.metrics import (
    LesionRule,
    LesionSettings,
    average_precision,
    compute_metrics,
    surface_distances,
)
from tversky_seg.metrics.by_lesion import ByLesion, measure_by_lesion
from tversky_seg.metrics.detection_limit import recall80_volume
from tversky_seg.metrics.lesions import match_lesions

SHAPE = (182, 218, 182)
SPACING_MM = (1.0, 1.0, 1.0)
LARGEST_DIFFERENCE = 1e-4
PACKAGES = ("monai", "scikit-learn", "scipy", "numpy", "connected-components-3d")

Job = Callable[[], object]


# Data


def read_case(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the lesions and the brain of patient19."""
    import nibabel

    folder = data / "cross_sectional" / "MNI" / "patient19"
    masks = []
    for name in ("GOLD_STANDARD", "FLAIR"):
        path = next(folder.glob(f"*{name}*.nii.gz"))
        masks.append(np.asarray(nibabel.load(path).dataobj) != 0)
    lesions, brain = masks
    return lesions, brain


def draw_case(n_lesions: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Draw balls of 1 to 10 voxels radius as lesions, and a box as brain."""
    rng = np.random.default_rng(0)
    lesions = np.zeros(SHAPE, bool, order="F")
    for radius in np.geomspace(0.8, 10, n_lesions):
        centre = np.array(SHAPE) * rng.uniform(0.3, 0.7, 3)
        corner = (centre - 11).astype(int)
        box = tuple(slice(start, start + 23) for start in corner)
        offsets = np.indices((23, 23, 23)) - (centre - corner)[:, None, None, None]
        lesions[box] |= (offsets**2).sum(axis=0) <= radius**2
    brain = np.zeros(SHAPE, bool, order="F")
    brain[20:-20, 20:-20, 20:-20] = True
    return lesions, brain


def draw_probability(reference: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Draw a map that detects most lesions, misses some and has some false positives."""
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.normal(size=reference.shape), 1.2)
    shifted = np.roll(reference, 1, axis=0).astype(np.float32)
    lesion = ndimage.gaussian_filter(shifted, 0.8)
    probability = brain / (1 + np.exp(7 - 12 * lesion - 2.2 * noise / noise.std()))
    # As a NIfTI file holds it, in its order and at its levels.
    levels = np.asarray(np.rint(probability * 65535), dtype=np.uint16, order="F")
    return levels * np.float32(1 / 65535)


# The peers


def peer_metrics(probability: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Compute the numbers of `compute_metrics(..., further=True)` with the peers."""
    mask = probability >= 0.5
    metrics = peer_voxels(mask, reference)
    metrics |= peer_ranking(probability, reference)
    metrics |= peer_surfaces(mask, reference)
    metrics |= peer_lesions(mask, reference)
    return metrics


def peer_voxels(mask: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Compute voxel-wise rates with MONAI's confusion matrix."""
    prediction = torch.from_numpy(mask)[None, None].to(torch.uint8)
    target = torch.from_numpy(reference)[None, None].to(torch.uint8)
    matrix = get_confusion_matrix(prediction, target, include_background=True)[0, 0]
    tp, fp, tn, fn = matrix.double().tolist()
    spread = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return {
        "dice": 2 * tp / (2 * tp + fp + fn),
        "jaccard": tp / (tp + fp + fn),
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "precision": tp / (tp + fp),
        "f2": 5 * tp / (5 * tp + 4 * fn + fp),
        "mcc": (tp * tn - fp * fn) / np.sqrt(spread),
    }


def peer_ranking(probability: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Compute areas and calibration error with scikit-learn."""
    scores = probability.ravel(order="K")
    positive = reference.ravel(order="K")
    share, mean = calibration_curve(positive, scores, n_bins=10)
    n_voxels, _ = np.histogram(probability, bins=np.linspace(0, 1, 11))
    gaps = n_voxels[n_voxels > 0] * abs(share - mean)
    return {
        "pr_auc": average_precision_score(positive, scores),
        "roc_auc": roc_auc_score(positive, scores),
        "calibration_error": float(gaps.sum() / n_voxels.sum()),
    }


def peer_surfaces(mask: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Compute surface distances with MONAI, and the pooled mean from its directed means."""
    prediction = torch.from_numpy(mask)[None, None]
    target = torch.from_numpy(reference)[None, None]
    settings = {"include_background": True, "spacing": SPACING_MM}
    to_target = float(compute_average_surface_distance(prediction, target, **settings))
    to_prediction = float(compute_average_surface_distance(target, prediction, **settings))
    n_prediction = np.count_nonzero(mask & ~ndimage.binary_erosion(mask))
    n_target = np.count_nonzero(reference & ~ndimage.binary_erosion(reference))
    total = to_target * n_prediction + to_prediction * n_target
    hd95 = compute_hausdorff_distance(prediction, target, percentile=95, **settings)
    hd = compute_hausdorff_distance(prediction, target, **settings)
    dice = compute_surface_dice(prediction, target, class_thresholds=[1.0], **settings)
    return {
        "assd_mm": total / (n_prediction + n_target),
        "hd95_mm": float(hd95),
        "hd_mm": float(hd),
        "surface_dice": float(dice),
    }


def peer_lesions(mask: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Match lesions with scipy, box by box, with their best Dice and their centres."""
    predicted, n_predicted = ndimage.label(mask, np.ones((3, 3, 3)))
    true, n_reference = ndimage.label(reference, np.ones((3, 3, 3)))
    sizes = np.bincount(predicted.ravel())
    best_dice = []
    n_partners = []
    n_owners = np.zeros(n_predicted + 1, int)
    for number, box in enumerate(ndimage.find_objects(true), 1):
        inside = true[box] == number
        partners, n_shared = np.unique(predicted[box][inside], return_counts=True)
        n_shared = n_shared[partners > 0]
        partners = partners[partners > 0]
        dice = 2 * n_shared / (inside.sum() + sizes[partners])
        best_dice.append(dice.max(initial=0.0))
        n_partners.append(len(partners))
        n_owners[partners] += 1
    ndimage.center_of_mass(predicted, predicted, range(1, n_predicted + 1))
    ndimage.center_of_mass(true, true, range(1, n_reference + 1))
    n_detected = np.count_nonzero(best_dice)
    n_matched = np.count_nonzero(n_owners)
    return {
        "lesion_tpr": n_detected / n_reference,
        "lesion_fpr": (n_predicted - n_matched) / n_predicted,
        "n_reference_lesions": n_reference,
        "n_predicted_lesions": n_predicted,
        "n_split_lesions": np.count_nonzero(np.array(n_partners) > 1),
        "n_merged_lesions": np.count_nonzero(n_owners > 1),
        "object_dice": sum(best_dice) / max(n_detected, 1),
    }


def peer_cc_dice(mask: np.ndarray, reference: np.ndarray) -> float:
    """Compute CC-Dice with MONAI, whose background comes as a channel of its own."""
    prediction = torch.from_numpy(np.stack([~mask, mask]))[None].to(torch.uint8)
    target = torch.from_numpy(np.stack([~reference, reference]))[None].to(torch.uint8)
    metric = DiceMetric(include_background=False, per_component=True)
    metric(prediction, target)
    return float(metric.aggregate())


def our_metrics_by_lesion(probability: np.ndarray, reference: np.ndarray) -> ByLesion:
    """Compute all metrics by lesion, from a probability."""
    mask = probability >= 0.5
    match = match_lesions(mask, reference, spacing_mm=SPACING_MM, scores=probability)
    recall80_volume(match.reference.volume_mm3, match.reference.overlap > 0)
    return measure_by_lesion(mask, reference, spacing_mm=SPACING_MM)


# Measurement


@dataclass(frozen=True)
class Comparison:
    """A job of ours and the same job of a peer."""

    name: str
    ours: Job
    peer: Job
    peer_name: str


def comparisons(probability: np.ndarray, reference: np.ndarray) -> list[Comparison]:
    """List the jobs to compare, on one case."""
    mask = probability >= 0.5
    scores = probability.ravel(order="K")
    positive = reference.ravel(order="K")
    return [
        Comparison(
            "all metrics of one case",
            ours=lambda: compute_metrics(
                probability, reference, spacing_mm=SPACING_MM, further=True
            ),
            peer=lambda: peer_metrics(probability, reference),
            peer_name="MONAI + scikit-learn + scipy",
        ),
        Comparison(
            "exact PR-AUC",
            ours=lambda: average_precision(probability, reference),
            peer=lambda: average_precision_score(positive, scores),
            peer_name="scikit-learn",
        ),
        Comparison(
            "lesion matching",
            ours=lambda: match_lesions(mask, reference, spacing_mm=SPACING_MM),
            peer=lambda: peer_lesions(mask, reference),
            peer_name="scipy",
        ),
        Comparison(
            "surface distances",
            ours=lambda: surface_distances(mask, reference, spacing_mm=SPACING_MM),
            peer=lambda: peer_surfaces(mask, reference),
            peer_name="MONAI",
        ),
        Comparison(
            "all metrics by lesion",
            ours=lambda: our_metrics_by_lesion(probability, reference),
            peer=lambda: peer_cc_dice(mask, reference),
            peer_name="MONAI, CC-Dice alone",
        ),
    ]


def seconds(job: Job) -> float:
    """Measure the CPU time of one run of a job."""
    start = time.process_time()
    job()
    return time.process_time() - start


def peak_mib(job: Job) -> float:
    """Measure the largest amount of memory that a run of a job allocates."""
    tracemalloc.start()
    job()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / 2**20


def table_row(comparison: Comparison, *, repeats: int) -> str:
    """Measure both jobs in turns, after one run of each to warm up."""
    comparison.ours()
    comparison.peer()
    ours_s = []
    peer_s = []
    for _ in range(repeats):
        ours_s.append(seconds(comparison.ours))
        peer_s.append(seconds(comparison.peer))
    cells = (
        comparison.name,
        f"{1e3 * median(ours_s):.0f}",
        f"{1e3 * median(peer_s):.0f}",
        f"**{median(peer_s) / median(ours_s):.1f}**",
        f"{peak_mib(comparison.ours):.0f}",
        f"{peak_mib(comparison.peer):.0f}",
        comparison.peer_name,
    )
    return f"| {' | '.join(cells)} |"


def memory_rows(numbers_of_cases: list[int]) -> list[str]:
    """Evaluate small cases by the number, and list the largest memory allocated for each."""
    rows = ["", "| cases of 32 x 32 x 32 voxels | peak MiB |", "|---|---|"]
    for n_cases in numbers_of_cases:
        rows.append(f"| {n_cases:,} | {peak_mib(lambda n=n_cases: evaluate_small_cases(n)):.0f} |")
    return rows


def evaluate_small_cases(n_cases: int) -> None:
    """Evaluate cases in memory, each with its own lesions, as the evaluation does with files."""
    rng = np.random.default_rng(0)
    cohort = EvaluatedCohort(LesionRule())
    for number in range(n_cases):
        shared, own = ndimage.gaussian_filter(rng.normal(size=(2, 32, 32, 32)), (0, 1.5, 1.5, 1.5))
        probability = (1 / (1 + np.exp(2 - 40 * (shared + own)))).astype(np.float32)
        of_class = evaluate_class(
            Prediction(probability >= 0.5, probability, 0.0),
            shared > 0.12,
            spacing_mm=SPACING_MM,
            rule=cohort.rule,
            tolerance_mm=1.0,
            by_lesion=LesionSettings(),
        )
        case = Case(f"case{number}", f"subject{number}", images={})
        cohort.add(CaseResult(case, np.eye(4), {"lesion": of_class}, raters={}))
    summarize(cohort, threshold=0.5, lesion_rule={}, n_bootstrap=100, seed=0)


def describe_cc_dice(probability: np.ndarray, reference: np.ndarray) -> str:
    """Compare CC-Dice with the peer's, which gives voxels between lesions to either of them."""
    mask = probability >= 0.5
    ours = measure_by_lesion(mask, reference, spacing_mm=SPACING_MM).cells.dice
    peer = peer_cc_dice(mask, reference)
    return (
        f"CC-Dice is {ours:.6f}, MONAI's {peer:.6f}: voxels at the same distance from two lesions "
        "go to the first lesion here, to either there."
    )


def describe_differences(probability: np.ndarray, reference: np.ndarray) -> str:
    """Compare our numbers with the peers'; stop with an error if they differ by more than 1e-4."""
    ours = compute_metrics(probability, reference, spacing_mm=SPACING_MM, further=True)
    peers = peer_metrics(probability, reference)
    differences = {}
    for name, value in peers.items():
        differences[name] = abs(ours[name] - value)
        if not differences[name] <= LARGEST_DIFFERENCE:
            raise SystemExit(f"{name} differs: {ours[name]} is ours, {value} the peers'")
    largest = max(differences, key=differences.__getitem__)
    return (
        f"{len(peers)} numbers are compared; the largest difference is "
        f"{differences[largest]:.0e} ({largest}), that of PR-AUC {differences['pr_auc']:.0e}."
    )


def page(arguments: argparse.Namespace) -> list[str]:
    """Measure, and write the lines of the page."""
    case = read_case(arguments.data) if arguments.data else draw_case()
    reference, brain = case
    probability = draw_probability(reference, brain)
    metrics = compute_metrics(probability, reference, spacing_mm=SPACING_MM)
    command = "python benchmarks/evaluation.py"
    if arguments.data:
        command += " --data <open_ms_data>"
    if arguments.only:
        command += f' --only "{arguments.only}"'
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    _, _, description = (__doc__ or "").split("\n\n", 2)
    lines = [
        "# Evaluation: time and memory",
        "",
        f"`{command} --repeats {arguments.repeats}`, {datetime.date.today()}, {versions}, Python "
        f"{platform.python_version()}, 1 CPU thread.",
        "",
        description.strip(),
        "",
        f"Reference: {metrics['n_reference_lesions']} lesions, "
        f"{metrics['reference_volume_mm3']:,.0f} mm3; prediction: "
        f"{metrics['n_predicted_lesions']} lesions, "
        f"{metrics['predicted_volume_mm3']:,.0f} mm3; Dice {metrics['dice']:.2f}.",
        "",
        "| | ours ms | peer ms | peer / ours | peak, ours MiB | peak, peer MiB | peer |",
        "|---|---|---|---|---|---|---|",
    ]
    for comparison in comparisons(probability, reference):
        if arguments.only in ("", comparison.name):
            lines.append(table_row(comparison, repeats=arguments.repeats))
    lines.append("")
    if not arguments.only:
        lines.append(describe_differences(probability, reference))
    lines += [describe_cc_dice(probability, reference)]
    if arguments.cases:
        lines += memory_rows(arguments.cases)
    return [*lines, ""]


def main() -> None:
    """Read the command line, print the page and write it if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="the folder open_ms_data")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="name of the one row to measure")
    parser.add_argument("--cases", type=int, nargs="*", default=[], help="as 10 1000, for memory")
    parser.add_argument("--output", type=Path, help="file to write the page to as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # MONAI warns of an argument that it passes to itself.
    warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
    # Nor is there a GPU to move its cells to.
    warnings.filterwarnings("ignore", message="Voronoi computation is running on CPU")
    text = "\n".join(page(arguments))
    print(text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
