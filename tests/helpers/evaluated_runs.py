"""Finished runs as the analysis reads them: metrics.json and so on, made without a training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

RULE = {
    "connectivity": 26,
    "min_overlap": 0.0,
    "min_volume_mm3": 0.0,
    "prediction_min_volume_mm3": 0.0,
}
TVERSKY = "tversky_seg.losses.TverskyLoss"
INVERSE_WEIGHTS = {"_target_": "tversky_seg.weighting.inverse_weights", "w_max": 2e5}


def write_run(
    folder: Path,
    values: Mapping[str, float | None],
    *,
    threshold: float | None = 0.5,
    volume: float = 100.0,
    subjects: Mapping[str, str] | None = None,
    classes: Sequence[str] = ("lesion",),
    **rule: Any,
) -> Path:
    """Write an evaluated run with two points of a precision-recall curve.

    Args:
        folder: Run directory to make.
        values: Case -> Dice, None where undefined; lesion_fpr is 1 - Dice.
        threshold: Threshold of the masks.
        volume: Reference volume of each case, in mm³.
        subjects: Case -> subject, where they differ.
        classes: Names of the classes, all with the same values.
        rule: Parts of the lesion rule.
    """
    cases: list[dict[str, Any]] = []
    for case, value in values.items():
        row = {
            "dice": value,
            "lesion_fpr": None if value is None else 1 - value,
            "pr_auc": None,
            "reference_volume_mm3": volume,
        }
        by_class: Mapping[str, Any] = row
        if len(classes) > 1:
            by_class = dict.fromkeys(classes, row)
        cases.append({"case_id": case, "subject_id": (subjects or {}).get(case, case), **by_class})
    write_metrics(folder, cases, threshold=threshold, rule=rule)
    lines = ["class,threshold,precision,recall"]
    for name in classes:
        lines += [f"{name},0.1,0.5,1.0", f"{name},0.9,0.8,0.25"]
    (folder / "evaluation" / "pr_curve.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_sweep_run(
    folder: Path,
    values: Mapping[str, float],
    *,
    seed: int = 0,
    fold: int = 0,
    loss: Mapping[str, Any] | None = None,
    weighting: Mapping[str, Any] | None = None,
    validation: Mapping[int, Mapping[str, Any]] | None = None,
    volume: float = 100.0,
    subjects: Mapping[str, str] | None = None,
    **rule: Any,
) -> Path:
    """Write a finished run of a sweep.

    Args:
        folder: Run directory to make.
        values: Case -> Dice, sensitivity, precision and so on.
        seed: Setting of this name.
        fold: Setting data.fold.
        loss: Settings of the loss, a Tversky loss otherwise.
        weighting: Settings of the weighting.
        validation: Step -> metric -> value on the validation cases.
        volume: Reference and predicted volume of each case, in mm³.
        subjects: Case -> subject, where they differ.
        rule: Parts of the lesion rule.
    """
    cases: list[dict[str, Any]] = []
    for case, value in values.items():
        row = _sweep_row(value, volume=volume)
        cases.append({"case_id": case, "subject_id": (subjects or {}).get(case, case), **row})
    write_metrics(folder, cases, threshold=0.5, rule=rule)
    settings = {
        "loss": {"_target_": TVERSKY, "alpha": None, "beta": None, **(loss or {})},
        "weighting": weighting,
        "seed": seed,
        "data": {"fold": fold, "cache_dir": str(folder)},
        "trainer": {"monitor": "dice"},
        "output_dir": str(folder),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    lines = ["step,name,value", "1,loss,0.5"]
    for step, metrics in (validation or {}).items():
        lines += [f"{step},val_{name},{value}" for name, value in metrics.items()]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_beta_sweep(root: Path) -> Path:
    """Write runs of three betas, two folds and two seeds.

    On the test cases all metrics rise with beta; on the validation cases F2 is best at 0.7.
    """
    for beta, value, validation_f2 in ((0.5, 0.4, 0.5), (0.7, 0.6, 0.7), (0.9, 0.8, 0.6)):
        early = {"dice": 0.1, "f2": 0.99, "sensitivity": 0.1, "precision": 0.9}
        late = {"dice": 0.2, "f2": validation_f2, "sensitivity": value, "precision": 1 - value}
        for fold in (0, 1):
            for seed in (0, 1):
                write_sweep_run(
                    root / f"loss.beta={beta},data.fold={fold},seed={seed}",
                    {f"c{2 * fold}": value + 0.1 * seed, f"c{2 * fold + 1}": value - 0.2},
                    seed=seed,
                    fold=fold,
                    loss={"beta": beta},
                    validation={10: early, 20: late},
                )
    return root


def split_classes(run: Path, **factors: float) -> None:
    """Give a run several classes, whose metrics are those of the one times a factor."""
    path = run / "evaluation" / "metrics.json"
    metrics = json.loads(path.read_text())
    for case in metrics["cases"]:
        row = {key: case.pop(key) for key in list(case) if key not in ("case_id", "subject_id")}
        for name, factor in factors.items():
            case[name] = {metric: value * factor for metric, value in row.items()}
    path.write_text(json.dumps(metrics))


def write_metrics(
    folder: Path,
    cases: Sequence[Mapping[str, Any]],
    *,
    threshold: float | None,
    rule: Mapping[str, Any],
) -> None:
    """Write evaluation/metrics.json of a run."""
    metrics = {
        "n_cases": len(cases),
        "threshold": threshold,
        "lesion_rule": {**RULE, **rule},
        "cases": cases,
    }
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "metrics.json").write_text(json.dumps(metrics))


def _sweep_row(value: float, *, volume: float) -> dict[str, float]:
    """Make the metrics of a case with two reference lesions, of which one is detected."""
    rates = ("dice", "sensitivity", "precision", "f2", "pr_auc", "lesion_f1")
    return {
        **dict.fromkeys(rates, value),
        "lesion_tpr": 0.5,
        "lesion_fpr": 0.5,
        "reference_volume_mm3": volume,
        "predicted_volume_mm3": volume,
        "n_reference_lesions": 2,
        "n_predicted_lesions": 4,
    }
