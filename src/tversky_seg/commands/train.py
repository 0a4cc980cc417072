"""Train a network, predict the test cases and evaluate the predictions, from top to bottom."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from torch import manual_seed

from tversky_seg import config
from tversky_seg.data.case import files_of
from tversky_seg.data.dataset import Dataset, with_modalities
from tversky_seg.data.errors import DataError
from tversky_seg.data.patches.batches import Augments, PatchBatches
from tversky_seg.data.patches.draw_shares import log_draw_shares
from tversky_seg.data.patches.sampling import Sampler, patch_sides
from tversky_seg.data.preprocessing.lesion_cells import with_cells
from tversky_seg.data.preprocessing.parallel import prepare_all
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocessing_of
from tversky_seg.data.preprocessing.prepared_case import PreparedCase, one_case_per_rater
from tversky_seg.data.split import Split, split_dataset
from tversky_seg.data_check import check_training
from tversky_seg.inference.predict import predict_cases
from tversky_seg.inference.prediction_folder import check_file_names
from tversky_seg.inference.settings import Inference
from tversky_seg.report.terminal import metrics_table
from tversky_seg.runtime.checkpoints import checksum, load_checkpoint
from tversky_seg.runtime.distributed import is_first, rank, rank_zero_first, run_sharded, world_size
from tversky_seg.runtime.environment import record_environment
from tversky_seg.runtime.files import read_json_if_whole
from tversky_seg.runtime.recorder import record_results
from tversky_seg.training.trainer import Trainer
from tversky_seg.training.validation import check_monitor, validate

METRICS_FILE = Path("evaluation") / "metrics.json"
"""The last file of a run, which is complete with it."""

REPORT_FILE = Path("evaluation") / "report.html"


def train(cfg: DictConfig) -> int:
    """Train, predict and evaluate; a stage that an earlier command finished is not repeated."""
    parts = build_parts(cfg)
    # Of several processes the first works alone; the others then find everything in the cache.
    with rank_zero_first():
        output_dir = config.open_run(cfg)
        finished = read_json_if_whole(output_dir / METRICS_FILE)
        if finished is not None:
            note = f"{output_dir} is already complete; choose another output_dir to train again"
            return show(finished, output_dir, last_line=note)
        cohort = prepare_cohort(
            parts.data, output_dir, reach_of_cells_mm=parts.trainer.reach_of_cells_mm
        )
    check_training(cohort.training_cases)
    log_draw_shares(parts.sampler, cohort.training_cases)

    best_file = train_network(cfg, parts, cohort, output_dir)
    # From the file, as predict.py will: the network in memory has its last weights.
    best = load_checkpoint(best_file)
    faults = predict_test_cases(parts, cohort, best, output_dir, checksum=checksum(best_file))
    # Predictions are shared out; the evaluation is one process's work.
    if not is_first():
        return 0
    test_cases = cohort.split.test
    if test_cases and len(faults) == len(test_cases):
        raise DataError.gather(map(DataError, faults.values()))
    if not any(case.labels for case in test_cases):
        config.logger.info("no test case has a label: nothing to evaluate in %s", output_dir)
        return 1 if faults else 0
    # The saved files are evaluated, so that evaluate.py gives the same numbers.
    evaluation_dir = (output_dir / METRICS_FILE).parent
    metrics = parts.evaluate(output_dir / "predictions", test_cases, output_dir=evaluation_dir)
    trackers = parts.trainer.trackers or ()
    record_results(output_dir, metrics, step=best["step"], trackers=trackers)
    return show(metrics, output_dir, last_line=str(output_dir))


@dataclass(frozen=True)
class Parts:
    """What a run is made of, each from its group in configs/."""

    data: Dataset
    sampler: Sampler
    augmentation: Augments | None
    trainer: Trainer
    """With model, loss, lesion term, weighting, optimizer and schedule."""

    inference: Inference
    evaluate: Callable[..., dict[str, Any]]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.data.classes)


def build_parts(cfg: DictConfig) -> Parts:
    """Build every part before any data are read, and check that they fit together."""
    config.recall_auto(cfg)
    data = with_modalities(config.build(cfg, "data"))
    config.resolve_voxel_settings(cfg, data)
    sampler = config.build(cfg, "sampler")
    augmentation = config.build(cfg, "augmentation")
    n_channels = len(data.modalities)
    n_classes = len(data.classes)
    manual_seed(cfg.seed)  # of the initial weights
    model = config.build(cfg, "model", in_channels=n_channels, out_channels=n_classes)
    trainer = config.build(
        cfg,
        "trainer",
        model=model,
        loss=config.build(cfg, "loss"),
        lesion_term=config.build(cfg, "lesion_term"),
        weighting=config.build(cfg, "weighting"),
        optimizer=config.build(cfg, "optimizer"),
        schedule=config.build(cfg, "schedule"),
        seed=cfg.seed,
        modalities=data.modalities,
    )
    # The run keeps these words, not "auto".
    cfg.trainer.precision = trainer.precision
    cfg.trainer.init_from = None if trainer.init_from is None else str(trainer.init_from)
    inference = config.build(cfg, "inference")
    inference = replace(inference, patch_size=inference.patch_size or sampler.patch_size)
    evaluate = config.build(cfg, "evaluation")
    parts = Parts(data, sampler, augmentation, trainer, inference, evaluate)
    check_monitor(trainer.monitor, classes=parts.classes)
    batch_shape = (trainer.batch_size, n_channels, *patch_sides(sampler.patch_size))
    config.check_network(model, batch_shape, n_classes=n_classes)
    return parts


@dataclass(frozen=True)
class Cohort:
    """The cases of a run, and how they were prepared."""

    split: Split
    preprocessing: Preprocessing
    training_cases: Sequence[PreparedCase]
    validation_cases: Sequence[PreparedCase]


def prepare_cohort(
    data: Dataset, output_dir: Path, *, reach_of_cells_mm: float | None = None
) -> Cohort:
    """Split the data set and prepare its cases.

    Args:
        data: The data set.
        output_dir: Run directory, which gets the list of cases.
        reach_of_cells_mm: Reach of the cells that the training cases get; None: they get none.
    """
    has_started = (output_dir / "checkpoints").exists()
    split = split_dataset(data, output_dir / "manifest.csv", is_started=has_started)
    # The test cases are prepared as well: their faults had better be known before training.
    cases = [*split.train, *split.val, *split.test]
    check_file_names([case.case_id for case in cases], tuple(data.classes))
    preprocessing = preprocessing_of(data, cases)
    prepared = prepare_all(cases, preprocessing, cache_dir=data.cache_dir)
    record_environment(output_dir / "environment.json", data=files_of(cases))
    n_training = len(split.train)
    training_cases = prepared[:n_training]
    if reach_of_cells_mm is not None:
        training_cases = with_cells(training_cases, max_distance_mm=reach_of_cells_mm)
    return Cohort(
        split,
        preprocessing,
        training_cases=training_cases,
        validation_cases=prepared[n_training : n_training + len(split.val)],
    )


def train_network(cfg: DictConfig, parts: Parts, cohort: Cohort, output_dir: Path) -> Path:
    """Train, and return the best checkpoint, which holds what predict.py needs."""
    trainer = parts.trainer
    batches = PatchBatches(
        one_case_per_rater(cohort.training_cases),
        parts.sampler,
        parts.augmentation,
        batch_size=trainer.batch_size,
        seed=cfg.seed,
        with_components=trainer.needs_components,
        with_cells=trainer.reach_of_cells_mm is not None,
        rank=rank(),
        world_size=world_size(),
        accumulate=trainer.accumulate,
        required_channels=required_channels(cohort.preprocessing),
    )
    validate_network = partial(
        validate,
        cases=cohort.validation_cases,
        classes=parts.classes,
        inference=parts.inference,
        precision=trainer.precision,
    )
    return trainer.fit(
        batches,
        output_dir,
        # Small cohorts cannot spare a subject to validate on.
        validate=validate_network if cohort.validation_cases else None,
        keep={
            "config": config.plain(cfg),
            "preprocessing": cohort.preprocessing.as_dict(),
            "inference": asdict(parts.inference),
            "modality_sets": modality_sets(cohort.training_cases, cohort.preprocessing),
        },
    )


def required_channels(preprocessing: Preprocessing) -> tuple[int, ...]:
    """Number the channels that every case has, where others may be missing."""
    require = preprocessing.require or ()
    return tuple(preprocessing.modalities.index(name) for name in require)


def modality_sets(cases: Sequence[PreparedCase], preprocessing: Preprocessing) -> list[list[str]]:
    """List the sets of modalities that cases have, the most frequent first."""
    n_cases: Counter[tuple[str, ...]] = Counter()
    for case in cases:
        present = []
        for number, name in enumerate(preprocessing.modalities):
            if number not in case.missing:
                present.append(name)
        n_cases[tuple(present)] += 1
    return [list(names) for names, _ in n_cases.most_common()]


def predict_test_cases(
    parts: Parts, cohort: Cohort, best: Mapping[str, Any], output_dir: Path, *, checksum: str
) -> Mapping[str, str]:
    """Predict with the best network, at the operating point chosen on validation.

    Returns:
        What went wrong, by case.
    """
    model = parts.trainer.model
    model.load_state_dict(best["model"])
    predict = partial(
        predict_cases,
        model,
        preprocessing=cohort.preprocessing,
        output_dir=output_dir / "predictions",
        inference=parts.inference.with_operating_point(best),
        checksum=checksum,
        precision=parts.trainer.precision,
    )
    faults: Mapping[str, str] = run_sharded(predict, cohort.split.test)
    return faults


def show(metrics: dict[str, Any], output_dir: Path, *, last_line: str) -> int:
    """Print the metrics and where the report is; return 1 if some cases could not be evaluated."""
    console = Console(quiet=not is_first())
    console.print(metrics_table(metrics))
    # A path stays in one piece, to copy.
    console.print(f"report: {output_dir / REPORT_FILE}", soft_wrap=True)
    console.print(last_line, soft_wrap=True)
    return 1 if metrics.get("faults") else 0
