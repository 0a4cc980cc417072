"""Robustness of trained networks: the same scans, changed as another examination would be.

One case is in memory at a time. Each prediction is recorded at once, so that a killed command
resumes.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tversky_seg.analysis.scan_changes import (
    MISSING,
    Affine,
    ChangeSettings,
    ScanChange,
    change_image,
    change_mask,
    list_changes,
    pose_of,
    undo,
)
from tversky_seg.analysis.stress_rows import (
    COLUMNS,
    NUMBERS,
    ORIGINAL,
    StressRow,
    StressSummary,
    summarize_stress,
    volume_cv,
)
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.memory_images import ScratchFolder
from tversky_seg.data.nifti import Volume, read_grid, read_label, read_volume, write_volume
from tversky_seg.evaluation.saved_predictions import check_grid
from tversky_seg.inference.case_predictor import CasePredictor, on_input_grid
from tversky_seg.inference.output_errors import writing
from tversky_seg.inference.prediction_folder import class_prediction
from tversky_seg.metrics.case_metrics import measure_case
from tversky_seg.metrics.lesion_rule import ANY_OVERLAP
from tversky_seg.metrics.overlap import overlap_counts
from tversky_seg.runtime.files import read_json_if_whole, write_csv, write_json
from tversky_seg.runtime.progress import Reporter

SETTINGS_FILE = "settings.json"
RESULT_FILE = "stress.json"
Masks = Mapping[str, NDArray[np.bool_]]
"""Class -> mask (X, Y, Z) on the grid of the scan."""
logger = logging.getLogger("tversky_seg")


@dataclass(frozen=True, eq=False)
class StressResult:
    """All rows, and what they come to."""

    rows: list[StressRow]
    summaries: list[StressSummary]
    volume_cv: dict[str, float]
    """Class -> coefficient of variation of a case's volume over all its scans, mean over cases."""
    faults: list[str]
    """One line for each case that failed."""


def stress_scans(
    predictor: CasePredictor,
    cases: Sequence[Case],
    *,
    output_dir: Path,
    changes: ChangeSettings,
    checkpoints: Sequence[str],
    seed: int = 0,
) -> StressResult:
    """Predict cases as they are and under each change, and write stress.csv.

    Args:
        predictor: Networks, as `Segmenter.predictor` gives them.
        cases: Cases; a label is used where there is one.
        output_dir: Folder to write to; records of an interrupted call are taken from it.
        changes: Which changes, how strongly.
        checkpoints: SHA-256 of each network's file, to tell other results.
        seed: Seed of axes, noise and fields, which also depend on case and change.

    Raises:
        DataError: The folder holds results of other settings or cannot be written, or all cases
            failed.
    """
    chosen = list_changes(changes, predictor.preprocessing.modalities)
    settings = {
        "checkpoints": list(checkpoints),
        "inference": _deciding(predictor),
        "changes": asdict(changes),
        "seed": seed,
        "cases": [case.case_id for case in cases],
    }
    # Before anything is predicted, so that a folder never mixes two settings.
    with writing(output_dir / "cases" / SETTINGS_FILE):
        _claim(output_dir, settings)
    rows: list[StressRow] = []
    faults: list[str] = []
    # One more for the scan as it is.
    n_predictions = len(cases) * (len(chosen) + 1)
    with Reporter("stress", total=n_predictions) as reporter:
        for case in cases:
            record = _Record(output_dir / "cases" / f"{case.case_id}.json")
            try:
                for name in _predict_missing(predictor, case, chosen, record, seed=seed):
                    reporter.advance(f"{case.case_id} {name}")
            # One bad file must not cost the results of the others.
            except DataError as fault:
                faults.append(f"{case.case_id}: {fault}")
                logger.warning("%s", faults[-1])
            else:
                rows += record.rows([ORIGINAL, *(change.name for change in chosen)])
    if not rows:
        raise DataError("input", faults[0], "all cases failed")
    result = StressResult(rows, summarize_stress(rows), volume_cv(rows), faults)
    with writing(output_dir / "stress.csv"):
        table = [list(map(_blank, vars(row).values())) for row in rows]
        write_csv(output_dir / "stress.csv", COLUMNS, table)
    return result


def _deciding(predictor: CasePredictor) -> dict[str, Any]:
    """List the settings of inference that decide the numbers."""
    settings = asdict(predictor.inference)
    # It decides speed and memory, no numbers.
    settings.pop("batch_size")
    return settings


def _claim(output_dir: Path, settings: Mapping[str, Any]) -> None:
    """Write settings.json, or make sure that the folder's own says the same.

    Raises:
        DataError: It holds results of other settings, which are named.
    """
    path = output_dir / SETTINGS_FILE
    saved = read_json_if_whole(path)
    if saved is None:
        write_json(path, settings)
        return
    # The saved ones went through JSON, which has lists for tuples.
    for key, value in _as_json(settings).items():
        if saved.get(key) != value:
            raise DataError(
                output_dir,
                f"holds results with {key} {saved.get(key)}, this command has {value}",
                "choose another output_dir",
            )


def _as_json(value: Any) -> Any:
    """Return plain lists and mappings, as JSON gives them back."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return value


class _Record:
    """The finished predictions of one case, in a file that is whole after each of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_change: dict[str, list[dict[str, Any]]] = {}
        if path.exists():
            # A damaged file counts as none: its case is predicted again.
            self.by_change = read_json_if_whole(path) or {}

    def add(self, change: str, rows: Sequence[StressRow]) -> None:
        """Keep the rows of a change; none where it does not apply to this scan."""
        listed: list[dict[str, Any]] = []
        for row in rows:
            listed.append({name: _blank(value) for name, value in vars(row).items()})
        self.by_change[change] = listed
        with writing(self.path):
            write_json(self.path, self.by_change)

    def rows(self, changes: Sequence[str]) -> list[StressRow]:
        """List the rows of some changes, NaN where the file has null."""
        rows: list[StressRow] = []
        for change in changes:
            for values in self.by_change[change]:
                numbers = {name: _number(values[name]) for name in NUMBERS}
                rows.append(StressRow(**{**values, **numbers}))
        return rows


def _predict_missing(
    predictor: CasePredictor,
    case: Case,
    changes: Sequence[ScanChange],
    record: _Record,
    *,
    seed: int,
) -> Iterator[str]:
    """Predict what the record lacks; yields the name of each prediction, made now or before."""
    missing = [change for change in changes if change.name not in record.by_change]
    if ORIGINAL in record.by_change and not missing:
        yield from [ORIGINAL, *(change.name for change in changes)]
        return
    # Not before: a finished case is not even read.
    scan = _Scan(predictor, case, seed=seed)
    # Again in a resumed case too, since records hold numbers and no masks.
    original = scan.predict(None)
    assert original is not None
    first = scan.measure(ORIGINAL, original, original, None)
    record.add(ORIGINAL, first)
    yield ORIGINAL
    for change in changes:
        if change in missing:
            masks = scan.predict(change)
            rows = [] if masks is None else scan.measure(change.name, masks, original, first)
            record.add(change.name, rows)
        yield change.name


class _Scan:
    """One case, its label, and its predictions on its own grid."""

    def __init__(self, predictor: CasePredictor, case: Case, *, seed: int) -> None:
        self.predictor = predictor
        # Otherwise preprocessing would read the label again under every change.
        self.case = replace(case, labels=())
        self.seed = seed
        modalities = predictor.preprocessing.modalities
        self.images = {name: case.images[name] for name in modalities if name in case.images}
        self.shape, self.affine = read_grid(next(iter(self.images.values())))
        self.label = None
        if case.label is not None:
            self.label = read_label(case.label)
            # Only its grid is compared, so it takes no memory.
            on_grid = Volume(np.broadcast_to(np.False_, self.shape), self.affine)
            check_grid(self.label, on_grid, path=case.label)

    def predict(self, change: ScanChange | None) -> Masks | None:
        """Predict the scan under a change; None where the change does not apply to it."""
        if change is None:
            return self._masks(self.case, self.affine, np.eye(4))
        pose = pose_of(change, self.shape, self.affine, rng=self._rng(change))
        if change.kind == MISSING:
            images = {key: path for key, path in self.images.items() if key != change.severity}
            # No image would remain, or the case never had this one.
            if not images or len(images) == len(self.images):
                return None
            without = replace(self.case, images=images)
            return self._masks(without, read_grid(next(iter(images.values())))[1], pose)
        scratch = ScratchFolder()
        changed = self._write_changed(change, pose, scratch.path)
        if changed is None:
            return None
        affine = read_grid(next(iter(changed.images.values())))[1]
        return self._masks(changed, affine, pose)

    def _write_changed(self, change: ScanChange, pose: Affine, folder: Path) -> Case | None:
        """Write the changed images, one in memory at a time; None where none changes."""
        images: dict[str, Path] = {}
        n_changed = 0
        for name, path in self.images.items():
            image = change_image(read_volume(path), change, pose, rng=self._rng(change, name))
            images[name] = path
            if image is not None:
                # Not compressed, since it is read once and deleted.
                images[name] = folder / f"{name}.nii"
                write_volume(images[name], image.data, image.affine)
                n_changed += 1
        if not n_changed:
            return None
        brain_mask = self.case.brain_mask
        if brain_mask is not None:
            moved = change_mask(read_volume(brain_mask), change, pose)
            brain_mask = folder / "brain_mask.nii"
            write_volume(brain_mask, moved.data, moved.affine)
        return replace(self.case, images=images, brain_mask=brain_mask)

    def _masks(self, case: Case, affine: Affine, pose: Affine) -> Masks:
        predictor = self.predictor
        predicted = predictor.predict(predictor.read(case))
        points = predictor.inference.operating_points(predictor.classes)
        masks: dict[str, NDArray[np.bool_]] = {}
        volumes = on_input_grid(predicted.probability, predicted.geometry)
        for name, volume in zip(predictor.classes, volumes, strict=True):
            # Probabilities are moved, and cut at the threshold afterwards: a moved mask loses small
            # lesions.
            back = undo(
                volume, affine, pose, original_affine=self.affine, original_shape=self.shape
            )
            of_class = class_prediction(back, self.affine, point=points[name], case_id=case.case_id)
            masks[name] = of_class.mask
        return masks

    def measure(
        self,
        change: str,
        masks: Masks,
        original: Masks,
        first: Sequence[StressRow] | None,
    ) -> list[StressRow]:
        """Measure the masks of a change against those of the scan itself, and against the label.

        Args:
            change: Name of the change.
            masks: Masks under it.
            original: Masks of the scan itself.
            first: Rows of the scan itself, one for each class; None: these are they.
        """
        rows: list[StressRow] = []
        for k, (name, mask) in enumerate(masks.items()):
            values = self._values(name, mask)
            before = values if first is None else vars(first[k])
            differences: dict[str, float] = {}
            for key in ("dice", "lesion_tpr", "n_false_lesions"):
                differences[f"{key}_change"] = values[key] - before[key]
            row = StressRow(
                case_id=self.case.case_id,
                subject_id=self.case.subject_id,
                class_name=name,
                change=change,
                volume_change=_relative(values["volume_mm3"], before["volume_mm3"]),
                agreement_dice=overlap_counts(mask, original[name]).dice,
                **values,
                **differences,
            )
            rows.append(row)
        return rows

    def _values(self, name: str, mask: NDArray[np.bool_]) -> dict[str, float]:
        spacing_mm = Volume(mask, self.affine).spacing_mm
        values = {
            "volume_mm3": float(np.count_nonzero(mask) * math.prod(spacing_mm)),
            "dice": math.nan,
            "lesion_tpr": math.nan,
            "n_false_lesions": math.nan,
        }
        if self.label is None:
            return values
        reference = np.isin(self.label.data, self.predictor.preprocessing.classes[name])
        counts, _ = measure_case(
            mask, reference, spacing_mm=spacing_mm, rule=ANY_OVERLAP, with_distances=False
        )
        values["dice"] = counts.overlap.dice
        values["lesion_tpr"] = counts.lesions.tpr
        values["n_false_lesions"] = counts.lesions.n_unmatched
        return values

    def _rng(self, change: ScanChange, modality: str = "") -> np.random.Generator:
        """Return the generator of a change, whatever was predicted before."""
        words = f"{self.case.case_id}/{change.name}/{modality}"
        # Not hash(), which differs from process to process.
        return np.random.default_rng([self.seed, zlib.crc32(words.encode())])


def _relative(value: float, before: float) -> float:
    return (value - before) / before if before else math.nan


def _blank(value: Any) -> Any:
    # JSON knows no NaN.
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value
