"""Names and formats of metrics, and the sentence that describes a lesion rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LABELS = {
    "dice": "Dice",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "f2": "F2",
    "pr_auc": "PR-AUC",
    "lesion_tpr": "Lesion TPR",
    "lesion_fpr": "Lesion FPR",
    "lesion_f1": "Lesion F1",
    "assd_mm": "ASSD (mm)",
    "hd95_mm": "HD95 (mm)",
    "volume_difference": "Volume difference",
    "reference_volume_mm3": "Reference volume (mm³)",
    "predicted_volume_mm3": "Predicted volume (mm³)",
    "n_reference_lesions": "Reference lesions",
    "n_predicted_lesions": "Predicted lesions",
    "jaccard": "Jaccard",
    "mcc": "MCC",
    "signed_volume_difference_mm3": "Signed volume difference (mm³)",
    "absolute_volume_difference_mm3": "Absolute volume difference (mm³)",
    "signed_volume_difference": "Signed volume difference",
    "roc_auc": "ROC-AUC",
    "calibration_error": "Calibration error",
    "hd_mm": "HD (mm)",
    "surface_dice": "Surface Dice",
    "object_dice": "Object Dice",
    "n_detected_lesions": "Detected lesions",
    "n_false_lesions": "False lesions",
    "n_split_lesions": "Split lesions",
    "n_merged_lesions": "Merged lesions",
    "cc_dice": "CC-Dice",
    "cc_nsd": "CC-NSD",
    "cc_hd95_mm": "CC-HD95 (mm)",
    "lesion_dice_brats": "Lesion-wise Dice (BraTS)",
    "lesion_hd95_brats_mm": "Lesion-wise HD95 (BraTS, mm)",
    "pq": "Panoptic quality",
    "rq": "Recognition quality",
    "sq": "Segmentation quality",
    "recall80_mm3": "Recall reaches 0.8 from (mm³)",
}
FOUR_DIGITS = {"specificity", "roc_auc", "calibration_error"}
UNDEFINED = "–"
FEWEST_FOR_INTERVAL = 5
"""Subjects below which texts and figures give no interval: resampling them says too little."""


def format_value(name: str, value: float | None, *, signed: bool = False) -> str:
    """Format a metric with as many digits as carry information; a dash where it is undefined.

    Args:
        name: Name of the metric, as in metrics.json; it decides the digits.
        value: Value; None and NaN are undefined.
        signed: Whether a plus sign is written, as for a difference.
    """
    if value is None or math.isnan(value):
        return UNDEFINED
    # Differences show their direction.
    sign = "+" if signed or name.startswith("signed_") else ""
    # A mean of counts has a fraction, a count has none: 2.5, but 3 and not 3.0.
    if name.startswith("n_"):
        return f"{value:{sign}.1f}".removesuffix(".0")
    # A tenth of a mm³ is far below a voxel.
    if name.endswith("mm3"):
        return f"{value:{sign},.0f}"
    # A hundredth of a millimetre is far below a voxel.
    if name.endswith("_mm"):
        return f"{value:{sign}.2f}"
    # Values close to 1 or 0 differ only in the fourth digit.
    if name in FOUR_DIGITS:
        return f"{value:{sign}.4f}"
    return f"{value:{sign}.3f}"


def count(n: int, noun: str) -> str:
    """Write a number with its noun, in the plural where it is not 1."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def split_by_class(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Map each class name to its mean, ci95, pooled and undefined.

    Where the metrics hold a single class, its name is "".
    """
    parts = {part: metrics[part] for part in ("mean", "ci95", "pooled", "undefined")}
    # With several classes, each part maps class names to metrics.
    first = next(iter(metrics["mean"].values()))
    if not isinstance(first, Mapping):
        return {"": parts}
    by_class: dict[str, dict[str, Any]] = {}
    for name in metrics["mean"]:
        by_class[name] = {part: values[name] for part, values in parts.items()}
    return by_class


def count_subjects(metrics: Mapping[str, Any]) -> int:
    """Count the subjects of an evaluation: all sessions of a subject are one."""
    return len({case["subject_id"] for case in metrics["cases"]})


def summary_rows(
    parts: Mapping[str, Any], *, n_subjects: int
) -> list[tuple[str, str, str, str, str]]:
    """List label, mean, interval, pooled value and undefined cases of each metric of a class.

    Args:
        parts: Mean, ci95, pooled and undefined of one class, see `split_by_class`.
        n_subjects: Subjects of the evaluation; fewer than 5 get no interval.
    """
    rows: list[tuple[str, str, str, str, str]] = []
    for name, mean in parts["mean"].items():
        low, high = parts["ci95"][name]
        n_undefined = parts["undefined"][name]
        row = (
            LABELS.get(name, name),
            format_value(name, mean),
            format_interval(name, low, high, n_subjects=n_subjects),
            format_value(name, parts["pooled"][name]),
            str(n_undefined) if n_undefined else "",
        )
        rows.append(row)
    return rows


def format_interval(name: str, low: float | None, high: float | None, *, n_subjects: int) -> str:
    """Format an interval of a metric; a single dash where it is undefined or of few subjects."""
    if low is None or high is None or n_subjects < FEWEST_FOR_INTERVAL:
        return UNDEFINED
    return f"{format_value(name, low)} to {format_value(name, high)}"


def describe_rule(metrics: Mapping[str, Any]) -> str:
    """Describe in plain sentences how voxels became lesions, and when these are detected or false.

    Args:
        metrics: Content of metrics.json.
    """
    rule = metrics["lesion_rule"]
    sentences = [
        _describe_masks(metrics["threshold"], rule),
        _describe_lesion(rule),
        _describe_detection(rule),
    ]
    # Keys that evaluations of earlier versions lack are read with a default.
    if rule.get("both_ways"):
        sentences.append("A predicted lesion is false if it fails the same test.")
    else:
        sentences.append("A predicted lesion is false if it touches no reference lesion.")
    if rule.get("source"):
        sentences.append(f"Rule: {rule['source']}.")
    sentences.append("Undefined cases are left out of means.")
    return " ".join(sentences)


def _describe_masks(threshold: Any, rule: Mapping[str, Any]) -> str:
    # Saved masks of unknown origin have no threshold to name.
    if any(value is not None for value in _values(threshold)):
        masks = f"Lesion voxels: probability ≥ {_by_class(threshold)}"
    else:
        masks = "Masks as saved"
    min_volume_mm3 = rule["prediction_min_volume_mm3"]
    if any(_values(min_volume_mm3)):
        masks += f"; predicted lesions below {_by_class(min_volume_mm3)} mm³ removed"
    min_peak = rule.get("prediction_min_peak", 0.0)
    if any(_values(min_peak)):
        masks += f"; predicted lesions that never reach probability {_by_class(min_peak)} removed"
    return f"{masks}."


def _describe_lesion(rule: Mapping[str, Any]) -> str:
    lesion = f"A lesion is a {rule['connectivity']}-connected component"
    smallest = rule["min_volume_mm3"]
    if smallest and rule.get("strictly_larger"):
        lesion += f" of more than {smallest:g} mm³"
    elif smallest:
        lesion += f" of {smallest:g} mm³ or more"
    return f"{lesion}."


def _describe_detection(rule: Mapping[str, Any]) -> str:
    detection = "A reference lesion is detected if at least one of its voxels is predicted"
    if rule["min_overlap"]:
        share = f"{rule['min_overlap']:.0%}"
        detection = f"A reference lesion is detected if more than {share} of it is predicted"
    outside = rule.get("max_outside", 1)
    if outside < 1:
        detection += f", by lesions that lie at most {outside:.0%} outside the reference"
    return f"{detection}."


def _by_class(value: Any) -> str:
    """Write a number, or the number of each class: 0.5, or 0.4 (liver), 0.7 (tumour)."""
    if not isinstance(value, Mapping):
        return "unknown" if value is None else f"{value:.3g}"
    return ", ".join(f"{_by_class(item)} ({name})" for name, item in value.items())


def _values(value: Any) -> list[Any]:
    """List a number, or the numbers of all classes."""
    if isinstance(value, Mapping):
        return list(value.values())
    return [value]
