"""Judge saved predictions against their references: case by case, as a mean with intervals, and pooled.

One case is in memory at a time. Ranking measures of the cohort come from a histogram of the saved probabilities.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.cases import Case, DataError
from tversky_seg.data.grids import resample
from tversky_seg.data.volumes import Volume, ras_grid, read_label, read_volume, spacing_of
from tversky_seg.lesions import Lesions
from tversky_seg.masks import Mask
from tversky_seg.measures import (
    ANY_OVERLAP,
    METRICS,
    NO_DISTANCES,
    Judgement,
    LesionRule,
    case_measures,
    judge,
    mean_measures,
    validation_measures,
)
from tversky_seg.progress import track
from tversky_seg.ranking import ScoreHistogram, levels_histogram, to_levels
from tversky_seg.report import Curve, Panel, curve_figure, png, slice_pictures, write_report
from tversky_seg.saved_predictions import Prediction, Predictions, open_predictions

__all__ = ["METRICS", "LesionRule", "case_measures", "evaluate", "validation_measures"]

LESION_COLUMNS = ("case_id", "class", "mask", "lesion", "volume_mm3", "x_mm", "y_mm", "z_mm", "overlap", "matched")
FINE_SHIFT = 0.01  # voxels
logger = logging.getLogger("tversky_seg")


@dataclass
class Cohort:
    """What was counted so far: small numbers per case, one histogram per class."""

    judged: list[tuple[Case, dict[str, Judgement]]] = field(default_factory=list)
    histograms: dict[str, ScoreHistogram | None] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    shifted: list[str] = field(default_factory=list)

    def of_class(self, name: str) -> list[Judgement]:
        """One judgement per case."""
        return [judgements[name] for _, judgements in self.judged]

    def pooled(self, name: str) -> Judgement:
        """All voxels and lesions of one class together."""
        histogram = self.histograms[name]
        area = histogram.average_precision() if histogram else math.nan
        return replace(reduce(add, self.of_class(name)), pr_auc=area, distances=NO_DISTANCES)


def evaluate(
    predictions: Path | str,
    cases: Sequence[Case],
    *,
    output_dir: Path | str,
    classes: Mapping[str, Sequence[int]] | None = None,
    threshold: float | Mapping[str, float] | None = None,
    min_volume_mm3: float | Mapping[str, float] | None = None,
    pattern: str | None = None,
    rule: LesionRule = ANY_OVERLAP,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge saved predictions against the cases' labels, each on the grid of its file, and write the report.

    Args:
        predictions: folder of `<case_id>_{probability,mask}.nii.gz`, or of foreign masks named by `pattern`.
        cases: those without a label are left out.
        output_dir: gets cases.csv, lesions.csv, pr_curve.csv, pr_curve.png, report.html and, last, metrics.json.
        classes: class name -> label values; None: as predictions.json says, else `{"lesion": (1,)}`.
        threshold: for `probability >= threshold`; None: as predictions.json says, else 0.5. A number, or by class.
        min_volume_mm3: smaller predicted lesions are taken out before anything is measured; None: as predictions.json
            says, else 0. A number, or by class.
        pattern: name of another tool's masks, as `{case_id}.nii.gz`; ranking measures are then undefined.
        rule: what a lesion is and when it counts as found.
        n_bootstrap: resamplings of the subjects behind `ci95`.
        seed: of the resamplings.

    Returns:
        What metrics.json holds (docs/metrics.md). Cases that could not be judged, as when a prediction is missing, are
        listed under "faults"; the key is absent where there are none.

    Raises:
        DataError: no case could be judged, the folder of predictions is missing, or `output_dir` cannot be written.
    """
    source = open_predictions(
        predictions, classes=classes, threshold=threshold, min_volume_mm3=min_volume_mm3, pattern=pattern
    )
    labelled = [case for case in cases if case.label is not None]
    _check_request(source, labelled, output_dir=Path(output_dir), n_bootstrap=n_bootstrap)
    with _writing_into(Path(output_dir)) as folder:
        cohort = _judge_cohort(source, labelled, rule=rule, lesion_file=folder / "lesions.csv")
        metrics = _summarize(cohort, source, rule=rule, n_bootstrap=n_bootstrap, seed=seed)
        curves = [_curve_of(cohort, name) for name in source.classes]
        picture = png(curve_figure(curves))
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
        (folder / "pr_curve.png").write_bytes(picture)
        _write_rows(folder / "cases.csv", ("case_id", "subject_id", "class", *METRICS), _case_rows(cohort))
        _write_rows(folder / "pr_curve.csv", ("class", "threshold", "precision", "recall"), _curve_rows(curves))
        write_report(folder / "report.html", metrics, curve=picture, panels=_panels(cohort, source))
    return metrics


def _check_request(source: Predictions, labelled: Sequence[Case], *, output_dir: Path, n_bootstrap: int) -> None:
    twice = [name for name, count in Counter(case.case_id for case in labelled).items() if count > 1]
    if twice:
        raise DataError(f"case_id: {twice[0]!r} stands twice; expected each case once")
    if not labelled:
        raise DataError(f"{source.folder}: no case has a label to judge by; fill the label column of the manifest")
    if output_dir.resolve() == source.folder.resolve():
        raise DataError(f"output_dir: {output_dir} holds the predictions and their lesions.csv; choose another")
    if n_bootstrap < 1:
        raise DataError(f"n_bootstrap: {n_bootstrap}; expected 1 or more")


def _judge_cohort(source: Predictions, cases: Sequence[Case], *, rule: LesionRule, lesion_file: Path) -> Cohort:
    """Judge case after case; a case that cannot be judged is listed and the others go on."""
    cohort = Cohort()
    with lesion_file.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(LESION_COLUMNS)
        for case in track(cases, "judge", total=len(cases)):
            try:
                _judge_case(cohort, source, case, rule=rule, writer=writer)
            except DataError as fault:
                cohort.faults.extend(fault.faults)
    if not cohort.judged:
        raise DataError.gather([DataError(fault) for fault in cohort.faults])
    if cohort.shifted:
        logger.warning(
            "predictions that lie up to 0.6 voxel off their reference, judged voxel by voxel: %s",
            ", ".join(cohort.shifted),
        )
    for line in cohort.faults:
        logger.warning("not judged: %s", line)
    return cohort


def _judge_case(cohort: Cohort, source: Predictions, case: Case, *, rule: LesionRule, writer: Any) -> None:
    reference = _read_reference(case, source.classes)
    judgements, histograms, rows, shift = {}, {}, [], 0.0
    for name, values in source.classes.items():
        prediction = source.read(case, name, reference=reference)
        target = np.isin(reference.data, values)
        judgements[name], tables = judge(prediction.mask, target, spacing_mm=reference.spacing_mm, rule=rule)
        histogram = _histogram(prediction, target)
        if histogram:
            judgements[name] = replace(judgements[name], pr_auc=histogram.average_precision())
        histograms[name], shift = histogram, max(shift, prediction.shift_voxels)
        for mask, table, least in zip(("prediction", "reference"), tables, (0.0, rule.min_overlap), strict=True):
            rows += [(case.case_id, name, mask, *row) for row in _lesion_rows(table, reference.affine, least)]
    writer.writerows(rows)  # of a whole case or of none
    for name, histogram in histograms.items():
        so_far = cohort.histograms.get(name) if cohort.judged else None
        if not cohort.judged:
            cohort.histograms[name] = histogram
        else:
            cohort.histograms[name] = so_far + histogram if so_far and histogram else None
    cohort.judged.append((case, judgements))
    if shift > FINE_SHIFT:
        cohort.shifted.append(case.case_id)


def _read_reference(case: Case, classes: Mapping[str, Sequence[int]]) -> Volume:
    assert case.label is not None
    reference = read_label(case.label)
    known = {0, *(value for values in classes.values() for value in values)}
    unknown = sorted(set(np.unique(reference.data).tolist()) - known)
    if unknown:
        named = ", ".join(f"{name}: {list(values)}" for name, values in classes.items())
        raise DataError(f"{case.label}: label values {unknown[:5]} belong to no class; data.classes names {{{named}}}")
    return reference


def _histogram(prediction: Prediction, target: Mask) -> ScoreHistogram | None:
    if prediction.probability is None:
        return None
    return levels_histogram(to_levels(prediction.probability), target)


def _lesion_rows(table: Lesions, affine: NDArray[np.float64], min_overlap: float) -> Iterator[tuple[Any, ...]]:
    """Number, size, centre, covered share, and whether that makes it matched."""
    centres_mm = table.centre @ affine[:3, :3].T + affine[:3, 3]
    for number, (volume_mm3, centre_mm, overlap) in enumerate(
        zip(table.volume_mm3, centres_mm, table.overlap, strict=True), start=1
    ):
        place = (f"{value:.2f}" for value in centre_mm)
        yield number, f"{volume_mm3:.3f}", *place, f"{overlap:.4f}", int(overlap > min_overlap)


def _summarize(cohort: Cohort, source: Predictions, *, rule: LesionRule, n_bootstrap: int, seed: int) -> dict[str, Any]:
    """What metrics.json holds, in plain values with None for NaN."""
    names, subjects = list(source.classes), [case.subject_id for case, _ in cohort.judged]
    rows = {name: [judgement.measures() for judgement in cohort.of_class(name)] for name in names}
    ci95 = {
        name: _intervals(rows[name], subjects, n_bootstrap=n_bootstrap, rng=np.random.default_rng(seed))
        for name in names
    }
    minimum = {"prediction_min_volume_mm3": _one(source.min_volume_mm3)}
    metrics = {
        "n_cases": len(cohort.judged),
        "threshold": _one(source.threshold),
        "lesion_rule": asdict(rule) | minimum,
        "mean": _one({name: mean_measures(rows[name]) for name in names}),
        "ci95": _one(ci95),
        "pooled": _one({name: cohort.pooled(name).measures() for name in names}),
        "undefined": _one(
            {name: {m: sum(math.isnan(row[m]) for row in rows[name]) for m in METRICS} for name in names}
        ),
        "cases": [
            {"case_id": case.case_id, "subject_id": case.subject_id}
            | _one({name: judgement.measures() for name, judgement in judgements.items()})
            for case, judgements in cohort.judged
        ],
    }
    faults = {"faults": cohort.faults} if cohort.faults else {}
    return {key: _plain(value) for key, value in (metrics | faults).items()}


def _intervals(
    rows: Sequence[Mapping[str, float]], subjects: Sequence[str], *, n_bootstrap: int, rng: np.random.Generator
) -> dict[str, list[float]]:
    """95 % percentile intervals of the means, drawing whole subjects with replacement; NaN for a single subject."""
    values = np.array([list(row.values()) for row in rows], dtype=np.float64)
    which = np.unique(subjects, return_inverse=True)[1]
    n_subjects = which.max() + 1
    sums, counts = np.zeros((2, n_subjects, values.shape[1]))
    np.add.at(sums, which, np.nan_to_num(values))
    np.add.at(counts, which, ~np.isnan(values))
    draws = rng.multinomial(n_subjects, np.full(n_subjects, 1 / n_subjects), size=n_bootstrap)
    with np.errstate(invalid="ignore"):
        means = (draws @ sums) / (draws @ counts)
    limits = []
    for column, subjects_with in zip(means.T, (counts > 0).sum(axis=0), strict=True):
        drawn = column[~np.isnan(column)]
        limits.append(np.percentile(drawn, (2.5, 97.5)).tolist() if subjects_with > 1 else [math.nan, math.nan])
    return dict(zip(rows[0], limits, strict=True))


def _one(by_class: Mapping[str, Any]) -> Any:
    """The value itself where there is one class."""
    return next(iter(by_class.values())) if len(by_class) == 1 else dict(by_class)


def _plain(value: Any) -> Any:
    """The same for JSON: NaN is None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _curve_of(cohort: Cohort, name: str) -> Curve:
    histogram, pooled = cohort.histograms[name], cohort.pooled(name)
    points = histogram.curve() if histogram else None
    return Curve(name, points, area=pooled.pr_auc, working_point=(pooled.overlap.sensitivity, pooled.overlap.precision))


def _curve_rows(curves: Sequence[Curve]) -> Iterator[tuple[str, ...]]:
    for curve in curves:
        if curve.points is not None:
            for threshold, precision, recall in zip(curve.points.thresholds, *curve.points[:2], strict=False):
                yield curve.name, f"{threshold:.7f}", f"{precision:.9g}", f"{recall:.9g}"


def _case_rows(cohort: Cohort) -> Iterator[tuple[Any, ...]]:
    for case, judgements in cohort.judged:
        for name, judgement in judgements.items():
            values = ("" if math.isnan(value) else value for value in judgement.measures().values())
            yield case.case_id, case.subject_id, name, *values


def _write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


@contextmanager
def _writing_into(output_dir: Path) -> Iterator[Path]:
    """A scratch folder whose files move into `output_dir` when all are whole; metrics.json, the sign of it, last."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".evaluation_", dir=output_dir) as scratch:
            yield Path(scratch)
            (output_dir / "metrics.json").unlink(missing_ok=True)  # of an earlier evaluation, whose other files go now
            for path in sorted(Path(scratch).iterdir(), key=lambda file: file.name == "metrics.json"):
                path.replace(output_dir / path.name)
    except OSError as fault:
        raise DataError(f"output_dir: {output_dir} cannot be written ({fault.strerror}); choose another") from fault


def _panels(cohort: Cohort, source: Predictions) -> list[Panel]:
    """Slices of the cases of highest and lowest Dice; of the one case where there is one."""
    dice = [np.mean([judgement.overlap.dice for judgement in judgements.values()]) for _, judgements in cohort.judged]
    ranked = [cohort.judged[i][0] for i in np.argsort(dice) if not math.isnan(dice[i])]
    chosen = (
        {"Highest Dice": ranked[-1], "Lowest Dice": ranked[0]} if len(ranked) > 1 else {"Case": cohort.judged[0][0]}
    )
    return [_panel(f"{title}: {case.case_id}", case, source) for title, case in chosen.items()]


def _panel(title: str, case: Case, source: Predictions) -> Panel:
    reference = _read_reference(case, source.classes)
    shape, affine = ras_grid(reference.shape, reference.affine)
    prediction = [source.read(case, name, reference=reference).mask for name in source.classes]
    target = [np.isin(reference.data, values) for values in source.classes.values()]
    image, *masks = (
        resample(data, reference.affine, affine, shape) for data in (_background(case, reference), *prediction, *target)
    )
    n = len(target)
    pictures = slice_pictures(image, np.stack(masks[:n]), np.stack(masks[n:]), spacing_mm=spacing_of(affine))
    return Panel(title, pictures)


def _background(case: Case, reference: Volume) -> NDArray[Any]:
    """The case's first image, or nothing where it is not to be had on this grid."""
    for path in case.images.values():
        try:
            image = read_volume(path)
        except DataError as fault:
            logger.warning("no picture of case %s: %s", case.case_id, fault)
            break
        if image.shape == reference.shape:
            return image.data
        break
    return np.zeros(reference.shape, np.float32)
