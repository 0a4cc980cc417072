"""One sentence for a reader in a clinic: how many lesions were found, and how many are false."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SMALL_MM3 = 30.0
"""Volume below which a lesion is small: a sphere of 4 mm."""


def summary_sentence(metrics: Mapping[str, Any], class_name: str = "") -> str:
    """Say what was found, missed and false, with counts over all cases.

    "149 of 264 lesions found (56 %); 18 of 164 predicted lesions are false (11 %); below 30 mm³,
    7 of 20 found (35 %); total volume 14 % too small." Without reference or predicted lesions the
    parts that are undefined are left out.

    Args:
        metrics: Content of metrics.json.
        class_name: Class; "" where there is a single one.
    """
    rows = [case[class_name] if class_name else case for case in metrics["cases"]]
    n_reference = _total(rows, "n_reference_lesions")
    n_predicted = _total(rows, "n_predicted_lesions")
    parts: list[str] = []
    if n_reference:
        n_found = _total(rows, "n_detected_lesions")
        share = n_found / n_reference
        parts.append(f"{n_found:.0f} of {n_reference:.0f} lesions found ({share:.0%})")
    else:
        parts.append("No case has a lesion")
    if n_predicted:
        n_false = _total(rows, "n_false_lesions")
        share = n_false / n_predicted
        parts.append(
            f"{n_false:.0f} of {n_predicted:.0f} predicted lesions are false ({share:.0%})"
        )
    else:
        parts.append("nothing predicted")
    parts += _small_lesions(metrics, class_name)
    parts += _volume(rows)
    return "; ".join(parts).replace("%", " %") + "."


def _total(rows: list[Mapping[str, Any]], name: str) -> float:
    return float(sum(row.get(name) or 0 for row in rows))


def _small_lesions(metrics: Mapping[str, Any], class_name: str) -> list[str]:
    recall = metrics.get("recall_by_volume") or {}
    if class_name:
        recall = recall.get(class_name, {})
    n_lesions = 0
    n_found = 0
    for part in recall.get("fixed", ()):
        if part["to_mm3"] is not None and part["to_mm3"] <= SMALL_MM3:
            n_lesions += part["n_lesions"]
            n_found += part["n_detected"]
    if not n_lesions:
        return []
    return [f"below {SMALL_MM3:g} mm³, {n_found} of {n_lesions} found ({n_found / n_lesions:.0%})"]


def _volume(rows: list[Mapping[str, Any]]) -> list[str]:
    reference = _total(rows, "reference_volume_mm3")
    if not reference:
        return []
    error = _total(rows, "predicted_volume_mm3") / reference - 1
    # It would read "0 % too large".
    if abs(error) < 0.005:
        return ["total volume right within 0.5%"]
    # "250 % too large" is easily taken for 2.5 times the volume.
    if error > 1:
        return [f"total volume {error + 1:.1f} times that of the reference"]
    return [f"total volume {abs(error):.0%} too {'large' if error > 0 else 'small'}"]
