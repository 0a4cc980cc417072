"""Test how predictions change with the scan: rotated, shifted, noisy, with thicker slices."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tversky_seg import config
from tversky_seg.analysis.scan_changes import ChangeSettings
from tversky_seg.analysis.stress import RESULT_FILE, StressResult, stress_scans
from tversky_seg.analysis.stress_page import SUMMARY_HEADERS, summary_rows, write_stress_page
from tversky_seg.analysis.tables import blank_nan, markdown_table
from tversky_seg.commands.predict import describe_by_class
from tversky_seg.data.case import Case
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import read_manifest
from tversky_seg.inference.operating_point import as_settings
from tversky_seg.inference.output_errors import writing
from tversky_seg.inference.segmenter import Segmenter
from tversky_seg.inference.settings import Inference
from tversky_seg.runtime.devices import use_threads
from tversky_seg.runtime.files import read_json_if_whole, write_json

PAGE_FILE = "stress.html"


def stress(cfg: DictConfig) -> int:
    """Predict each scan as it is and under each change, and write the page and the table."""
    settings = config.plain(cfg)
    config.check_arguments("changes", settings["changes"], ChangeSettings)
    changes = ChangeSettings(**settings["changes"])
    overrides = {name: value for name, value in settings["inference"].items() if value is not None}
    config.check_arguments("inference", overrides, Inference)
    # A wrong setting is told before networks are loaded.
    Inference(**overrides)
    output_dir = folder_of(settings)
    use_threads(settings["threads"])
    segmenter = Segmenter.load(
        settings["run"],
        device=settings["device"],
        precision=settings["precision"],
        trust=settings["trust"],
        # A box around a label that has not moved with the scan would help the prediction.
        crop_labelled=False,
        **overrides,
    )
    cases = cases_of(settings, segmenter)

    result = stress_scans(
        segmenter.predictor(),
        cases,
        output_dir=output_dir,
        changes=changes,
        checkpoints=[model.checksum for model in segmenter.models],
        seed=settings["seed"],
    )
    if is_complete(output_dir):
        config.logger.info("%s is already complete; choose another output_dir", output_dir)
    else:
        write_results(output_dir, result, segmenter, settings)
    print(markdown_table(SUMMARY_HEADERS, summary_rows(result.summaries)))
    print(output_dir / PAGE_FILE)
    return 1 if result.faults else 0


def folder_of(settings: Mapping[str, Any]) -> Path:
    """Return the folder to write to: `output_dir`, or one in the run.

    Raises:
        ConfigError: There is neither.
    """
    if settings["output_dir"] is not None:
        return Path(str(settings["output_dir"])).expanduser()
    return run_folder(settings, key="output_dir") / "stress"


def cases_of(settings: Mapping[str, Any], segmenter: Segmenter) -> list[Case]:
    """List the cases of `input`, or the test cases of the run.

    Raises:
        ConfigError: There is neither.
        DataError: As `find_inputs`, or the run has no test case.
    """
    if settings["input"] is not None:
        return segmenter.cases(settings["input"])
    manifest = run_folder(settings, key="input") / "manifest.csv"
    cases = read_manifest(
        manifest,
        modalities=segmenter.modalities,
        may_lack_modalities=segmenter.allows_missing_modalities,
    )
    # Cases that were trained on would be predicted well under any change.
    tested = [case for case in cases if case.split == "test"]
    if not tested:
        raise DataError(manifest, "has no test case", "name the cases by input=")
    return tested


def run_folder(settings: Mapping[str, Any], *, key: str) -> Path:
    """Return the run that is tested, for what `key` leaves to it.

    Raises:
        ConfigError: `run` does not exist, or is no single run folder.
    """
    run = settings["run"]
    if isinstance(run, str) and (Path(run).expanduser() / "manifest.csv").is_file():
        return Path(run).expanduser()
    # A pattern names no file itself; what it matches is an ensemble.
    if isinstance(run, str) and not set(run) & set("*?[") and not Path(run).expanduser().exists():
        raise config.ConfigError(f"run: {run}: no such file or folder; expected a run folder")
    raise config.ConfigError(f"{key}: none given, and run={run} is no run folder; set {key}=")


def is_complete(output_dir: Path) -> bool:
    """Tell whether an earlier command finished all cases."""
    saved = read_json_if_whole(output_dir / RESULT_FILE)
    # A case that failed may succeed the next time.
    return saved is not None and not saved["faults"]


def write_results(
    output_dir: Path, result: StressResult, segmenter: Segmenter, settings: Mapping[str, Any]
) -> None:
    """Write stress.html and, last, stress.json."""
    points = as_settings(segmenter.inference.operating_points(segmenter.classes))
    facts = {
        "Networks": ", ".join(str(model.path) for model in segmenter.models),
        "Threshold": describe_by_class(points["threshold"]),
        "Smallest lesion": f"{describe_by_class(points['min_volume_mm3'])} mm³",
        "Lowest peak": describe_by_class(points["min_peak"]),
        "Seed": settings["seed"],
    }
    with writing(output_dir / PAGE_FILE):
        write_stress_page(output_dir / PAGE_FILE, result, title=str(settings["run"]), facts=facts)
        content = {
            "n_cases": len({row.case_id for row in result.rows}),
            "volume_cv": dict(
                zip(result.volume_cv, blank_nan(result.volume_cv.values()), strict=True)
            ),
            "changes": [summary_entry(asdict(summary)) for summary in result.summaries],
            "faults": result.faults,
        }
        write_json(output_dir / RESULT_FILE, content)


def summary_entry(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return a summary for JSON, null where a value is undefined."""
    return dict(zip(summary, blank_nan(summary.values()), strict=True))
