"""Compare the lesions of two examinations: two masks, or the predictions of a manifest."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from tversky_seg import config
from tversky_seg.data.alignment import Alignment, measure_alignment
from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import image_stem
from tversky_seg.data.manifest import read_manifest
from tversky_seg.data.nifti import read_volume
from tversky_seg.data.settings import check_classes
from tversky_seg.inference.follow_up import (
    COLUMNS,
    TABLE_FILE,
    FollowUp,
    Row,
    compare_masks,
    compare_predictions,
    describe_fault,
    read_mask,
    summarize_changes,
    table_rows,
    write_maps,
)
from tversky_seg.inference.prediction_folder import SETTINGS_FILE
from tversky_seg.metrics.lesion_change import KINDS, ChangeRule
from tversky_seg.runtime.files import read_json_if_whole, write_csv, write_json

TWO_MASKS = ("baseline", "followup")
IMAGES = ("baseline_image", "followup_image")
SUMMARY_FILE = "follow_up.json"


def follow_up(cfg: DictConfig) -> int:
    """Write the table of lesions over time, and images of new lesions and of all changes."""
    settings = config.plain(cfg)
    rule = rule_of(settings)
    output_dir = Path(str(settings["output_dir"])).expanduser()
    if settings["predictions"] is not None:
        return follow_cohort(settings, output_dir, rule)
    for key in TWO_MASKS:
        if settings[key] is None:
            expected = "expected baseline= and followup=, or predictions= and manifest="
            raise config.ConfigError(f"{key}: none given; {expected}")
    return follow_masks(settings, output_dir, rule)


def rule_of(settings: Mapping[str, Any]) -> ChangeRule:
    """Read the rule of a change.

    Raises:
        ConfigError: A number is out of range.
    """
    names = ("connectivity", "min_volume_mm3", "min_change_mm3", "min_change_percent")
    try:
        return ChangeRule(**{name: settings[name] for name in names})
    except (ValueError, TypeError) as fault:
        raise config.ConfigError(str(fault)) from fault


def follow_masks(settings: Mapping[str, Any], output_dir: Path, rule: ChangeRule) -> int:
    """Compare two masks."""
    earlier, later = (Path(settings[key]).expanduser() for key in TWO_MASKS)
    alignment = alignment_of(settings)
    result = compare_masks(read_mask(earlier), read_mask(later), rule=rule)
    if result.is_resampled:
        config.logger.warning(
            "%s lies on another grid: resampled by its affine to that of %s", earlier, later
        )
    # The folder of the mask may be all that names the examination.
    stem = image_stem(later)
    rows = list(table_rows(result, (stem, image_stem(earlier), stem)))
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_maps(output_dir, stem, result, like=later)
        write_csv(output_dir / TABLE_FILE, COLUMNS, rows)
        write_json(output_dir / SUMMARY_FILE, summary(settings, result, alignment, rule))
    except OSError as fault:
        found = f"{output_dir} cannot be written ({fault.strerror or fault})"
        raise DataError("output_dir", found, "choose another") from fault
    print_result(result)
    print(output_dir / TABLE_FILE)
    return 0


def alignment_of(settings: Mapping[str, Any]) -> Alignment | None:
    """Measure whether the images lie on each other, and warn if not; None without images."""
    images = [settings[key] for key in IMAGES]
    if None in images:
        # One image alone is a mistake, rather than a wish to go without.
        if images != [None, None]:
            raise config.ConfigError(f"{' and '.join(IMAGES)}: one given; expected both or neither")
        config.logger.info(
            "not measured whether the examinations lie on each other: give %s", " and ".join(IMAGES)
        )
        return None
    earlier, later = (read_volume(Path(image).expanduser()) for image in images)
    alignment = measure_alignment(earlier, later)
    fault = describe_fault(alignment)
    if fault is not None:
        config.logger.warning("%s and %s: %s", *images, fault)
    return alignment


def summary(
    settings: Mapping[str, Any], result: FollowUp, alignment: Alignment | None, rule: ChangeRule
) -> dict[str, Any]:
    """Make the content of follow_up.json."""
    inputs = {key: settings[key] for key in (*TWO_MASKS, *IMAGES)}
    measured = None
    if alignment is not None:
        measured = {**asdict(alignment), "distance_mm": alignment.distance_mm}
        measured["fault"] = alignment.fault
    return {
        **inputs,
        "rule": asdict(rule),
        "baseline_is_resampled": result.is_resampled,
        "alignment": measured,
        **summarize_changes(result.changes),
        "map_values": {kind: number for number, kind in enumerate(KINDS, start=1)},
    }


def print_result(result: FollowUp) -> None:
    """Print the number of changes of each kind and their volume."""
    totals = summarize_changes(result.changes)
    table = Table(title="Lesions over time", title_justify="left")
    for header in ("Change", "Lesions", "mm³"):
        table.add_column(header, justify="left" if header == "Change" else "right")
    for kind, of_kind in totals["kinds"].items():
        table.add_row(kind, str(of_kind["n"]), f"{of_kind['change_mm3']:+,.0f}")
    table.add_section()
    percent = totals["change_percent"]
    share = "" if percent is None else f" ({percent:+.1f} %)"
    volumes = f"{totals['baseline_mm3']:,.0f} to {totals['follow_up_mm3']:,.0f}{share}"
    table.add_row("all", str(len(result.changes.changes)), volumes)
    Console().print(table)


def follow_cohort(settings: Mapping[str, Any], output_dir: Path, rule: ChangeRule) -> int:
    """Compare the predictions of a manifest's cases."""
    folder = Path(settings["predictions"]).expanduser()
    if settings["manifest"] is None:
        raise config.ConfigError("manifest: none given; expected the CSV of the predicted cases")
    if not folder.is_dir():
        raise DataError(folder, "no such folder", "expected the output_dir of predict")
    # The images need not be here any more: masks are compared.
    cases = read_manifest(settings["manifest"], may_lack_modalities=True)
    # Absent where another tool made the masks.
    saved = read_json_if_whole(folder / SETTINGS_FILE) or {}
    classes = tuple(check_classes(saved.get("classes")))
    rows = compare_predictions(cases, folder, classes=classes, rule=rule, output_dir=output_dir)
    # A table without changes still has its headers; without pairs there is none.
    if not (output_dir / TABLE_FILE).is_file():
        found = f"no two examinations of a subject with masks in {folder}"
        expected = "expected a column baseline, or subject_id and session"
        raise DataError(settings["manifest"], found, expected)
    print_counts(rows)
    print(output_dir / TABLE_FILE)
    return 0


def print_counts(rows: list[Row]) -> None:
    """Print how many lesions of the cohort have changed in which way."""
    kinds = [row[COLUMNS.index("change")] for row in rows]
    print(", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS))
